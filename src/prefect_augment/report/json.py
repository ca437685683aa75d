"""The report's data, and the JSON schema of ``report.json``.

``python -m prefect_augment.report.json FILE...`` (``make schema``) writes the schema.
"""

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
from prefect_augment.schema import (
    BalancePlan,
    ColumnInfo,
    FilterResult,
    Findings,
    Modality,
    Origin,
    Recipe,
    Result,
    StrategyScore,
    Verdict,
)


@dataclass(frozen=True)
class Neighbour:
    """A synthetic record beside the nearest real training record, as text per column."""

    label: str
    synthetic: Mapping[str, str]
    real: Mapping[str, str]
    distance: float  # in the filter's feature space


@dataclass(frozen=True)
class DoubtedLabel:
    """A real record whose label an audit doubts, as text per column; of an image, its file."""

    aug_id: str
    label: str
    suggested: str  # the most probable other class
    score: float  # of a label error
    record: Mapping[str, str]
    picture: str = ""  # file of an image's picture


@dataclass(frozen=True)
class ReportData:
    """Everything that a report can show; :class:`ReportInfo` describes the fields.

    Missing fields are reported as not run.
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
    # Values of single records: summaries are shown as far as pictures allows.
    column_shapes: Mapping[str, ColumnShape] = field(default_factory=dict)
    neighbours: tuple[Neighbour, ...] = ()  # shown only where pictures is "real"
    doubted: tuple[DoubtedLabel, ...] = ()  # shown only where pictures is "real"
    doubted_pictures: tuple[bytes, ...] = ()  # PNGs of the doubted images; as these
    modality: Modality = "table"
    # PNG per class of images, in the page's order; drawn without real images unless pictures allows.
    sheets: Mapping[str, bytes] = field(default_factory=dict)
    pictures: Literal["real", "synthetic", "none"] = "real"
    seed: int | None = None
    model_kind: str = ""
    model_digest: str = ""
    method_notes: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)
    policy_sheet: bytes | None = None  # PNG, shown only where pictures is "real"
    findings: Findings = field(default_factory=Findings)

    def __getattr__(self, name: str) -> Any:
        """A measurement of ``findings`` by its name, as in ``report.json``."""
        if name in Findings.model_fields:
            return getattr(self.findings, name)
        raise AttributeError(name)


def sheet_files(data: ReportData) -> dict[str, str]:
    """File name of each class's sheet of images: numbered, since a class may have any name."""
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


class DoubtedRow(Result):
    """A real record whose label an audit doubts."""

    aug_id: str
    label: str
    suggested: str = Field(description="the most probable other class")
    score: float = Field(description="of a label error, in [0, 1]")
    record: dict[str, str] = Field(description="column -> value; of an image, its file")
    picture: str = Field(description="file of its picture; empty for tables")


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

    schema_version: Literal[2]
    title: str = Field(description="the dataset's name")
    label: str = Field(description="the label column")
    status: Literal["published", "proposed", "refused", "evaluated"]
    approval: str = Field(description="who approved it, in a sentence; empty without an approval")
    plan: BalancePlan | None
    notes: tuple[str, ...] = Field(description="notes of ingest on the source")
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
    doubted: tuple[DoubtedRow, ...] = Field(description="the likeliest; audit.parquet has all")
    modality: Literal["table", "image"]
    sheets: dict[str, str] = Field(description="class -> file of its pictures")
    pictures: Literal["real", "synthetic", "none"] = Field(
        description="what may be seen of records"
    )
    seed: int | None
    model_kind: str
    model_digest: str
    method_notes: tuple[str, ...]
    digests: dict[str, str]
    software: dict[str, str]


class _Generator(GenerateJsonSchema):
    """Numbers may be null, as NaN and infinity are; keys that a later release adds are no error."""

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return {**super().float_schema(schema), "type": ["number", "null"]}

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        json_schema = super().model_schema(schema)
        json_schema.pop("additionalProperties", None)
        return json_schema


def report_schema() -> dict[str, Any]:
    """The schema as plain JSON values."""
    schema = ReportInfo.model_json_schema(mode="serialization", schema_generator=_Generator)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:prefect-augment:report:1",
        **schema,
        "title": "report.json of prefect-augment",
    }


def schema_text() -> str:
    """The schema as it is published."""
    return json.dumps(report_schema(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def published_schema() -> dict[str, Any]:
    """The schema in the package."""
    text = files("prefect_augment.report").joinpath(FILE).read_text("utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


if __name__ == "__main__":
    for target in sys.argv[1:]:
        Path(target).write_text(schema_text(), encoding="utf-8")
