from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest

from prefect_augment.errors import IntegrityError
from prefect_augment.shards.staged import load_info, read_part, read_shards
from prefect_augment.storage import open_store


@pytest.fixture
def staged(tmp_path: Path, releases: ModuleType) -> Any:
    store = open_store(str(tmp_path))
    ref = releases.stage_dataset(store, releases.source_table())
    return store, ref, load_info(ref, store)


def test_parts_together_are_the_source(staged: Any, releases: ModuleType) -> None:
    store, _, info = staged
    source = releases.source_table()
    everything = read_part(store, info, ["training", "validation", "holdout"])
    assert everything.column_names == [*source.column_names, "aug_id", "content_key"]
    assert everything.num_rows == source.num_rows
    assert set(everything["when"].to_pylist()) == set(source["when"].to_pylist())


def test_a_part_is_read_alone_and_by_column(staged: Any) -> None:
    store, _, info = staged
    assert read_part(store, info, ["validation"]).num_rows == sum(
        info.part_counts["validation"].values()
    )
    assert read_part(store, info, ["validation"], ["label", "x"]).column_names == ["label", "x"]


def test_an_empty_part_has_the_columns_and_no_rows(staged: Any) -> None:
    store, _, info = staged
    empty = read_part(store, info, ["nothing"])
    assert empty.num_rows == 0
    assert empty.schema == read_part(store, info, ["training"]).schema


def test_categories_are_one_over_all_shards(staged: Any) -> None:
    store, _, info = staged
    column = read_part(store, info, ["training", "validation", "holdout"])["site"]
    assert column.num_chunks > 1
    assert {tuple(c.dictionary.to_pylist()) for c in column.chunks} == {("süd", "unused", "nord")}


def test_info_that_is_gone_or_of_another_run_says_so(staged: Any) -> None:
    store, ref, _ = staged
    with pytest.raises(IntegrityError, match="describes other records"):
        load_info(ref.model_copy(update={"digest": "0" * 64}), store)
    store.delete(ref.path)
    with pytest.raises(IntegrityError, match="is gone; run again"):
        load_info(ref, store)


def test_a_missing_staged_shard_is_named(staged: Any) -> None:
    store, _, info = staged
    store.delete(info.shards[0].path)
    with pytest.raises(IntegrityError, match=info.shards[0].path):
        read_part(store, info, ["training"])


def test_nothing_to_read_at_all_is_an_error(staged: Any) -> None:
    store, _, _ = staged
    with pytest.raises(IntegrityError, match="no shard to read"):
        read_shards(store, [])
    assert isinstance(read_shards(store, [], like=staged[2].shards), pa.Table)
