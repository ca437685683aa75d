from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
from support.steps import publish_parts

from prefect_augment.errors import IntegrityError
from prefect_augment.maintenance import inspect as maintain
from prefect_augment.maintenance.verify import VerifyReport, verify
from prefect_augment.report.card import CARD
from prefect_augment.schema import Manifest
from prefect_augment.shards.base import read_shard, write_shards
from prefect_augment.storage import Store, manifest_path, open_store, read_manifest

TAIL = "c/<b>|'"


@pytest.fixture
def store(any_store: Store) -> Store:
    return any_store


@pytest.fixture
def release(store: Store, releases: ModuleType) -> Any:
    """A release with two versions; the second has fewer synthetic records."""
    release = releases.stage_release(store)
    publish_parts(**vars(release))
    recipe = release.recipe.model_copy(update={"synthetic": {TAIL: 1}, "sentence": "Less."})
    publish_parts(
        **{**vars(release), "recipe": recipe, "requested": {"source": {"uri": "in2"}, "seed": 1}}
    )
    return release


def kinds(report: VerifyReport) -> list[str]:
    return [problem.kind for problem in report.problems]


def rewrite(store: Store, change: Callable[[Manifest], dict[str, Any]]) -> None:
    """Put the newest manifest again, changed and sealed: a manifest that lies consistently."""
    manifest = read_manifest(store)
    store.put(
        manifest_path(manifest.version),
        manifest.model_copy(update=change(manifest)).sealed().to_json(),
    )


def replace_shard(store: Store, origin: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Publish a changed shard under a manifest that lists its true digest."""
    manifest = read_manifest(store)
    at = next(i for i, s in enumerate(manifest.shards) if s.origin == origin)
    old = manifest.shards[at]
    (new,) = write_shards(
        store, change(read_shard(store, old.path)), prefix="data", stem="changed", split=old.split,
        origin=old.origin, label="label", max_records=1000, max_bytes=1 << 30,
    )  # fmt: skip
    new = new.model_copy(update={"n_records": old.n_records, "class_counts": old.class_counts})
    shards = (*manifest.shards[:at], new, *manifest.shards[at + 1 :])
    rewrite(store, lambda manifest: {"shards": shards})


# --- looking ----------------------------------------------------------------------------------


def test_versions_are_listed_with_their_counts(store: Store, release: Any) -> None:
    first, second = maintain.versions(store)
    assert (first.version, second.version, second.parent) == (1, 2, 1)
    assert first.n_records == {"train": 55, "holdout": 12}
    assert second.n_origin == {"real": 60, "classic": 3, "synthetic": 1}
    assert second.n_bytes == sum(s.n_bytes for s in read_manifest(store, 2).shards)
    assert second.decision is None
    assert second.strategy == "model"


def test_no_dataset_has_no_versions(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert maintain.versions(store) == ()
    with pytest.raises(IntegrityError, match="no published dataset"):
        maintain.inspect(store)


def test_inspect_shows_a_version(store: Store, release: Any) -> None:
    newest, first = maintain.inspect(store), maintain.inspect(store, 1)
    assert (newest.version, first.version) == (2, 1)
    assert newest.recipe.sentence == "Less."
    assert first.class_counts["train"][TAIL]["synthetic"] == 4
    assert newest.n_quarantined == 1
    assert newest.report == "_reports/v00000002/report.html"


def test_diff_says_what_changed(store: Store, release: Any) -> None:
    changed = maintain.diff(store, 1, 2)
    assert changed.count_changes == {"train": {TAIL: {"synthetic": -3}}}
    assert (changed.n_real_added, changed.n_real_removed, changed.n_real_moved) == (0, 0, 0)
    assert changed.params == {
        "seed": (None, 1), "source.label": ("label", None), "source.uri": ("in", "in2")
    }  # fmt: skip
    assert changed.recipe == (release.recipe.sentence, "Less.")
    assert changed.decision is None
    nothing = maintain.diff(store, 2, 2)
    assert (nothing.count_changes, nothing.params, nothing.recipe) == ({}, {}, None)
    assert nothing.n_shards_shared == len(read_manifest(store, 2).shards)


def test_diff_counts_real_records_that_came_and_went(
    store: Store, release: Any, releases: ModuleType
) -> None:
    grown = releases.stage_dataset(store, releases.source_table(70), key="grown")
    publish_parts(**{**vars(release), "dataset": grown})
    assert maintain.diff(store, 2, 3).n_real_added == 10
    assert maintain.diff(store, 3, 2).n_real_removed == 10


# --- verifying --------------------------------------------------------------------------------


def test_a_sound_version_passes(store: Store, release: Any) -> None:
    for version in (None, 1, 2):
        report = verify(store, version)
        assert report.ok
        assert report.problems == ()
        assert report.n_objects == 11
    assert report.n_records == 64


def test_every_damaged_object_is_named_in_one_go(store: Store, release: Any) -> None:
    manifest = read_manifest(store)
    real, classic, *_ = manifest.shards
    data = store.read(real.path)
    store.put(real.path, data[:-200] + bytes([data[-200] ^ 1]) + data[-199:])
    store.delete(classic.path)
    store.put(manifest.report, b"<html>more")
    assert manifest.ledger is not None
    store.delete(manifest.ledger.path)
    report = verify(store)
    found = {problem.path: (problem.kind, problem.message) for problem in report.problems}
    assert not report.ok
    assert found[real.path][0] == "changed"
    assert "the same size, other bytes" in found[real.path][1]
    assert found[classic.path][0] == "missing"
    assert found[manifest.report][0] == "changed"
    assert "10 bytes instead of 6" in found[manifest.report][1]
    assert found[manifest.ledger.path][0] == "missing"
    assert len(found) == 4  # parents that were in a lost shard are no further problem


def test_a_truncated_manifest_is_an_error_that_names_it(store: Store, release: Any) -> None:
    store.put(manifest_path(2), store.read(manifest_path(2))[:100])
    with pytest.raises(
        IntegrityError, match=r"v00000002\.json is not whole JSON.*older versions stay readable"
    ):
        verify(store)
    older = verify(store, 1)
    assert [(p.path, p.kind) for p in older.problems] == [(CARD, "unreadable")]
    with pytest.raises(IntegrityError, match=r"v00000002\.json"):
        maintain.versions(store)


def test_counts_that_a_shard_does_not_hold_are_found(store: Store, release: Any) -> None:
    replace_shard(store, "real", lambda table: table.slice(1))
    found = verify(store)
    assert "counts" in kinds(found)
    assert "holds 17 records" in next(p.message for p in found.problems if p.kind == "counts")


def test_sums_of_the_manifest_are_checked(store: Store, release: Any) -> None:
    rewrite(store, lambda m: {"class_counts": {**m.class_counts, "holdout": {"a": {"real": 99}}}})
    assert "manifest" in kinds(verify(store))


def test_ids_that_occur_twice_are_found(store: Store, release: Any) -> None:
    replace_shard(store, "real", lambda t: pa.concat_tables([t.slice(1), t.slice(1, 1)]))
    assert any("more than once" in p.message for p in verify(store).problems)


def test_an_id_is_found_twice_beside_ids_that_are_none_of_ours(store: Store, release: Any) -> None:
    """Ids of 32 digits are hashed by another rule than others."""
    manifest = read_manifest(store)
    real = next(s for s in manifest.shards if s.origin == "real")
    known = read_shard(store, real.path)["aug_id"][0].as_py()

    def odd(table: pa.Table) -> pa.Table:
        ids = ["odd", known, *table["aug_id"].to_pylist()[2:]]
        return table.set_column(table.column_names.index("aug_id"), "aug_id", pa.array(ids))

    replace_shard(store, "classic", odd)
    assert any(
        f"1 ids occur more than once, e.g. {known}" in p.message for p in verify(store).problems
    )


def column(table: pa.Table, name: str, value: Any) -> pa.Table:
    at = table.column_names.index(name)
    return table.set_column(
        at, table.schema.field(at), pa.array([value] * table.num_rows, table.schema.field(at).type)
    )


@pytest.mark.parametrize(
    ("origin", "name", "value", "words"),
    [
        ("synthetic", "aug_origin", "real", "origin real; the manifest says synthetic"),
        ("synthetic", "aug_seed", None, "have no aug_seed"),
        ("classic", "aug_parent", None, "have no aug_parent"),
        ("classic", "aug_parent", "0" * 32, "parent that is not in the version"),
        ("real", "aug_weight", float("nan"), "not positive numbers"),
        ("real", "aug_weight", -1.0, "not positive numbers or 0"),
        ("synthetic", "aug_weight", 0.0, "not positive numbers."),
    ],
)
def test_lineage_that_cannot_be_is_found(
    store: Store, release: Any, origin: str, name: str, value: Any, words: str
) -> None:
    replace_shard(store, origin, lambda table: column(table, name, value))
    assert any(words in problem.message for problem in verify(store).problems)


def test_lineage_columns_elsewhere_than_last_are_found(store: Store, release: Any) -> None:
    replace_shard(store, "real", lambda table: table.select(table.column_names[::-1]))
    assert "lineage" in kinds(verify(store))


def test_a_card_that_lags_is_mended_on_demand(store: Store, release: Any) -> None:
    card = store.read(CARD)
    store.put(CARD, card.replace(b"version 2", b"version 1"))
    assert kinds(verify(store)) == ["card"]
    mended = verify(store, repair=True)
    assert mended.ok
    assert mended.repaired == (CARD,)
    assert store.read(CARD) == card
    assert verify(store, repair=True).repaired == ()
