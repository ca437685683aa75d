"""What was published decides where records go from then on."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_augment.errors import InputError
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Source
from prefect_augment.schema import DatasetInfo, DatasetRef
from prefect_augment.storage import Store, open_store, read_manifest, read_result

Publisher = Callable[[Store, DatasetRef], None]


def make_table(n: int, start: int = 0) -> pa.Table:
    x = np.random.default_rng(0).normal(size=1000)[start : start + n]
    labels = ["tail" if i % 5 == 0 else "head" for i in range(start, start + n)]
    return pa.table(
        {"x": x, "site": [f"s{i // 4}" for i in range(start, start + n)], "label": labels}
    )


def put(folder: Path, table: pa.Table, name: str = "in.parquet", **options: Any) -> Source:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / name)
    return Source(uri=str(folder), label="label", **options)


def info_of(store: Store, ref: DatasetRef) -> DatasetInfo:
    info = read_result(store, ref.path, DatasetInfo)
    assert info is not None
    return info


def parts_of(store: Store, info: DatasetInfo) -> dict[float, str]:
    """Part of each record, by its x, which no two share."""
    return {
        x: shard.split
        for shard in info.shards
        for x in pq.read_table(io.BytesIO(store.read(shard.path)))["x"].to_pylist()
    }


@pytest.mark.parametrize("seed", [0, 7])
def test_records_keep_their_part_when_the_source_grows_whatever_the_seed(
    tmp_path: Path, store: Store, publish_as_is: Publisher, seed: int
) -> None:
    source = put(tmp_path / "in", make_table(100))
    first = info_of(store, ingest(source, store=store, seed=0))
    publish_as_is(store, ingest(source, store=store, seed=0))
    put(tmp_path / "in", make_table(150, start=100), "more.parquet")
    second = info_of(store, ingest(source, store=store, seed=seed))
    before, after = parts_of(store, first), parts_of(store, second)
    assert {x: after[x] for x in before} == before
    assert second.extra["n_new"] == 150
    assert second.part_counts["holdout"] == {"head": 40, "tail": 10}


def test_a_rerun_after_publishing_is_the_same_stage(
    tmp_path: Path, store: Store, publish_as_is: Publisher
) -> None:
    """Otherwise every nightly run would publish one more version of the same."""
    source = put(tmp_path / "in", make_table(100))
    first = ingest(source, store=store, seed=0)
    publish_as_is(store, first)
    assert ingest(source, store=store, seed=0) == first
    put(tmp_path / "in", make_table(50, start=100), "more.parquet")
    second = ingest(source, store=store, seed=0)
    publish_as_is(store, second)
    assert ingest(source, store=store, seed=0) == second
    assert read_manifest(store).version == 2


def test_a_corrected_label_does_not_move_a_record(
    tmp_path: Path, store: Store, publish_as_is: Publisher
) -> None:
    source = put(tmp_path / "in", make_table(100))
    first = ingest(source, store=store, seed=0)
    publish_as_is(store, first)
    labels = make_table(100)["label"].to_pylist()
    labels[:3] = ["head", "tail", "tail"]
    put(tmp_path / "in", make_table(100).set_column(2, "label", pa.array(labels)))
    second = ingest(source, store=store, seed=0)
    assert second.key != first.key
    assert parts_of(store, info_of(store, second)) == parts_of(store, info_of(store, first))


def test_our_own_output_is_read_as_real_records_with_its_split(
    tmp_path: Path, store: Store, publish_as_is: Publisher
) -> None:
    first = ingest(put(tmp_path / "in", make_table(100)), store=store, seed=0)
    publish_as_is(store, first)
    elsewhere = open_store(str(tmp_path / "elsewhere"))
    second = ingest(Source(uri=store.uri), store=elsewhere, seed=3)
    one, other = info_of(store, first), info_of(elsewhere, second)
    assert second.label == "label"
    assert parts_of(elsewhere, other) == parts_of(store, one)
    assert other.schema_digest == one.schema_digest
    assert second.digest == first.digest
    assert any("version 1 of a dataset published by this tool" in note for note in other.notes)


def test_our_own_output_can_be_balanced_again_in_place(
    tmp_path: Path, store: Store, publish_as_is: Publisher
) -> None:
    first = ingest(put(tmp_path / "in", make_table(100)), store=store, seed=0)
    publish_as_is(store, first)
    second = ingest(Source(uri=store.uri, label="label"), store=store, seed=0)
    assert parts_of(store, info_of(store, second)) == parts_of(store, info_of(store, first))


def test_files_of_our_own_output_are_no_source_by_themselves(
    tmp_path: Path, store: Store, publish_as_is: Publisher
) -> None:
    publish_as_is(store, ingest(put(tmp_path / "in", make_table(100)), store=store, seed=0))
    elsewhere = open_store(str(tmp_path / "elsewhere"))
    with pytest.raises(InputError, match=r"named like lineage columns: 'aug_id'.*give its folder"):
        ingest(Source(uri=f"{store.uri}/data", label="label"), store=elsewhere, seed=0)


def test_a_split_of_another_kind_is_refused(
    tmp_path: Path, store: Store, publish_as_is: Publisher
) -> None:
    source = put(tmp_path / "in", make_table(100))
    publish_as_is(store, ingest(source, store=store, seed=0))
    with pytest.raises(InputError, match=r"was split by record, and source.group_column is 'site'"):
        ingest(source.model_copy(update={"group_column": "site"}), store=store, seed=0)
    put(tmp_path / "held", make_table(60, start=500))
    with pytest.raises(InputError, match="had its hold-out split off the source"):
        ingest(
            source.model_copy(update={"holdout_uri": str(tmp_path / "held")}), store=store, seed=0
        )
