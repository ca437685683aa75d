from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.steps import publish_parts

from prefect_augment.errors import IntegrityError, ParameterError, TransientError
from prefect_augment.ingest.ingest import ingest
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.maintenance.rollback import rollback
from prefect_augment.maintenance.verify import verify
from prefect_augment.params import NoModel, Publish, RunParams, Source
from prefect_augment.plan.plan import plan
from prefect_augment.plan.strategies import plain_recipe
from prefect_augment.report.card import CARD
from prefect_augment.schema import Commit
from prefect_augment.storage import Store, lease, list_versions, open_store, read_manifest


def test_a_rollback_is_a_new_version_of_the_same_shards(two: Store) -> None:
    before = set(two.list("data"))
    done = rollback(two, 1)
    first, newest = read_manifest(two, 1), read_manifest(two)
    assert (done.version, done.created, newest.parent) == (3, True, 2)
    assert newest.shards == first.shards
    assert newest.recipe == first.recipe
    assert newest.class_counts == first.class_counts
    assert newest.report == first.report
    assert newest.params == first.params
    assert newest.content_digest == first.content_digest
    assert "Rolled back to version 1" in newest.notes[0]
    assert set(two.list("data")) == before
    assert b"version 3" in two.read(CARD)
    assert verify(two).ok
    assert open_dataset(two.uri).to_table().equals(open_dataset(two.uri, 1).to_table())


def test_rolling_back_to_what_is_there_already_changes_nothing(two: Store) -> None:
    rollback(two, 1)
    before = {path: two.read(path) for path in two.list()}
    for to in (1, 3):
        done = rollback(two, to)
        assert (done.version, done.created) == (3, False)
    assert {path: two.read(path) for path in two.list()} == before


def test_a_rollback_of_a_rollback_says_so_once(two: Store) -> None:
    rollback(two, 1)
    assert rollback(two, 2).version == 4
    assert rollback(two, 3).version == 5
    notes = [note for note in read_manifest(two).notes if note.startswith("Rolled back")]
    assert len(notes) == 1
    assert "version 3" in notes[0]


def test_records_that_came_later_keep_their_part_of_the_split(
    any_store: Store, releases: ModuleType
) -> None:
    release = releases.stage_release(any_store)
    publish_parts(**vars(release))
    grown = releases.stage_dataset(any_store, releases.source_table(70), key="grown")
    publish_parts(**{**vars(release), "dataset": grown})
    rollback(any_store, 1)
    newest = read_manifest(any_store)
    assert newest.ledger == read_manifest(any_store, 2).ledger
    assert newest.ledger != read_manifest(any_store, 1).ledger
    assert newest.class_counts == read_manifest(any_store, 1).class_counts


def test_a_run_of_inputs_published_before_does_not_undo_a_rollback(
    any_store: Store, publish_two: Callable[[Store], Any]
) -> None:
    release = publish_two(any_store)
    rollback(any_store, 1)
    done = publish_parts(**vars(release))
    assert (done.version, done.created) == (3, False)
    assert list_versions(any_store) == (1, 2, 3)


def test_a_version_that_there_is_not_is_named_with_those_there_are(two: Store) -> None:
    with pytest.raises(ParameterError, match=r"no version 7 to roll back to; there is: 1, 2"):
        rollback(two, 7)


def test_a_version_that_is_not_whole_does_not_come_back(two: Store) -> None:
    only = {s.path for s in read_manifest(two, 1).shards} - {
        s.path for s in read_manifest(two, 2).shards
    }
    two.delete(only.pop())
    with pytest.raises(IntegrityError, match="cannot come back: 1 of its objects"):
        rollback(two, 1)
    assert list_versions(two) == (1, 2)
    assert two.list("_staging/lease") == []


def test_a_rollback_waits_for_a_run_that_removes(two: Store) -> None:
    with lease(two, "removing", "gc"), pytest.raises(TransientError, match="removes objects from"):
        rollback(two, 1)
    assert list_versions(two) == (1, 2)
    assert rollback(two, 1).created


class Racing(Store):
    """A store on which another run commits just before the first manifest that is put here."""

    def __init__(self, store: Store, other: Callable[[], Any]) -> None:
        super().__init__(uri=store.uri, fs=store.fs, root=store.root)
        self.other: Callable[[], Any] | None = other

    def put_if_absent(self, path: str, data: bytes, *, look_first: bool = True) -> bool:
        if path.startswith("_manifests/") and self.other is not None:
            other, self.other = self.other, None
            other()
        return super().put_if_absent(path, data, look_first=look_first)


def test_a_version_that_another_run_commits_meanwhile_becomes_the_parent(
    any_store: Store, releases: ModuleType, publish_two: Callable[[Store], Any]
) -> None:
    release = publish_two(any_store)
    grown = releases.stage_dataset(any_store, releases.source_table(70), key="grown")
    other = partial(publish_parts, **{**vars(release), "dataset": grown})
    done = rollback(Racing(any_store, other), 1)
    newest = read_manifest(any_store)
    assert (done.version, newest.parent) == (4, 3)
    assert newest.shards == read_manifest(any_store, 1).shards
    assert newest.ledger == read_manifest(any_store, 3).ledger


def test_two_rollbacks_at_once_make_one_version(two: Store) -> None:
    done = rollback(Racing(two, lambda: rollback(two, 1)), 1)
    assert (done.version, done.created) == (3, False)
    assert list_versions(two) == (1, 2, 3)


@pytest.mark.slow
def test_a_kill_at_any_write_leaves_the_old_version_or_the_new_one(
    two_versions: Path, kill_at_every_write: Callable[..., int]
) -> None:
    def after(store: Store) -> None:
        assert list_versions(store) == (1, 2, 3)
        assert verify(store).ok
        assert store.list("_staging/lease") == []

    n_kills = kill_at_every_write(two_versions, lambda store: rollback(store, 1), after)
    assert n_kills == 5  # lease, manifest, card, croissant.json, lease
    assert list_versions(open_store(str(two_versions))) == (1, 2)


def test_the_next_night_does_not_undo_a_rollback_and_new_files_go_on_from_what_was_read(
    tmp_path: Path,
) -> None:
    source, store = tmp_path / "in", open_store(str(tmp_path / "out"))
    source.mkdir()

    def night() -> Commit:
        dataset = ingest(Source(uri=str(source), label="label"), store=store, seed=0)
        found = plan(dataset, RunParams(model=NoModel()), store, compares=False)
        return publish_parts(
            dataset=dataset,
            plan=found,
            recipe=plain_recipe(found, {}),
            verdict=None,
            candidates=None,
            classic=None,
            models=(),
            report=None,
            publish=Publish(),
            requested={},
            store=store,
        )

    for day in (1, 2):
        pq.write_table(records(60, seed=day), source / f"{day}.parquet")
        assert night().version == day
    rollback(store, 1)
    assert (night().version, night().created) == (2, False)
    assert list_versions(store) == (1, 2, 3)

    parts = {split: ids_of(store, 2, split) for split in ("train", "holdout")}
    pq.write_table(records(60, seed=3), source / "3.parquet")
    assert night().version == 4
    for split, ids in parts.items():
        assert ids < ids_of(store, 4, split)


def records(n: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table(
        {"x": rng.normal(size=n), "label": ["tail" if i % 5 == 0 else "head" for i in range(n)]}
    )


def ids_of(store: Store, version: int, split: str) -> set[str]:
    return set(open_dataset(store.uri, version).to_table(split)["aug_id"].to_pylist())
