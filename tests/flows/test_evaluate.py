"""Judging records that another tool made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_augment.datatypes import RunResult
from prefect_augment.errors import InputError, SchemaError
from prefect_augment.flows.evaluate import evaluate
from prefect_augment.params import Destination, Gate, Source

MakeTable = Callable[..., pa.Table]
GATE = Gate(purpose="faithful", n_seeds=1, n_bootstrap=200, learners=["logistic"])


@pytest.fixture
def real(make_table: MakeTable, tmp_path: Path) -> pa.Table:
    table = make_table()
    pq.write_table(table, tmp_path / "real.parquet")
    pq.write_table(
        make_table(seed=9, counts={"ok": 60, "worn": 30, "cracked": 30}),
        tmp_path / "holdout.parquet",
    )
    return table


def judge(folder: Path, synthetic: pa.Table) -> RunResult:
    pq.write_table(synthetic, folder / "synthetic.parquet")
    return evaluate.fn(
        source=Source(
            uri=str(folder / "real.parquet"),
            label="state",
            holdout_uri=str(folder / "holdout.parquet"),
        ),
        synthetic=str(folder / "synthetic.parquet"),
        destination=Destination(uri=str(folder / "evaluation")),
        gate=GATE,
    )


def gated(result: RunResult, folder: Path) -> dict[str, dict[str, int]]:
    """What the gate dropped, per class, as the report's JSON says."""
    import json

    report = json.loads((Path(result.report).parent / "report.json").read_text())
    return {c["name"]: c["reasons"] for c in report["gate"]["classes"]}


def test_copies_of_training_records_are_caught(real: pa.Table, tmp_path: Path) -> None:
    cracked = real.filter(pa.compute.equal(real["state"], "cracked"))
    result = judge(tmp_path, cracked)
    assert result.status == "evaluated"
    assert result.verdict is not None
    assert result.verdict.chosen == "given records"
    dropped = gated(result, tmp_path)["cracked"]
    # Those that ingest put into val were not seen as training records; the others are exact copies.
    assert dropped.get("near copy", 0) > 10


def test_fresh_records_of_the_same_kind_mostly_pass(
    real: pa.Table, make_table: MakeTable, tmp_path: Path
) -> None:
    result = judge(tmp_path, make_table(seed=5, counts={"worn": 200}))
    dropped = gated(result, tmp_path)["worn"]
    assert sum(n for reason, n in dropped.items() if reason != "surplus") < 80


def test_records_with_swapped_labels_do_not_raise_the_score(real: pa.Table, tmp_path: Path) -> None:
    ok = real.filter(pa.compute.equal(real["state"], "ok"))
    swapped = ok.set_column(
        ok.schema.get_field_index("state"), "state", pa.array(["cracked"] * ok.num_rows)
    )
    result = judge(tmp_path, swapped)
    assert result.verdict is not None
    assert result.verdict.decision != "accept"


def test_identifiers_may_be_missing_and_other_columns_may_not(
    real: pa.Table, tmp_path: Path
) -> None:
    assert judge(tmp_path, real.drop_columns(["serial"]).slice(0, 40)).verdict is not None
    with pytest.raises(SchemaError, match="load"):
        judge(tmp_path, real.drop_columns(["load"]).slice(0, 40))


def test_a_class_that_the_real_records_lack_is_refused(real: pa.Table, tmp_path: Path) -> None:
    other = real.slice(0, 5).set_column(
        real.schema.get_field_index("state"), "state", pa.array(["molten"] * 5)
    )
    with pytest.raises(InputError, match="molten"):
        judge(tmp_path, other)


def test_types_that_lose_nothing_are_cast(real: pa.Table, tmp_path: Path) -> None:
    """CSV tools write whole numbers as floats, and know no dictionary columns."""
    table = real.slice(0, 60)
    table = table.set_column(
        table.schema.get_field_index("cycles"), "cycles", table["cycles"].cast(pa.float64())
    ).set_column(table.schema.get_field_index("site"), "site", table["site"].cast(pa.string()))
    assert judge(tmp_path, table).verdict is not None
    broken = table.set_column(
        table.schema.get_field_index("cycles"), "cycles", pa.array(np.full(60, 0.5))
    )
    with pytest.raises(SchemaError, match="cycles"):
        judge(tmp_path, broken)
