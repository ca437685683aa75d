"""A source becomes staged records: all of them, in one part each, the same whatever the way."""

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings, strategies as st

from prefect_augment.encoding.record_ids import content_digests
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import ColumnOverride, Source
from prefect_augment.schema import DatasetInfo, DatasetRef
from prefect_augment.split.ledger import HOLDOUT
from prefect_augment.split.ledger_io import read_ledger
from prefect_augment.storage import Store, open_store, read_result
from prefect_augment.storage.keys import hex_column

ADDED = ["aug_id", "content_key"]


def make_table(n: int = 120, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "x": rng.normal(size=n),
            "n": rng.integers(0, 9, n),
            "t": rng.choice(["a", "b", "c"], n).tolist(),
            "label": ["tail" if i % 6 == 0 else "head" for i in range(n)],
        }
    )


def put(folder: Path, table: pa.Table, name: str = "in.parquet") -> Source:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / name)
    return Source(uri=str(folder), label="label")


def info_of(store: Store, ref: DatasetRef) -> DatasetInfo:
    info = read_result(store, ref.path, DatasetInfo)
    assert info is not None
    return info


def staged(store: Store, info: DatasetInfo, *parts: str) -> pa.Table:
    """Staged records of some parts, all by default."""
    shards = [s for s in info.shards if s.split in (parts or ("training", "validation", "holdout"))]
    return pa.concat_tables([pq.read_table(io.BytesIO(store.read(s.path))) for s in shards])


def quarantine(store: Store, info: DatasetInfo) -> list[dict[str, Any]]:
    return [
        row
        for s in info.quarantine
        for row in pq.read_table(io.BytesIO(store.read(s.path))).to_pylist()
    ]


def rows(table: pa.Table) -> Counter[str]:
    return Counter(json.dumps(row, default=str) for row in table.to_pylist())


def test_every_record_comes_out_unchanged_in_one_part(tmp_path: Path, store: Store) -> None:
    table = make_table()
    ref = ingest(put(tmp_path / "in", table), store=store, seed=0)
    info = info_of(store, ref)
    out = staged(store, info)
    assert out.column_names == [*table.column_names, *ADDED]
    assert out.schema.remove_metadata().field("n") == table.schema.field("n")
    assert rows(out.drop_columns(ADDED)) == rows(table)
    assert len(set(out["aug_id"].to_pylist())) == table.num_rows
    assert (
        ref.n_records == table.num_rows == sum(sum(c.values()) for c in info.part_counts.values())
    )
    assert ref.class_counts == {"head": 100, "tail": 20}
    assert info.part_counts == {
        "training": {"head": 64, "tail": 13},
        "validation": {"head": 16, "tail": 3},
        "holdout": {"head": 20, "tail": 4},
    }
    assert info.compared == ("head", "tail")


def test_shards_are_sorted_and_keyed_by_content(tmp_path: Path, store: Store) -> None:
    info = info_of(store, ingest(put(tmp_path / "in", make_table()), store=store, seed=0))
    training = staged(store, info, "training")
    assert training["aug_id"].to_pylist() == sorted(training["aug_id"].to_pylist())
    assert (
        training["content_key"].to_pylist()
        == hex_column(content_digests(training, exclude=["label", *ADDED])).to_pylist()
    )


def test_counts_in_are_counts_out_plus_quarantined(tmp_path: Path, store: Store) -> None:
    lines = [f"{i / 7},{'' if i % 25 == 0 else 'ab'[i % 5 == 0]}\n" for i in range(200)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("x,label\n" + "".join(lines) + "1\n1,2,3\n")
    ref = ingest(Source(uri=str(tmp_path / "in"), label="label"), store=store, seed=0)
    info = info_of(store, ref)
    assert ref.n_records + ref.n_quarantined == len(lines) + 2
    assert (info.sources[0].n_records, info.sources[0].n_quarantined) == (
        ref.n_records,
        ref.n_quarantined,
    )
    bad = quarantine(store, info)
    assert Counter(b["reason"] for b in bad) == {
        "no label": 8,
        "1 fields where the header has 2": 1,
        "3 fields where the header has 2": 1,
    }
    assert bad[0] == {
        "file": "a.csv",
        "position": 2,
        "reason": "no label",
        "record": '{"x": 0.0, "label": null}',
    }
    assert any("quarantined 8 records: no label" in note for note in info.notes)


def test_an_unchanged_source_is_not_read_again(tmp_path: Path, store: Store) -> None:
    source = put(tmp_path / "in", make_table())
    first = ingest(source, store=store, seed=0)
    steps: list[str] = []
    assert (
        ingest(source, store=store, seed=0, on_progress=lambda f, text: steps.append(text)) == first
    )
    assert steps == []


def test_progress_rises_to_one(tmp_path: Path, store: Store) -> None:
    fractions: list[float] = []
    ingest(
        put(tmp_path / "in", make_table()),
        store=store,
        seed=0,
        on_progress=lambda f, text: fractions.append(f),
    )
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_row_order_and_files_do_not_change_the_bytes(tmp_path: Path) -> None:
    table = pa.concat_tables([make_table(), make_table().slice(0, 30)])
    order = np.random.default_rng(1).permutation(table.num_rows)
    put(tmp_path / "one", table)
    shuffled = table.take(order)
    put(tmp_path / "two", shuffled.slice(0, 40), "b.parquet")
    put(tmp_path / "two", shuffled.slice(40), "a.parquet")
    found = []
    for name in ("one", "two"):
        store = open_store(str(tmp_path / f"out-{name}"))
        source = Source(uri=str(tmp_path / name), label="label")
        found.append(info_of(store, ingest(source, store=store, seed=0)))
    assert found[0].digest == found[1].digest
    assert Path(found[0].ledger).name == Path(found[1].ledger).name


def test_twins_that_differ_in_nan_and_null_do_not_let_the_order_through(tmp_path: Path) -> None:
    x = pa.array([None, float("nan"), -0.0, 0.0] * 10)
    table = pa.table({"x": x, "n": [1] * 40, "label": ["a", "b"] * 20})
    digests = set()
    for i, order in enumerate([range(40), range(39, -1, -1)]):
        store = open_store(str(tmp_path / f"out{i}"))
        digests.add(
            ingest(put(tmp_path / f"in{i}", table.take(list(order))), store=store, seed=0).digest
        )
    assert len(digests) == 1


def test_another_seed_gives_another_split(tmp_path: Path) -> None:
    source = put(tmp_path / "in", make_table())
    refs = [ingest(source, store=open_store(str(tmp_path / f"out{s}")), seed=s) for s in (0, 1)]
    assert refs[0].digest != refs[1].digest
    assert refs[0].key != refs[1].key


def test_schema_metadata_and_types_come_back(tmp_path: Path, store: Store) -> None:
    import pandas as pd

    frame = pd.DataFrame(
        {
            "i": pd.array([1, None, 3] * 20, dtype="Int64"),
            "c": pd.Categorical(["lo", "hi", "lo"] * 20, categories=["lo", "hi"], ordered=True),
            "d": pd.date_range("2024-01-01", periods=60, tz="Europe/Berlin"),
            "b": pd.array([True, None, False] * 20, dtype="boolean"),
            "x": np.linspace(0, 1, 60),
            "label": [0, 1, 0] * 20,
        }
    )
    source = put(tmp_path / "in", pa.Table.from_pandas(frame))
    table = pq.read_table(tmp_path / "in" / "in.parquet")
    info = info_of(store, ingest(source, store=store, seed=0))
    out = staged(store, info)
    assert out.drop_columns(ADDED).schema.equals(table.schema, check_metadata=True)
    assert out.schema.metadata[b"pandas"] == table.schema.metadata[b"pandas"]
    assert out.drop_columns(ADDED).to_pandas().dtypes.equals(frame.dtypes)


def test_nested_columns_are_kept_untouched_and_said(tmp_path: Path, store: Store) -> None:
    table = make_table(60).append_column("nested", pa.array([[{"a": i}] for i in range(60)]))
    info = info_of(store, ingest(put(tmp_path / "in", table), store=store, seed=0))
    assert rows(staged(store, info).drop_columns(ADDED)) == rows(table)
    assert any("column 'nested' (opaque)" in note for note in info.notes)


@pytest.mark.parametrize("dropped", ["t", "n"])
def test_a_dropped_column_is_gone(tmp_path: Path, store: Store, dropped: str) -> None:
    source = put(tmp_path / "in", make_table()).model_copy(
        update={"columns": [ColumnOverride(name=dropped, kind="drop")]}
    )
    info = info_of(store, ingest(source, store=store, seed=0))
    assert dropped not in staged(store, info).column_names
    assert dropped not in [c.name for c in info.columns]


def test_a_holdout_column_is_respected_and_not_published(tmp_path: Path, store: Store) -> None:
    side = ["test" if i % 5 == 0 else "train" for i in range(120)]
    source = put(tmp_path / "in", make_table().append_column("side", pa.array(side)))
    info = info_of(
        store, ingest(source.model_copy(update={"holdout_column": "side"}), store=store, seed=0)
    )
    held = staged(store, info, "holdout")
    assert "side" not in held.column_names
    assert rows(held.drop_columns(ADDED)) == rows(make_table().take(list(range(0, 120, 5))))


def test_a_holdout_uri_is_staged_for_the_comparison_and_not_counted_as_source(
    tmp_path: Path, store: Store
) -> None:
    source = put(tmp_path / "in", make_table())
    put(tmp_path / "held", make_table(60, seed=9))
    source = source.model_copy(update={"holdout_uri": str(tmp_path / "held")})
    ref = ingest(source, store=store, seed=0)
    info = info_of(store, ref)
    assert ref.n_records == 120
    assert info.part_counts["holdout"] == {"head": 50, "tail": 10}
    assert rows(staged(store, info, "holdout").drop_columns(ADDED)) == rows(make_table(60, seed=9))
    assert info.holdout_uri == str(tmp_path / "held")
    assert len(info.holdout_digest) == 64
    assert HOLDOUT not in read_ledger(store, info.ledger).parts


def test_overlap_is_quarantined_and_counted(tmp_path: Path, store: Store) -> None:
    table = make_table()
    source = put(tmp_path / "in", table)
    put(tmp_path / "held", pa.concat_tables([table.slice(0, 7), make_table(60, seed=9)]))
    source = source.model_copy(update={"holdout_uri": str(tmp_path / "held")})
    ref = ingest(source, store=store, seed=0)
    assert (ref.n_records, ref.n_quarantined) == (113, 7)
    assert "quarantined 7 records: in hold-out" in info_of(store, ref).notes
    bad = quarantine(store, info_of(store, ref))
    assert [(b["position"], b["reason"]) for b in bad] == [(i, "in hold-out") for i in range(1, 8)]


def test_files_with_wide_and_narrow_offsets_of_text_are_one_source(
    tmp_path: Path, store: Store
) -> None:
    source = put(tmp_path / "in", make_table())
    wide = make_table(60, seed=9)
    types = {pa.string(): pa.large_string()}
    wide = wide.cast(pa.schema([f.with_type(types.get(f.type, f.type)) for f in wide.schema]))
    pq.write_table(wide, tmp_path / "in" / "wide.parquet")
    assert wide.schema != make_table().schema
    assert ingest(source, store=store, seed=0).n_records == 180


def test_groups_stay_on_one_side_and_are_not_learnt(tmp_path: Path, store: Store) -> None:
    groups = pa.array([f"p{i // 4}" for i in range(120)])
    source = put(tmp_path / "in", make_table().append_column("patient", groups))
    info = info_of(
        store, ingest(source.model_copy(update={"group_column": "patient"}), store=store, seed=0)
    )
    sides = [
        set(staged(store, info, part)["patient"].to_pylist())
        for part in ("training", "validation", "holdout")
    ]
    assert all(sides)
    assert not (sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2])
    assert [c.kind for c in info.columns if c.name == "patient"] == ["identifier"]


def test_small_classes_stay_in_training_and_are_said(tmp_path: Path, store: Store) -> None:
    tiny = make_table(4, seed=3).set_column(3, "label", pa.array(["tiny"] * 4))
    info = info_of(
        store,
        ingest(put(tmp_path / "in", pa.concat_tables([make_table(), tiny])), store=store, seed=0),
    )
    assert info.part_counts["training"]["tiny"] == 4
    assert "tiny" not in info.compared
    assert any("fewer than 10 records" in note and "'tiny' (4)" in note for note in info.notes)


NAMES = ["a/b", "../up", 'quo"te', "it's", "🦊", "<b>x</b>", "line\nbreak", "C:\\x", "| bar", "%20"]


def test_odd_class_names_are_kept_as_they_are(tmp_path: Path, store: Store) -> None:
    table = make_table(200).set_column(
        3, "label", pa.array([NAMES[i % len(NAMES)] for i in range(200)])
    )
    ref = ingest(put(tmp_path / "in", table), store=store, seed=0)
    assert ref.class_counts == dict.fromkeys(sorted(NAMES), 20)
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}
    assert rows(staged(store, info_of(store, ref)).drop_columns(ADDED)) == rows(table)


def test_infinite_values_are_kept_and_said(tmp_path: Path, store: Store) -> None:
    table = make_table().set_column(0, "x", pa.array([np.inf, -np.inf, *np.arange(118.0)]))
    info = info_of(store, ingest(put(tmp_path / "in", table), store=store, seed=0))
    assert sum(np.isinf(staged(store, info)["x"].to_numpy())) == 2
    assert any("column 'x' (numeric): 2 infinite values" in note for note in info.notes)


def test_constant_empty_and_unique_columns_are_found(tmp_path: Path, store: Store) -> None:
    table = make_table()
    table = table.append_column("same", pa.array(["s"] * 120)).append_column(
        "none", pa.nulls(120, pa.float64())
    )
    table = table.append_column("row", pa.array(range(120)))
    info = info_of(store, ingest(put(tmp_path / "in", table), store=store, seed=0))
    kinds = {c.name: c.kind for c in info.columns}
    assert (kinds["same"], kinds["none"], kinds["row"]) == ("constant", "empty", "identifier")


def test_a_glob_and_hidden_files(tmp_path: Path, store: Store) -> None:
    table = make_table()
    put(tmp_path / "in", table, "a-1.parquet")
    put(tmp_path / "in", table.slice(0, 12), "b-1.parquet")
    put(tmp_path / "in", table, ".hidden.parquet")
    put(tmp_path / "in" / "_staging", table)
    (tmp_path / "in" / "README.md").write_text("not data")
    whole = ingest(Source(uri=str(tmp_path / "in"), label="label"), store=store, seed=0)
    assert whole.n_records == 132
    assert "1 files of other formats were skipped" in info_of(store, whole).notes
    one = ingest(
        Source(uri=str(tmp_path / "in" / "b*.parquet"), label="label"), store=store, seed=0
    )
    assert one.n_records == 12


def test_csv_files_with_narrower_types_join(tmp_path: Path, store: Store) -> None:
    (tmp_path / "in").mkdir()
    body = [f"{i},{'a' if i % 2 else 'b'}," for i in range(30)]
    (tmp_path / "in" / "1.csv").write_text(
        "\n".join(["x,label,day", *(b + "2024-01-01" for b in body)])
    )
    (tmp_path / "in" / "2.csv").write_text(
        "\n".join(["x,label,day", *(b.replace(",", ".5,", 1) for b in body)])
    )
    info = info_of(
        store, ingest(Source(uri=str(tmp_path / "in"), label="label"), store=store, seed=0)
    )
    schema = staged(store, info).schema
    assert (schema.field("x").type, schema.field("day").type) == (pa.float64(), pa.date32())


def test_memory_and_local_disk_give_the_same_bytes(tmp_path: Path, store: Store) -> None:
    table = make_table()
    local = ingest(put(tmp_path / "in", table), store=store, seed=0)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    memory = open_store(f"memory://{tmp_path.name}-ingest/in")
    memory.put("in.parquet", sink.getvalue())
    away = open_store(f"memory://{tmp_path.name}-ingest/out")
    assert ingest(Source(uri=memory.uri, label="label"), store=away, seed=0).digest == local.digest


def test_a_single_file_may_have_any_name_where_the_format_is_given(
    tmp_path: Path, store: Store
) -> None:
    put(tmp_path / "in", make_table(), "part-0")
    source = Source(uri=str(tmp_path / "in" / "part-0"), label="label", format="parquet")
    assert ingest(source, store=store, seed=0).n_records == 120


scalars = {
    pa.int32(): st.integers(-3, 3),
    pa.float64(): st.floats(),
    pa.string(): st.text(max_size=3),
    pa.bool_(): st.booleans(),
    pa.timestamp("us"): st.integers(-(2**40), 2**40),
    pa.decimal128(9, 2): st.decimals(-99, 99, places=2),
    pa.list_(pa.int64()): st.lists(st.integers(0, 3), max_size=2),
}


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_generated_tables_come_back_whole(data: st.DataObject) -> None:
    n = data.draw(st.integers(4, 40))
    kinds = data.draw(st.lists(st.sampled_from(list(scalars)), min_size=1, max_size=4))
    columns = {
        f"c{i}": pa.array(
            data.draw(st.lists(st.one_of(st.none(), scalars[k]), min_size=n, max_size=n)), k
        )
        for i, k in enumerate(kinds)
    }
    columns["always"] = pa.array([1.0, 2.0, *[3.0] * (n - 2)])
    columns["label"] = pa.array(
        ["a", "b", *data.draw(st.lists(st.sampled_from("ab"), min_size=n - 2, max_size=n - 2))]
    )
    table = pa.table(columns)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    place = f"memory://generated-{hex_column(content_digests(table))[0].as_py()}-{n}"
    open_store(f"{place}/in").put("in.parquet", sink.getvalue())
    store = open_store(f"{place}/out")
    info = info_of(store, ingest(Source(uri=f"{place}/in", label="label"), store=store, seed=0))
    out = staged(store, info)
    assert out.drop_columns(ADDED).schema == table.schema
    assert rows(out.drop_columns(ADDED)) == rows(table)
    assert len(set(out["aug_id"].to_pylist())) == n
