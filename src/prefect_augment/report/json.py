"""The report's data, and the JSON schema of ``report.json``.

``python -m prefect_augment.report.json FILE...`` (``make schema``) writes the schema.
"""

import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from prefect_augment.evaluation.metrics.column_shapes import ShapeSummary
from prefect_augment.schema import (
    BalancePlan,
    ColumnInfo,
    FilterResult,
    Findings,
    Modality,
    Recipe,
    Result,
    StrategyScore,
    Verdict,
)

FILE = "report.schema.json"


class Neighbour(Result):
    """A synthetic record beside the nearest real training record, as text per column."""

    label: str
    synthetic: dict[str, str]
    real: dict[str, str]
    distance: float  # in the filter's feature space


class DoubtedLabel(Result):
    """A real record whose label an audit doubts."""

    aug_id: str
    label: str
    suggested: str = Field(description="the most probable other class")
    score: float = Field(description="of a label error, in [0, 1]")
    record: dict[str, str] = Field(description="column -> value; of an image, its file")
    picture: str = Field(default="", description="file of its picture; empty for tables")


class ReportData(Findings):
    """Everything behind a report's page. Keys may be added; those that are there keep their meaning."""

    schema_version: Literal[3] = 3
    title: str = Field(description="the dataset's name")
    label: str = Field(description="the label column")
    status: Literal["published", "proposed", "refused", "evaluated"] = "published"
    approval: str = Field(
        default="", description="who approved it, in a sentence; empty without an approval"
    )
    plan: BalancePlan | None = None
    notes: tuple[str, ...] = Field(default=(), description="notes of ingest on the source")
    columns: tuple[ColumnInfo, ...] = ()
    part_counts: dict[str, dict[str, int]] = Field(
        default={}, description="part -> class -> real records"
    )
    strategy_scores: tuple[StrategyScore, ...] = Field(
        default=(), description="on validation records, one per strategy and seed"
    )
    verdict: Verdict | None = Field(
        default=None, description="the last comparison, on the hold-out"
    )
    recipe: Recipe | None = None
    candidates: FilterResult | None = None
    counts_before: dict[str, dict[str, int]] = Field(
        default={}, description="class -> origin -> records"
    )
    counts_after: dict[str, dict[str, int]] = Field(default_factory=dict)
    weighted_counts: dict[str, float] = Field(default={}, description="sum of aug_weight per class")
    not_compared: dict[str, str] = Field(default={}, description="class -> why")
    quarantine: dict[str, int] = Field(default={}, description="reason -> records")
    rare_classes: tuple[str, ...] = Field(default=(), description="that shapes is of")
    shapes: tuple[ShapeSummary, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    doubted: tuple[DoubtedLabel, ...] = Field(
        default=(), description="the likeliest; audit.parquet has all"
    )
    modality: Modality = "table"
    sheets: dict[str, str] = Field(default={}, description="class -> file of its pictures")
    pictures: Literal["real", "synthetic", "none"] = Field(
        default="real", description="what may be seen of records"
    )
    seed: int | None = None
    model_kind: str = ""
    model_digest: str = ""
    method_notes: tuple[str, ...] = ()
    digests: dict[str, str] = Field(default_factory=dict)
    software: dict[str, str] = Field(default_factory=dict)
    # PNGs by file: sheets, doubted images and the policy's. What may not be shown is not in it.
    images: dict[str, bytes] = Field(default={}, exclude=True)

    def to_json(self) -> bytes:
        """All keys sorted, NaN and infinity as null."""
        values = json.loads(self.model_dump_json())
        text = json.dumps(values, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
        return (text + "\n").encode()


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
    schema = ReportData.model_json_schema(mode="serialization", schema_generator=_Generator)
    # A report has every key of its own; measurements came with later releases.
    schema["required"] = [n for n in schema["properties"] if n not in Findings.model_fields]
    for name in schema["required"]:
        schema["properties"][name].pop("default", None)
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
