"""The JSON schema of report.json: published as the results are, and kept to by every report."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from prefect_augment.report.json import ReportData, published_schema, report_schema, schema_text
from prefect_augment.schema import Findings

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("folder", ["src/prefect_augment/report", "docs"])
def test_published_schema_is_that_of_the_results(folder: str) -> None:
    assert (ROOT / folder / "report.schema.json").read_text("utf-8") == schema_text(), "make schema"


def test_schema_is_a_schema_and_comes_with_the_package() -> None:
    jsonschema.Draft202012Validator.check_schema(report_schema())
    assert published_schema() == report_schema()


def test_every_key_of_a_report_is_in_the_schema() -> None:
    assert set(minimal()) == set(report_schema()["properties"])
    # Measurements that came with later releases are not in the reports of earlier ones.
    assert set(report_schema()["required"]) == set(minimal()) - set(Findings.model_fields)


def minimal() -> dict[str, Any]:
    info: dict[str, Any] = json.loads(ReportData(title="t", label="y").to_json())
    return info


@pytest.mark.slow
def test_a_report_of_nothing_validates_and_a_wrong_one_does_not() -> None:
    jsonschema.validate(minimal(), published_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(minimal() | {"status": "lost"}, published_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(
            {k: v for k, v in minimal().items() if k != "verdict"}, published_schema()
        )


def test_numbers_that_are_none_are_null_and_later_keys_are_no_error() -> None:
    info = json.loads(json.dumps(minimal() | {"weighted_counts": {"a": None}, "later": 1}))
    jsonschema.validate(info, published_schema())
