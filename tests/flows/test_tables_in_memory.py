"""`rebalance(df, "balanced", label=…)`: records that a program holds, without a server."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from prefect.exceptions import ParameterTypeError
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    temporary_settings,
)
from support.tables import make_table

from prefect_augment.errors import ParameterError, SchemaError
from prefect_augment.flows._flow import stage_table
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.storage import open_store

FORMS: dict[str, Callable[[pa.Table], Any]] = {
    "arrow": lambda table: table,
    "pandas": lambda table: table.to_pandas().set_index(pd.Index(range(5, 94))),
    "polars": lambda table: pl.from_arrow(table),
    "datasets": lambda table: datasets.Dataset(table),
    "a stream": lambda table: table.to_reader(),
}


@pytest.fixture(autouse=True)
def no_api() -> Iterator[None]:
    with temporary_settings({PREFECT_API_URL: None, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False}):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_table_in_memory_is_a_source(form: str, tmp_path: Path) -> None:
    table = make_table(counts={"ok": 80, "worn": 9})
    result = rebalance(FORMS[form](table), tmp_path / "out", label="state", plan_only=True)
    assert {c.label: c.n_real for c in result.plan.classes}.keys() == {"ok", "worn"}
    assert result.status == "planned"
    assert "<td>worn</td><td>" in result._repr_html_(), "as a notebook shows it"
    assert str(result) == "planned"
    assert len(repr(result)) < 100, "its fields are pages of numbers"
    staged = pd.read_parquet(tmp_path / "out-source" / "records.parquet")
    assert staged.columns.tolist() == table.column_names, "an index is no column"
    assert len(staged) == table.num_rows


@pytest.mark.slow
def test_a_path_is_a_source_and_a_destination(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    make_table(counts={"ok": 80, "worn": 9}).to_pandas().to_parquet(path)
    assert rebalance(path, str(tmp_path / "out"), label="state", plan_only=True).plan.classes


def test_a_column_of_mixed_types_is_refused_by_name(tmp_path: Path) -> None:
    mixed = pd.DataFrame({"kind": ["a", "b"], "width": [1, "two"]})
    with pytest.raises(SchemaError, match="width"):
        stage_table(mixed, open_store(str(tmp_path)))


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"budget": {"minuts": 2}}, ParameterTypeError, "budget.minuts"),
        ({"source": np.zeros((9, 2))}, ParameterError, "numpy array, whose columns have no names"),
        ({"labl": "kind"}, TypeError, "no parameter 'labl': did you mean 'label'"),
    ],
)
def test_a_wrong_argument_is_one_message_without_the_parameters(
    given: dict[str, Any],
    error: type[Exception],
    says: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Prefect also logs them all, with pages of values."""
    asked = {"source": "in.parquet", **given}
    with pytest.raises(error, match=says) as raised:
        rebalance(**asked)
    assert len(str(raised.value)) < 400
    assert not caplog.records
