"""Any table: what comes back is of its types, counts and domains, and the same every time."""

import warnings
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings, strategies as st

from prefect_augment.encoding.columns import describe_columns
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.estimators.sampler import GenerativeSampler
from prefect_augment.genmodels.base import MIN_SAMPLED_RECORDS

# How a column of n values is made from a generator and a number of levels.
KINDS: dict[str, tuple[Any, pa.DataType]] = {
    "float": (lambda r, n, m: r.standard_t(2, n) * 10.0 ** r.integers(-6, 7), pa.float64()),
    "steps": (lambda r, n, m: r.integers(-m, m + 1, n) / 4, pa.float32()),
    "zeros": (lambda r, n, m: np.where(r.random(n) < 0.7, 0.0, r.lognormal(3, 2, n)), pa.float64()),
    "whole": (lambda r, n, m: r.integers(-m, m + 1, n), pa.int64()),
    "small": (lambda r, n, m: r.integers(0, min(m, 200) + 1, n), pa.uint8()),
    "large": (lambda r, n, m: 2**61 + r.integers(0, m + 1, n), pa.int64()),
    "level": (lambda r, n, m: [f"l{v}" for v in r.integers(0, m + 1, n)], pa.string()),
    "code": (lambda r, n, m: [f"l{v}" for v in r.integers(0, m + 1, n)],
             pa.dictionary(pa.int16(), pa.string())),
    "flag": (lambda r, n, m: (r.random(n) < 1 / (m + 1)).tolist(), pa.bool_()),
    "day": (lambda r, n, m: r.integers(10_000, 10_001 + m, n), pa.date32()),
    "moment": (lambda r, n, m: r.integers(0, 10**15, n), pa.timestamp("us", "UTC")),
    "cents": (lambda r, n, m: r.integers(-m, m + 1, n), pa.decimal128(12, 2)),
}  # fmt: skip


@st.composite
def tables(draw: Any) -> tuple[pa.Table, np.ndarray]:
    """A table of any columns, with or without nulls, and classes of which some are tiny."""
    sizes = draw(st.lists(st.sampled_from([1, 2, 3, 7, 8, 9, 20, 40]), min_size=1, max_size=3))
    sizes = [60, *sizes]
    y = np.repeat(np.arange(len(sizes)), sizes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    y = rng.permutation(y)
    fields, columns = [], []
    for i, name in enumerate(
        draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=5))
    ):
        make, kind = KINDS[name]
        values = make(rng, len(y), draw(st.sampled_from([0, 1, 2, 12, 400])))
        share = draw(st.sampled_from([0.0, 0.0, 0.1, 0.9, 1.0]))
        missing = rng.random(len(y)) < share
        if isinstance(values, list):
            column = pa.array(
                [None if gone else v for v, gone in zip(values, missing, strict=True)], kind
            )
        elif pa.types.is_decimal(kind):
            column = pa.array(values, mask=missing).cast(pa.decimal128(19, 0)).cast(kind)
        else:
            plain = np.asarray(values)
            width = {pa.date32(): pa.int32()}.get(kind)
            column = pa.array(plain, width, mask=missing).cast(kind)
        # Free text that may not be null cannot be made, and is refused by name.
        nullable = share > 0 or name in ("level", "code") or draw(st.booleans())
        fields.append(pa.field(f"{name} {i}", kind, nullable=nullable))
        columns.append(column)
    return pa.table(columns, schema=pa.schema(fields)), y


def resample(kind: str, table: pa.Table, y: np.ndarray, **wishes: Any) -> Any:
    if kind == "flow":
        wishes["budget"] = {"steps": 3, "batch_size": 16, "device": "cpu"}
        wishes["model_params"] = {"width": 8, "depth": 1}
    sampler = GenerativeSampler(kind, random_state=3, **wishes)
    with warnings.catch_warnings():  # copies, as they should
        warnings.filterwarnings("ignore", message="classes with fewer than")
        return sampler, *sampler.fit_resample(table, y)


def check(kind: str, table: pa.Table, y: np.ndarray, purpose: str) -> None:
    sampler, made, labels = resample(kind, table, y, purpose=purpose)
    n = len(y)
    most = max(Counter(y.tolist()).values())
    assert Counter(labels.tolist()) == dict.fromkeys(np.unique(y).tolist(), most)
    assert made.schema.equals(table.schema)
    made.validate(full=True)
    assert made.slice(0, n).equals(table), "real rows stay as they are"
    n_real = len(sampler.sample_indices_)
    assert made.slice(0, n_real).equals(table.take(sampler.sample_indices_))
    info = {result.name: result for result in describe_columns(table, label="")}
    for name in table.column_names:
        seen = {v for v in table[name].to_pylist() if v is not None}
        for value in made[name].slice(n_real).to_pylist():
            if value is None:
                assert table[name].null_count or info[name].kind in ("identifier", "opaque")
            elif info[name].kind == "identifier":
                assert value not in seen
            elif isinstance(value, str | bool):
                assert value in seen
            else:
                assert min(seen) <= value <= max(seen)
    _, again, labels_again = resample(kind, table, y, purpose=purpose)
    assert again.equals(made)
    assert np.array_equal(labels_again, labels)
    assert set(sampler.summary_["copied"]) == {
        k for k, size in Counter(y.tolist()).items() if size < MIN_SAMPLED_RECORDS and size < most
    }


@pytest.mark.slow
@settings(max_examples=40)
@given(tables(), st.sampled_from(["utility", "faithful"]))
def test_trees_give_any_table_back_in_its_types_counts_and_domains(
    made: tuple[pa.Table, np.ndarray], purpose: str
) -> None:
    check("trees", *made, purpose)


@pytest.mark.slow
@settings(max_examples=12)
@given(tables())
def test_a_flow_gives_any_table_back_in_its_types_counts_and_domains(
    made: tuple[pa.Table, np.ndarray],
) -> None:
    pytest.importorskip("torch")
    check("flow", *made, "faithful")


@pytest.mark.slow
@settings(max_examples=60)
@given(tables())
def test_what_is_encoded_is_decoded_as_it_was(made: tuple[pa.Table, np.ndarray]) -> None:
    table, y = made
    table = table.append_column("label", pa.array(y))
    info = describe_columns(table, label="label")
    encoder = TableEncoder.fit(table, columns=info, label="label")
    X = encoder.encode(table)
    back = encoder.decode(X, strata=[str(k) for k in y])
    for name in encoder.names:
        assert back[name].to_pylist() == table[name].to_pylist(), name
    assert encoder.in_domain(X).all()
    assert np.array_equal(encoder.encode(back), X, equal_nan=True)
