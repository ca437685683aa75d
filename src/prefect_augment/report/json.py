"""What a report is made of. Whatever is left out is reported as not run.

The published JSON schema of ``report.json``, made from the facts that the report is made of.

``python -m prefect_augment.report.json FILE...`` (``make schema``) writes it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from prefect_augment.evaluation.metrics.column_shapes import ColumnShape
from prefect_augment.schema.base import (
    BalancePlan,
    ColumnInfo,
    FilterResult,
    Modality,
    Origin,
    Recipe,
    Result,
    StrategyScore,
    Verdict,
)
from prefect_augment.schema.report import Findings

__all__ = [
    "Neighbour",
    "ReportData",
    "ReportInfo",
    "published_schema",
    "report_schema",
    "schema_text",
    "sheet_files",
]


@dataclass(frozen=True)
class Neighbour:
    """A synthetic record beside the real training record that is nearest to it.

    ``synthetic`` and ``real`` map columns to text; ``distance`` is in the filter's feature space.
    """

    label: str
    synthetic: Mapping[str, str]
    real: Mapping[str, str]
    distance: float


@dataclass(frozen=True)
class ReportData:
    """Everything a report can show; whatever is left out is reported as not run.

    Fields are those of :class:`ReportInfo`, which says what they hold, but for these.

    Parameters
    ----------
    column_shapes : mapping of column to ColumnShape
        Values of single records: their summaries are shown as far as ``pictures`` allows.
    neighbours : tuple of Neighbour
        Shown only where ``pictures`` is "real".
    sheets : mapping of class to PNG bytes
        Picture sheets, for images, in the page's order. They hold what ``pictures`` allows: whoever draws
        them leaves real images out where it says so.
    policy_sheet : bytes, optional
        The picture of a policy check, a PNG; shown only where ``pictures`` is "real".
    findings : Findings
        Further measurements, each a key of report.json and a section of the page.
    """

    title: str
    label: str
    status: Literal["published", "proposed", "refused", "evaluated"] = "published"
    approval: str = ""
    plan: BalancePlan | None = None
    notes: tuple[str, ...] = ()
    columns: tuple[ColumnInfo, ...] = ()
    part_counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    strategy_scores: tuple[StrategyScore, ...] = ()
    verdict: Verdict | None = None
    recipe: Recipe | None = None
    candidates: FilterResult | None = None
    counts_before: Mapping[str, Mapping[Origin, int]] = field(default_factory=dict)
    counts_after: Mapping[str, Mapping[Origin, int]] = field(default_factory=dict)
    weighted_counts: Mapping[str, float] = field(default_factory=dict)
    not_compared: Mapping[str, str] = field(default_factory=dict)
    quarantine: Mapping[str, int] = field(default_factory=dict)
    rare_classes: tuple[str, ...] = ()
    column_shapes: Mapping[str, ColumnShape] = field(default_factory=dict)
    neighbours: tuple[Neighbour, ...] = ()
    modality: Modality = "table"
    sheets: Mapping[str, bytes] = field(default_factory=dict)
    pictures: Literal["real", "synthetic", "none"] = "real"
    seed: int | None = None
    model_kind: str = ""
    model_digest: str = ""
    seconds: float | None = None
    method_notes: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)
    policy_sheet: bytes | None = None
    findings: Findings = field(default_factory=Findings)

    def __getattr__(self, name: str) -> Any:
        """Return a measurement of ``findings`` by its name, as ``report.json`` has it."""
        if name in Findings.model_fields:
            return getattr(self.findings, name)
        raise AttributeError(name)


def sheet_files(data: ReportData) -> dict[str, str]:
    """File name of each class's picture sheet: numbers, since a class may be called anything."""
    if data.pictures == "none":
        return {}
    return {name: f"sheet_{i}.png" for i, name in enumerate(data.sheets, start=1)}


FILE = "report.schema.json"


class NeighbourRow(Result):
    """A synthetic record beside the real training record nearest to it."""

    label: str
    synthetic: dict[str, str]
    real: dict[str, str]
    distance: float


class ShapeRow(Result):
    """A column's histogram over the rare classes, real and synthetic."""

    column: str
    kind: Literal["numeric", "date", "category"]
    edges: tuple[float, ...] = Field(description="of a numeric column; days since 1970 for dates")
    levels: tuple[str, ...] = Field(description="of a category")
    real: tuple[float, ...] = Field(description="share of the values per bin or level")
    synthetic: tuple[float, ...]
    null_real: float
    null_synthetic: float
    n_real: int
    n_synthetic: int
    distance: float | None = Field(
        description="Kolmogorov-Smirnov for numbers and dates, total variation for categories"
    )


class ReportInfo(Findings):
    """Everything behind a report's page. Keys may be added; those that are there keep their meaning."""

    schema_version: Literal[1]
    title: str = Field(description="the dataset's name")
    label: str = Field(description="the label column")
    status: Literal["published", "proposed", "refused", "evaluated"]
    approval: str = Field(
        description="who approved it, in a sentence; empty where nobody was asked"
    )
    plan: BalancePlan | None
    notes: tuple[str, ...] = Field(description="what ingest said about the source")
    columns: tuple[ColumnInfo, ...]
    part_counts: dict[str, dict[str, int]] = Field(description="part -> class -> real records")
    strategy_scores: tuple[StrategyScore, ...] = Field(
        description="on validation records, one per strategy and seed"
    )
    verdict: Verdict | None = Field(description="the last comparison, on the hold-out")
    recipe: Recipe | None
    candidates: FilterResult | None
    counts_before: dict[str, dict[str, int]] = Field(description="class -> origin -> records")
    counts_after: dict[str, dict[str, int]]
    weighted_counts: dict[str, float] = Field(description="sum of aug_weight per class")
    not_compared: dict[str, str] = Field(description="class -> why")
    quarantine: dict[str, int] = Field(description="reason -> records")
    rare_classes: tuple[str, ...] = Field(description="that shapes is of")
    shapes: tuple[ShapeRow, ...]
    neighbours: tuple[NeighbourRow, ...]
    modality: Literal["table", "image"]
    sheets: dict[str, str] = Field(description="class -> file of its pictures")
    pictures: Literal["real", "synthetic", "none"] = Field(
        description="what may be seen of records"
    )
    seed: int | None
    model_kind: str
    model_digest: str
    seconds: float | None
    method_notes: tuple[str, ...]
    digests: dict[str, str]
    software: dict[str, str]


class _Generator(GenerateJsonSchema):
    """Numbers may be null, as NaN and infinity are; what a later release adds is no error."""

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return {**super().float_schema(schema), "type": ["number", "null"]}

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        found = super().model_schema(schema)
        found.pop("additionalProperties", None)
        return found


def report_schema() -> dict[str, Any]:
    """The schema as plain JSON values."""
    found = ReportInfo.model_json_schema(mode="serialization", schema_generator=_Generator)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:prefect-augment:report:1",
        **found,
        "title": "report.json of prefect-augment",
    }


def schema_text() -> str:
    """The schema as it is published."""
    return json.dumps(report_schema(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def published_schema() -> dict[str, Any]:
    """The schema that comes with the package."""
    text = files("prefect_augment.report").joinpath(FILE).read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


if __name__ == "__main__":
    for target in sys.argv[1:]:
        Path(target).write_text(schema_text(), encoding="utf-8")
