"""The published JSON schema of ``report.json``, made from the facts that the report is made of.

``python -m prefect_augment.evaluation.report_schema FILE...`` (``make schema``) writes it.
"""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from prefect_augment.datatypes import (
    ArmScore,
    BalancePlan,
    ColumnFact,
    Fact,
    GateReport,
    Recipe,
    Verdict,
)
from prefect_augment.findings import Findings

__all__ = ["ReportFacts", "published_schema", "report_schema", "schema_text"]

FILE = "report.schema.json"


class NeighbourFact(Fact):
    """A synthetic record beside the real training record nearest to it."""

    label: str
    synthetic: dict[str, str]
    real: dict[str, str]
    distance: float


class ShapeFact(Fact):
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


class ReportFacts(Findings):
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
    columns: tuple[ColumnFact, ...]
    part_counts: dict[str, dict[str, int]] = Field(description="part -> class -> real records")
    arm_scores: tuple[ArmScore, ...] = Field(description="on val, one per arm and seed")
    verdict: Verdict | None = Field(description="the last comparison, on the hold-out")
    recipe: Recipe | None
    gate: GateReport | None
    counts_before: dict[str, dict[str, int]] = Field(description="class -> origin -> records")
    counts_after: dict[str, dict[str, int]]
    weighted_counts: dict[str, float] = Field(description="sum of aug_weight per class")
    not_judged: dict[str, str] = Field(description="class -> why")
    quarantine: dict[str, int] = Field(description="reason -> records")
    rare_classes: tuple[str, ...] = Field(description="that shapes is of")
    shapes: tuple[ShapeFact, ...]
    neighbours: tuple[NeighbourFact, ...]
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
    found = ReportFacts.model_json_schema(mode="serialization", schema_generator=_Generator)
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
    text = files("prefect_augment.evaluation").joinpath(FILE).read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


if __name__ == "__main__":
    for target in sys.argv[1:]:
        Path(target).write_text(schema_text(), encoding="utf-8")
