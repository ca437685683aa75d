"""What breaks other samplers: each kind of column comes back with its type and values of its domain.

The list is that of research/tabular.md, sections 2.4 and 6, and every type that Arrow has. All of
them go through the way of the sampler, and through that of `rebalance`: ingest, train, sample, filter.
"""

import datetime as dt
import decimal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from prefect_augment.errors import AugmentError, ParameterError, SchemaError
from prefect_augment.estimators.sampler import GenerativeSampler
from prefect_augment.experiment.filter import filter_candidates
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Balance, RunParams, Source, TreesModel
from prefect_augment.plan.plan import plan as plan_of
from prefect_augment.schema import Experiment
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import open_store
from prefect_augment.synthesis.sample import sample
from prefect_augment.synthesis.train import train

N = 120
ILL = np.arange(N) % 4 == 0


def _columns() -> dict[str, tuple[str, pa.Array]]:
    """Return what a new record's value has to be, and the column, by what is hard about it.

    ``seen``: one of the real values. ``between``: from the smallest to the largest of them. ``null``:
    not learnt. ``fresh``: a value that no real record has, and no two new ones.
    """
    rng = np.random.default_rng(0)
    number = rng.normal(size=N) + 3 * ILL
    some = rng.random(N) < 0.2
    words = rng.choice(["a", "b", "c"], N)
    days = [dt.date(2024, 1, 1) + dt.timedelta(int(i)) for i in rng.integers(0, 300, N)]
    moments = [
        dt.datetime(2024, 3, 1) + dt.timedelta(hours=int(i)) for i in rng.integers(0, 9999, N)
    ]
    cents = [decimal.Decimal(int(v)) / 100 for v in rng.integers(-500, 5000, N)]
    few = rng.integers(0, 4, N)

    def lacking(values: Any) -> list[Any]:
        return [None if gone else v for v, gone in zip(list(values), some, strict=True)]

    def typed(values: Any, kind: pa.DataType) -> pa.Array:
        return pa.array(list(values), kind)

    def wrapped(kind: Any, values: pa.Array) -> pa.Array:
        return pa.ExtensionArray.from_storage(kind, values)

    return {
        "NaN in a number": ("between", pa.array(np.where(some, np.nan, number))),
        "null in a number": ("between", typed(lacking(number.tolist()), pa.float64())),
        "infinite numbers": ("finite", pa.array(np.where(some, -np.inf, number))),
        "only infinite": ("seen", pa.array(np.full(N, np.inf))),
        "null in a category": ("seen", pa.array(lacking(words.tolist()))),
        "empty text": ("seen", pa.array(["", *words[1:].tolist()])),
        "text of all scripts": ("seen", pa.array(rng.choice(["naïve", "日本", "\0", "🎉"], N).tolist())),
        "one number": ("seen", pa.array([7] * N)),
        "one text": ("seen", pa.array(["x"] * N)),
        "one value or none": ("seen", pa.array([None, 1.5] * (N // 2))),
        "no value": ("null", pa.nulls(N)),
        "no number": ("null", pa.array(np.full(N, np.nan))),
        "no text": ("null", pa.nulls(N, pa.string())),
        "no category": ("null", pa.nulls(N, pa.dictionary(pa.int8(), pa.float64()))),
        "text identifiers": ("null", pa.array([f"u{i:04}" for i in range(N)])),
        "row numbers": ("fresh", pa.array(range(1000, 1000 + N))),
        "unsigned row numbers": ("fresh", pa.array(np.arange(N, dtype=np.uint16))),
        "customer_id beyond 2**53": ("fresh", pa.array(2**62 + np.unique(rng.integers(0, 2**40, N)))),
        "large unsigned key": ("fresh", pa.array(np.arange(N, dtype=np.uint64) + 2**63)),
        "days": ("between", pa.array(days)),
        "days in milliseconds": ("between", pa.array(days, pa.date64())),
        "moments": ("between", pa.array(moments, pa.timestamp("ns"))),
        "moments in a zone": ("between", pa.array(moments, pa.timestamp("us", "Europe/Berlin"))),
        "moments or none": ("between", pa.array(lacking(moments), pa.timestamp("ms", "UTC"))),
        "moments of all times": (
            "between", pa.array([dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31)] * (N // 2), pa.timestamp("us")),
        ),
        "truth values": ("seen", pa.array(rng.random(N) < 0.3)),
        "truth or none": ("seen", pa.array(lacking((rng.random(N) < 0.3).tolist()))),
        "truth in a byte": ("seen", wrapped(pa.bool8(), pa.array(np.tile([0, 1], N // 2).astype(np.int8)))),
        "whole numbers to 1e15": ("between", pa.array(rng.integers(-(10**15), 10**15, N))),
        "whole numbers beyond 2**53": ("between", pa.array(rng.integers(2**60, 2**62, N))),
        "unsigned beyond 2**63": ("between", pa.array(rng.integers(2**63, 2**64 - 1, N, dtype=np.uint64))),
        "bytes as numbers": ("between", pa.array(rng.integers(0, 255, N).astype(np.uint8))),
        "the whole of int8": ("between", pa.array(rng.integers(-128, 128, N).astype(np.int8))),
        "decimals": ("between", pa.array(cents, pa.decimal128(10, 2))),
        "short decimals": ("between", pa.array(cents, pa.decimal32(6, 2))),
        "huge decimals": ("between", pa.array([v * 10**30 for v in cents], pa.decimal256(60, 3))),
        "months": ("between", pa.array(rng.integers(1, 13, N))),
        "days of a month": ("between", pa.array(rng.integers(1, 32, N).astype(np.int8))),
        "counts": ("between", pa.array(rng.poisson(0.4, N))),
        "halves": ("between", pa.array(np.round(number * 2) / 2)),
        "free text": ("null", pa.array([f"it was {i} then" for i in range(N)])),
        "lists": ("null", pa.array([[1, 2]] * N)),
        "structs": ("null", pa.array([{"a": 1}] * N)),
        "maps": ("null", pa.array([[("a", 1)]] * N, pa.map_(pa.string(), pa.int64()))),
        "binary": ("null", pa.array([b"ab", b"cd"] * (N // 2))),
        "binary of one width": ("null", pa.array([b"ab", b"cd"] * (N // 2), pa.binary(2))),
        "UUIDs": ("null", wrapped(pa.uuid(), pa.array([bytes([i] * 16) for i in range(N)], pa.binary(16)))),
        "categories": ("seen", pa.array(words.tolist()).dictionary_encode()),
        "categories of numbers": ("seen", pa.array(few).dictionary_encode()),
        "categories of moments": (
            "seen", pa.array([moments[i] for i in few], pa.timestamp("us")).dictionary_encode(),
        ),
        "categories with NaN": (
            "seen", pa.array([[1.5, np.nan, 2.5][i % 3] for i in range(N)]).dictionary_encode(),
        ),
        "categories of views": (
            "seen", pa.DictionaryArray.from_arrays(pa.array(few % 2), typed("ab", pa.string_view())),
        ),
        "views": ("seen", typed(words, pa.string_view())),
        "large text": ("seen", typed(words, pa.large_string())),
        "run ends": ("seen", pc.run_end_encode(pa.array(np.arange(N) // 40))),
        "durations": ("between", pa.array(rng.integers(0, 9000, N), pa.duration("ms"))),
        "times": ("between", typed([dt.time(int(v)) for v in rng.integers(0, 24, N)], pa.time32("ms"))),
        "exact times": ("between", typed([dt.time(int(v), 30) for v in few], pa.time64("us"))),
        "half precision": ("between", pa.array(number.astype(np.float16))),
        "single precision": ("between", pa.array(number.astype(np.float32))),
        "negative zero": ("between", pa.array(np.where(some, -0.0, number))),
        "huge numbers": ("between", pa.array(number * 1e300)),
        "both ends of float64": ("between", pa.array(np.where(number > 1, 1.7e308, -1.7e308) + number)),
        "subnormal numbers": ("between", pa.array(np.abs(number) * 5e-322)),
    }  # fmt: skip


HARD = _columns()
LABELS = np.where(ILL, "ill", "well")
FLOW = {"budget": {"steps": 8, "batch_size": 32, "device": "cpu"}}


def whole() -> pa.Table:
    """All of them beside one another, and a number that follows the class."""
    columns = {"x": pa.array(np.random.default_rng(1).normal(size=N) + ILL)}
    return pa.table(columns | {name: column for name, (_, column) in HARD.items()})


def plainly(column: pa.ChunkedArray) -> list[Any]:
    """Return the values as whole numbers where Python has no type for them, NaN as None."""
    t, kind = pa.types, column.type
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], kind)
    if t.is_run_end_encoded(kind):
        column = pa.chunked_array([pc.run_end_decode(chunk) for chunk in column.chunks])
    if t.is_temporal(kind):
        column = column.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
    return [None if v is None or v != v else v for v in column.to_pylist()]


def assert_right(what: str, real: pa.ChunkedArray, new: pa.ChunkedArray) -> None:
    """Check new values against what the case says of them."""
    right = HARD[what][0]
    old, made = plainly(real), plainly(new)
    values = [v for v in made if v is not None]
    if right == "null":
        assert values == [], "not learnt, and never repeated"
    elif right == "fresh":
        assert len(set(values)) == len(made)
        assert not set(values) & set(old)
    elif right == "seen":
        assert set(made) <= set(old)
    else:
        known = [v for v in old if v is not None and np.isfinite(float(v))]
        assert min(known) <= min(values)
        assert max(values) <= max(known)
        assert right == "finite" or len(values) == len(made) or None in old


@pytest.fixture(scope="module", params=["trees", "flow"])
def resampled(request: pytest.FixtureRequest) -> tuple[pa.Table, pa.Table]:
    if request.param == "flow":
        pytest.importorskip("torch")
    table = whole()
    options = FLOW if request.param == "flow" else {}
    made, labels = GenerativeSampler(
        request.param, purpose="faithful", random_state=0, **options
    ).fit_resample(table, LABELS)
    assert Counter(labels) == {"ill": 90, "well": 90}
    assert made.schema.equals(table.schema, check_metadata=True)
    made.validate(full=True)
    return table, made


@pytest.mark.slow
@pytest.mark.parametrize("what", HARD)
def test_a_model_gives_values_of_the_same_type_and_domain(
    resampled: tuple[pa.Table, pa.Table], what: str
) -> None:
    real, made = resampled
    assert plainly(made[what].slice(0, N)) == plainly(real[what]), "real rows stay as they are"
    assert_right(what, real[what], made[what].slice(N))


@pytest.mark.parametrize("what", HARD)
def test_a_column_alone_is_enough_for_trees(what: str) -> None:
    """Nothing else is in the table, so that the filter and the model have to do with it alone."""
    table = pa.table({what: HARD[what][1]})
    made, _ = GenerativeSampler(random_state=0).fit_resample(table, LABELS)
    assert made.schema.equals(table.schema)
    assert_right(what, table[what], made[what].slice(N))


IN_PARQUET = [what for what in HARD if what not in ("run ends", "categories of views")]


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> tuple[pa.Table, pa.Table, Any]:
    """Real and synthetic records on the way of `rebalance`, and what the filter said."""
    folder = tmp_path_factory.mktemp("hard")
    table = whole().select(["x", *IN_PARQUET]).append_column("label", pa.array(LABELS))
    (folder / "in").mkdir()
    pq.write_table(table, folder / "in" / "a.parquet")
    store = open_store(str(folder / "out"))
    dataset = ingest(Source(uri=str(folder / "in"), label="label"), store=store, seed=0)
    assert (dataset.n_records, dataset.n_quarantined) == (N, 0)
    params = RunParams(balance=Balance(target="majority"), model=TreesModel())
    plan = plan_of(dataset, params, store, compares=False)
    experiment = Experiment(dataset=dataset, plan=plan, params=params)
    model = train(experiment, store)
    drawn = sample(model, counts={"ill": 60}, seed=0, store=store, dataset=dataset)
    filtered = filter_candidates(experiment, drawn, store)
    info = load_info(dataset, store)
    real = read_part(store, info, ["training", "validation", "holdout"])
    return real, read_part(store, load_info(drawn, store), ["candidates"]), filtered


@pytest.mark.slow
@pytest.mark.parametrize("what", IN_PARQUET)
def test_the_way_of_rebalance_keeps_type_and_domain(
    staged: tuple[pa.Table, pa.Table, Any], what: str
) -> None:
    real, made, _ = staged
    assert made.schema.field(what).equals(real.schema.field(what))
    assert_right(what, real[what], made[what])


@pytest.mark.slow
def test_the_filter_takes_records_of_all_types(staged: tuple[pa.Table, pa.Table, Any]) -> None:
    _, made, filtered = staged
    (ill,) = (c for c in filtered.classes if c.name == "ill")
    assert ill.n_candidates == made.num_rows == 60
    assert 0 < ill.n_kept <= ill.n_passed


def test_what_parquet_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    for name, column in (
        ("ends", HARD["run ends"][1]),
        ("spans", pa.array([(1, 2, 3)] * N, pa.month_day_nano_interval())),
    ):
        table = pa.table({name: column, "label": LABELS})
        with ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
            file.write_table(table)
        with pytest.raises(SchemaError, match=f"column '{name}'.*Parquet cannot hold; convert it"):
            ingest(
                Source(uri=str(tmp_path / "a.arrow"), label="label"),
                store=open_store(str(tmp_path / "out")),
                seed=0,
            )


def test_identifiers_that_leave_no_number_free_are_told() -> None:
    table = pa.table({"row": pa.array(np.arange(N, dtype=np.int8)), "x": np.arange(N) % 7})
    with pytest.raises(ParameterError, match="'row' is int8, which has no fresh number left"):
        GenerativeSampler(random_state=0).fit_resample(table, LABELS)


def test_columns_of_one_name_and_columns_named_by_numbers() -> None:
    twice = pd.DataFrame(np.ones((N, 2)), columns=["a", "a"])
    with pytest.raises(SchemaError, match=r"\['a'\] occur more than once"):
        GenerativeSampler().fit_resample(twice, LABELS)
    alike = pd.DataFrame(np.ones((N, 2)), columns=[1, "1"])
    with pytest.raises(SchemaError, match="more than once"):
        GenerativeSampler().fit_resample(alike, LABELS)
    frame = pd.DataFrame({0: np.arange(N) % 5, 1: np.tile(["a", "b"], N // 2)})
    made, _ = GenerativeSampler(random_state=0).fit_resample(frame, LABELS)
    assert made.columns.equals(frame.columns)
    assert made.dtypes.equals(frame.dtypes)


@pytest.mark.slow
def test_a_category_of_very_many_levels_stays_itself() -> None:
    """One-hot encoding of such a column is what fills the memory elsewhere."""
    rng = np.random.default_rng(3)
    n = 24_000
    levels = np.char.add("level ", rng.integers(0, 9_000, n).astype(str))
    table = pa.table({"many": levels, "x": rng.normal(size=n)})
    y = np.arange(n) % 20 == 0
    made, _ = GenerativeSampler(
        random_state=0, purpose="faithful", sampling_strategy=0.2
    ).fit_resample(table, y)
    new = made["many"].slice(n).to_pylist()
    assert set(new) <= set(levels)
    assert len(set(new)) > 200, "levels that five records share, which are few of so many"


def test_rounding_breaks_no_inequality() -> None:
    """Prices in cents whose order is kept before they are rounded, and not always afterwards."""
    rng = np.random.default_rng(4)
    net = np.round(rng.gamma(2.0, 10.0, 400), 2)
    frame = pd.DataFrame({"net": net, "gross": np.round(net * 1.0005, 2), "n": rng.poisson(3, 400)})
    rules = [{"kind": "inequality", "left": "net", "right": "gross"}]
    y = np.arange(400) % 5 == 0
    made, _ = GenerativeSampler(constraints=rules, random_state=0).fit_resample(frame, y)
    new = made.iloc[400:]
    assert (new["net"] <= new["gross"]).all()
    assert np.array_equal(new["gross"], new["gross"].round(2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["trees", "flow"])
def test_a_flag_that_says_there_is_no_value_is_right(kind: str) -> None:
    """`measured` is false exactly where the value is missing: hypothyroid has six such pairs."""
    rng = np.random.default_rng(5)
    n = 600
    measured = rng.random(n) < 0.6
    table = pa.table(
        {
            "measured": measured,
            "value": pa.array(np.where(measured, rng.gamma(3.0, 1.0, n), 0), mask=~measured),
            "other": rng.normal(size=n),
        }
    )
    options: dict[str, Any] = {}
    if kind == "flow":
        pytest.importorskip("torch")
        options = {
            "budget": {"steps": 300, "batch_size": 128, "device": "cpu"},
            "model_params": {"width": 48, "depth": 1, "learning_rate": 0.01},
        }
    made, _ = GenerativeSampler(kind, purpose="faithful", random_state=0, **options).fit_resample(
        table, np.arange(n) % 3 == 0
    )
    new = made.slice(n)
    agrees = pc.equal(new["measured"], pc.is_valid(new["value"])).to_numpy()
    assert agrees.mean() >= (1.0 if kind == "trees" else 0.97)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["trees", "flow"])
def test_heavy_tails_and_inflated_zeros_keep_their_quantiles(kind: str) -> None:
    rng = np.random.default_rng(6)
    n = 3000
    table = pa.table(
        {
            "zeros": np.where(rng.random(n) < 0.8, 0.0, np.round(rng.lognormal(6, 2, n), 2)),
            "tail": rng.standard_cauchy(n),
            "income": rng.pareto(1.5, n) * 1000,
        }
    )
    options: dict[str, Any] = {}
    if kind == "flow":
        pytest.importorskip("torch")
        options = {
            "budget": {"steps": 300, "batch_size": 256, "device": "cpu"},
            "model_params": {"width": 48, "depth": 1, "learning_rate": 0.01},
        }
    y = rng.random(n) < 0.4
    sampler = GenerativeSampler(kind, random_state=0, **options).fit(table, y)
    made, _ = sampler.sample({False: 3000})
    # By rank: at the real 5 % quantile 5 % of the new values lie below, and so on.
    for name in ("tail", "income"):
        real, new = (np.sort(t[name].to_numpy()) for t in (table.filter(pa.array(~y)), made))
        places = np.searchsorted(new, np.quantile(real, [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99]))
        off = np.abs(places / len(new) - [0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
        assert off.max() < 0.06
        assert new[-1] <= table[name].to_numpy().max()
    zeros = [(t["zeros"].to_numpy() == 0).mean() for t in (table, made)]
    assert zeros[1] == pytest.approx(zeros[0], abs=0.06)
    assert made["zeros"].to_numpy().min() >= 0, "no negative amount"


@pytest.mark.parametrize("n_rare", [1, 2, 5, 7, 8])
def test_classes_of_few_rows_come_up_to_what_was_asked(n_rare: int) -> None:
    rng = np.random.default_rng(7)
    frame = pd.DataFrame({"x": rng.normal(size=60), "g": rng.choice(["a", "b"], 60)})
    y = np.repeat([0, 1], [60 - n_rare, n_rare])
    sampler = GenerativeSampler(random_state=0)
    if n_rare < 8:
        with pytest.warns(UserWarning, match="filled up with copies"):
            made, labels = sampler.fit_resample(frame, y)
        assert sampler.summary_["copied"] == {1: 60 - 2 * n_rare}
        assert set(made["x"][labels == 1]) <= set(frame["x"][y == 1])
    else:
        made, labels = sampler.fit_resample(frame, y)
        assert len(set(made["x"][labels == 1]) - set(frame["x"])) > 0
    assert Counter(labels) == {0: 60 - n_rare, 1: 60 - n_rare}


def test_no_class_but_one_and_no_row_are_told() -> None:
    frame = pd.DataFrame({"x": np.arange(20.0)})
    with pytest.raises(ValueError, match=r"(?i)class"):
        GenerativeSampler().fit_resample(frame, np.zeros(20))
    with pytest.raises((ValueError, AugmentError)):
        GenerativeSampler().fit_resample(frame.iloc[:0], np.zeros(0))
