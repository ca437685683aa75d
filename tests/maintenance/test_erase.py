import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.steps import publish_parts

from prefect_augment.errors import EmptyClassError, IntegrityError, ParameterError, TransientError
from prefect_augment.ingest.ingest import ingest
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.maintenance.erase import erase
from prefect_augment.maintenance.verify import verify
from prefect_augment.params import Publish, Source
from prefect_augment.report.card import CARD
from prefect_augment.shards.base import read_shard
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.split.ledger_io import read_ledger
from prefect_augment.storage import Store, lease, list_versions, open_store, read_manifest

TAIL = "c/<b>|'"


def column(store: Store, name: str, version: int | None = None, **choice: Any) -> list[Any]:
    values: list[Any] = open_dataset(store.uri, version).to_table(**choice)[name].to_pylist()
    return values


def parent(store: Store) -> str:
    """A real record that a classic one was made from."""
    return str(column(store, "aug_parent", origins=["classic"])[0])


def everything(store: Store) -> dict[str, bytes]:
    return {path: store.read(path) for path in store.list()}


def test_a_record_and_what_was_made_of_it_are_gone_from_every_version(two: Store) -> None:
    gone = parent(two)
    n_made = column(two, "aug_parent", origins=["classic"]).count(gone)
    before = {s.path for s in read_manifest(two).shards}
    report = erase(two, [gone])
    assert (report.version, report.versions_removed, list_versions(two)) == (3, (1, 2), (3,))
    assert report.n_erased == {"real": 1, "classic": n_made}
    assert gone not in column(two, "aug_id")
    assert gone not in column(two, "aug_parent")
    newest = read_manifest(two)
    assert newest.parent == 2
    assert report.n_shards_rewritten == len(before - {s.path for s in newest.shards}) == 2
    assert (
        len(before & {s.path for s in newest.shards}) == 4
    )  # others of real ones, synthetic and the hold-out
    assert newest.class_counts["train"][TAIL] == {"real": 6, "classic": 3 - n_made, "synthetic": 1}
    assert verify(two).ok
    assert "Erased in version 3: 1 source records of the version before" in report.notes[0]
    assert f"and {n_made} records made from them (0 copies" in report.notes[0]
    assert all(note in newest.notes for note in report.notes)
    assert b"version 3" in two.read(CARD)


def test_nothing_that_may_hold_it_is_left(two: Store) -> None:
    two.put("notes.txt", b"mine")
    erase(two, [parent(two)])
    newest = read_manifest(two)
    assert {p for p in two.list() if not p.startswith("data/")} == {
        "README.md", "croissant.json", "notes.txt", "_manifests/v00000003.json", *(s.path for s in newest.quarantine),
        newest.ledger.path if newest.ledger else "",
    }  # fmt: skip
    assert set(two.list("data")) == {s.path for s in newest.shards}
    assert (newest.report, newest.report_files) == ("", ())


def test_the_manifest_says_that_the_models_had_seen_it(two: Store) -> None:
    report = erase(two, [parent(two)])
    assert any("their models had seen 1 of the erased records" in note for note in report.notes)
    assert column(two, "aug_id", origins=["synthetic"]) != []
    held = column(two, "aug_id", split="holdout")[0]
    assert not any("had seen" in note for note in erase(two, [held]).notes)


def test_records_are_chosen_by_a_column_s_value(two: Store) -> None:
    n = column(two, "site", origins=["real"]).count("nord")
    n += column(two, "site", split="holdout").count("nord")
    report = erase(two, where=[("site", "nord")])
    assert report.n_erased["real"] == n
    assert "nord" not in column(two, "site", origins=["real"])
    assert verify(two).ok
    assert erase(two, where=[("n", "13")]).n_erased["real"] == 1
    assert 13 not in column(two, "n", origins=["real"])


@pytest.mark.parametrize("value", ["nord' OR '1'='1", "nord) or (True", "*", "n.*", "%", "nord\0"])
def test_a_condition_is_a_value_and_no_expression(two: Store, value: str) -> None:
    before = everything(two)
    with pytest.raises(ParameterError):
        erase(two, where=[("site", value)])
    assert everything(two) == before


def test_a_category_that_only_the_erased_had_is_in_no_shard(
    any_store: Store, releases: ModuleType
) -> None:
    """A shard's list of categories holds also what none of its records has."""
    table = releases.source_table()
    names = [f"patient {i}" for i in range(60)]
    table = table.append_column("who", pa.array(names).dictionary_encode())
    release = releases.stage_release(any_store, table=table)
    publish_parts(**{**vars(release), "publish": Publish(origins=["real"], shard_records=10)})
    name = column(any_store, "who")[0]

    def found() -> list[str]:
        paths = [shard.path for shard in read_manifest(any_store).shards]
        known = [read_shard(any_store, path)["who"].chunk(0).dictionary for path in paths]
        return [path for path, names in zip(paths, known, strict=True) if name in names.to_pylist()]

    assert len(found()) > 3
    report = erase(any_store, where=[("who", name)])
    assert report.n_erased == {"real": 1}
    assert found() == []
    site = read_shard(any_store, read_manifest(any_store).shards[0].path)["site"]
    assert "unused" in site.chunk(0).dictionary.to_pylist()  # the source's own level
    assert verify(any_store).ok


def test_copies_go_with_their_record(any_store: Store, releases: ModuleType) -> None:
    release = releases.stage_release(any_store)
    publish_parts(**{**vars(release), "publish": Publish(materialise="copies")})
    gone = column(any_store, "aug_parent", origins=["copy"])[0]
    report = erase(any_store, [gone])
    assert report.n_erased["copy"] >= 1
    assert gone not in column(any_store, "aug_parent")
    assert verify(any_store).ok


def test_a_doubted_record_leaves_the_recipe(store: Store, releases: ModuleType) -> None:
    release = releases.stage_release(store)
    info = load_info(release.dataset, store)
    gone, other = read_part(store, info, ["training"])["aug_id"].to_pylist()[:2]
    recipe = release.recipe.model_copy(update={"doubted": {gone: 0.0, other: 0.3}})
    publish_parts(**{**vars(release), "recipe": recipe})
    assert gone in str(read_manifest(store))
    erase(store, [gone])
    assert read_manifest(store).recipe.doubted == {other: 0.3}
    assert all(gone.encode() not in data for data in everything(store).values())
    assert verify(store).ok


def test_a_record_of_an_old_version_alone_is_erased_too(
    any_store: Store, releases: ModuleType
) -> None:
    release = releases.stage_release(any_store, table=releases.source_table(70))
    publish_parts(**vars(release))
    fewer = releases.stage_dataset(any_store, releases.source_table(60), key="fewer")
    info = load_info(fewer, any_store).model_copy(update={"ledger": ""})
    any_store.put(fewer.path, info.to_json())
    publish_parts(**{**vars(release), "dataset": fewer})
    old = set(column(any_store, "aug_id", 1, origins=["real"]))
    gone = min(old - set(column(any_store, "aug_id", 2, origins=["real"])))
    report = erase(any_store, [gone])
    assert (report.version, report.n_erased, report.n_shards_rewritten) == (3, {}, 0)
    assert list_versions(any_store) == (3,)
    assert set(any_store.list("data")) == {s.path for s in read_manifest(any_store).shards}


# --- the ledger -------------------------------------------------------------------------------


@pytest.fixture
def ingested(
    tmp_path: Path, make_table: Callable[..., pa.Table], publish_as_is: Callable[..., None]
) -> Callable[..., Store]:
    """Publish a source that was really ingested."""

    def make(table: pa.Table | None = None, **source: Any) -> Store:
        pq.write_table(make_table() if table is None else table, tmp_path / "in.parquet")
        store = open_store(str(tmp_path / "out"))
        asked = Source(uri=str(tmp_path / "in.parquet"), label="state", **source)
        publish_as_is(store, ingest(asked, store=store, seed=0))
        return store

    return make


def ledger(store: Store) -> Any:
    published = read_manifest(store).ledger
    assert published is not None
    return read_ledger(store, published.path)


def test_its_entry_leaves_the_ledger_and_no_other_moves(ingested: Callable[..., Store]) -> None:
    store = ingested()
    before = ledger(store)
    report = erase(store, column(store, "aug_id")[:3])
    after = ledger(store)
    assert report.n_ledger_entries == 3
    assert len(after.keys) == len(before.keys) - 3
    assert (after.salt, after.unit) == (before.salt, before.unit)
    was = dict(zip(before.keys, before.parts, strict=True))
    assert all(was[key] == part for key, part in zip(after.keys, after.parts, strict=True))
    assert verify(store).ok


def test_of_equal_records_as_many_entries_go_as_are_erased(
    ingested: Callable[..., Store], make_table: Callable[..., pa.Table]
) -> None:
    table = make_table()
    rows = [*range(table.num_rows), 0, 0, 0, 0]
    store = ingested(table.take(pa.array(rows)))
    serial = table["serial"][0].as_py()
    equal = [
        aug_id
        for split in ("train", "holdout")
        for aug_id, name in zip(
            column(store, "aug_id", split=split), column(store, "serial", split=split), strict=True
        )
        if name == serial
    ]
    assert len(equal) == 5
    before = ledger(store)
    assert erase(store, equal[:2]).n_ledger_entries == 2
    assert len(ledger(store).keys) == len(before.keys) - 2
    assert erase(store, where=[("serial", serial)]).n_erased == {"real": 3}
    assert len(ledger(store).keys) == len(before.keys) - 5


def test_the_entry_of_a_record_that_only_an_old_version_has_goes_too(
    ingested: Callable[..., Store], make_table: Callable[..., pa.Table]
) -> None:
    store = ingested()
    aug_id, serial = column(store, "aug_id")[0], column(store, "serial")[0]
    left = [i for i, name in enumerate(make_table()["serial"].to_pylist()) if name != serial]
    ingested(make_table().take(pa.array(left)))
    before = ledger(store)
    assert len(before.keys) == len(left) + 1  # it would keep its part if it came back
    assert erase(store, [aug_id]).n_ledger_entries == 1
    assert len(ledger(store).keys) == len(left)


def test_a_group_s_entry_goes_with_its_last_record(
    ingested: Callable[..., Store], make_table: Callable[..., pa.Table]
) -> None:
    table = make_table()
    groups = pa.array([f"p{i // 3}" for i in range(table.num_rows)])
    store = ingested(table.append_column("patient", groups), group_column="patient")
    first = column(store, "patient")[0]
    ids = [
        i
        for i, group in zip(column(store, "aug_id"), column(store, "patient"), strict=True)
        if group == first
    ]
    assert erase(store, ids[:1]).n_ledger_entries == 0
    assert first in ledger(store).keys
    assert erase(store, where=[("patient", first)]).n_ledger_entries == 1
    assert first not in ledger(store).keys


def test_the_next_run_of_a_source_that_lost_it_goes_on(
    ingested: Callable[..., Store],
    make_table: Callable[..., pa.Table],
    publish_as_is: Callable[..., None],
    tmp_path: Path,
) -> None:
    store = ingested()
    serial = column(store, "serial")[0]
    erase(store, where=[("serial", serial)])
    left = [i for i, name in enumerate(make_table()["serial"].to_pylist()) if name != serial]
    pq.write_table(make_table().take(pa.array(left)), tmp_path / "in.parquet")
    before = ledger(store)
    ref = ingest(Source(uri=str(tmp_path / "in.parquet"), label="state"), store=store, seed=0)
    publish_as_is(store, ref)
    assert ledger(store).digest == before.digest
    assert serial not in column(store, "serial")
    assert np.isclose(open_dataset(store.uri).sample_weight().mean(), 1.0)


# --- what is refused --------------------------------------------------------------------------


def test_unknown_ids_are_listed_and_nothing_is_changed(two: Store) -> None:
    before = everything(two)
    synthetic = column(two, "aug_id", origins=["synthetic"])[0]
    with pytest.raises(ParameterError, match=r"2 of 3 ids .* Nothing was changed") as caught:
        erase(two, [parent(two), "0" * 32, synthetic])
    assert f"{synthetic} (synthetic)" in str(caught.value)
    assert "0" * 32 in str(caught.value)
    for where, words in (
        (("site", "west"), "no source record of .* has site=west"),
        (("n", "many"), "column 'n' is int64, which 'many' cannot be compared with"),
    ):
        with pytest.raises(ParameterError, match=words):
            erase(two, where=[where])
    with pytest.raises(ParameterError, match="name the records"):
        erase(two)
    assert everything(two) == before


def test_the_last_record_is_not_erased(any_store: Store, releases: ModuleType) -> None:
    release = releases.stage_release(any_store)
    publish_parts(**{**vars(release), "publish": Publish(origins=["real"])})
    before = everything(any_store)
    ids = [*column(any_store, "aug_id"), *column(any_store, "aug_id", split="holdout")]
    with pytest.raises(EmptyClassError, match="no record of .* would be left"):
        erase(any_store, ids)
    assert everything(any_store) == before


def test_a_damaged_shard_stops_it_before_anything_goes(two: Store) -> None:
    shard = read_manifest(two).shards[-1]
    gone = parent(two)
    data = two.read(shard.path)
    two.put(shard.path, data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(IntegrityError):
        erase(two, [gone])
    assert list_versions(two) == (1, 2)
    two.put(shard.path, data)
    assert erase(two, [gone]).version == 3


def test_it_waits_for_a_run_that_publishes(two: Store) -> None:
    with lease(two, "writing", "publish-x"), pytest.raises(TransientError, match="publishes to"):
        erase(two, [parent(two)])
    assert list_versions(two) == (1, 2)


# --- kills ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_kill_at_any_write_leaves_the_old_version_or_the_new_one(
    two_versions: Path, kill_at_every_write: Callable[..., int]
) -> None:
    gone = parent(open_store(str(two_versions)))

    def job(store: Store) -> None:
        try:
            erase(store, [gone])
        except ParameterError:  # the killed run had done all of it
            assert store.list("_staging/erase") == []

    def after(store: Store) -> None:
        assert list_versions(store) == (3,)
        assert verify(store).ok
        newest = read_manifest(store)
        assert set(store.list("data")) == {s.path for s in newest.shards}
        assert {p for p in store.list("_staging") if "/.probe" not in p} <= set(
            store.list("_staging/lease")
        )
        assert gone not in column(store, "aug_id")
        assert store.list("_reports") == []

    assert kill_at_every_write(two_versions, job, after) > 20


def test_another_erasure_first_ends_the_one_that_was_killed(
    two: Store, dying: Callable[[Store, int], Store], killed: type[BaseException]
) -> None:
    first, second = parent(two), column(two, "aug_id", split="holdout")[0]
    with pytest.raises(killed):
        erase(dying(two, 2), [first])  # the lease and the intent
    (path,) = two.list("_staging/erase")
    assert json.loads(two.read(path))["ids"] == [first]
    for left in two.list("_staging/lease"):
        two.delete(left)  # as after an hour
    report = erase(two, [second])
    assert report.version == 4
    ids = {*column(two, "aug_id"), *column(two, "aug_id", split="holdout")}
    assert not {first, second} & ids
    assert list_versions(two) == (4,)
    assert verify(two).ok


def test_what_a_run_published_between_a_kill_and_the_rerun_is_erased_too(
    any_store: Store,
    publish_two: Callable[[Store], Any],
    dying: Callable[[Store, int], Store],
    killed: type[BaseException],
) -> None:
    release = publish_two(any_store)
    gone = parent(any_store)
    for n in range(1, 99):  # until its version is visible
        with pytest.raises(killed):
            erase(dying(any_store, n), [gone])
        if list_versions(any_store)[-1] == 3:
            break
    for left in any_store.list("_staging/lease"):
        any_store.delete(left)
    recipe = release.recipe.model_copy(update={"synthetic": {}, "sentence": "None."})
    publish_parts(**{**vars(release), "recipe": recipe})
    assert gone in column(any_store, "aug_id")
    assert erase(any_store, [gone]).version == 5
    assert gone not in column(any_store, "aug_id")
    assert list_versions(any_store) == (5,)
    assert verify(any_store).ok
