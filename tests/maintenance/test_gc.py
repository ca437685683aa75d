import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.staging import verdict_of
from support.steps import publish_parts, release_of

from prefect_augment.errors import ParameterError, TransientError
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.maintenance.gc import GcReport, collect_garbage
from prefect_augment.maintenance.layout import kind_of, named_in, stage_of
from prefect_augment.maintenance.verify import verify
from prefect_augment.publish.proposal import propose
from prefect_augment.schema import ApprovalDecision, Strategy
from prefect_augment.storage import (
    Store,
    lease,
    list_versions,
    manifest_path,
    modified_at,
    open_store,
    read_manifest,
    store_time,
)

DAY = 86_400.0


@pytest.fixture
def store(tmp_path: Path, publish_two: Callable[[Store], Any]) -> Store:
    """Two versions on a local disk, whose files can be made older."""
    opened = open_store(str(tmp_path / "out"))
    publish_two(opened)
    return opened


def age(store: Store, days: float, prefix: str = "") -> None:
    """Make everything below a prefix older by so many days."""
    for path in store.infos():
        if not path.startswith(prefix):
            continue
        full = Path(store.full(path))
        os.utime(full, (full.stat().st_atime, full.stat().st_mtime - days * DAY))


def removed(report: GcReport) -> dict[str, int]:
    counts: dict[str, int] = {}
    for line in report.removed:
        counts[line.kind] = counts.get(line.kind, 0) + line.n_objects
    return counts


def test_what_a_run_of_this_week_wrote_stays(store: Store) -> None:
    before = store.list()
    report = collect_garbage(store)
    assert store.list() == before
    assert (report.n_removed, report.n_bytes_removed, report.versions_removed) == (0, 0, ())
    reasons = {(line.kind, line.reason) for line in report.kept}
    assert ("shard", "named by a version") in reasons
    assert ("stage", "written to lately") in reasons


def test_old_stages_go_but_for_the_models_of_versions(store: Store) -> None:
    for name in ("model.safetensors", "model.json", "outcome.json"):
        store.put(f"_staging/train/k1/{name}", b"{}")
    age(store, 8)
    dry = collect_garbage(store, dry_run=True)
    assert store.list("_staging/ingest") != []
    report = collect_garbage(store)
    assert report == dry.model_copy(update={"dry_run": False})
    assert {stage_of(path) for path in store.list("_staging")} == {"_staging/train/k1"}
    assert removed(report).keys() == {"stage"}
    assert report.n_removed == removed(report)["stage"] > 10
    assert report.n_bytes_removed > 1000
    assert verify(store, 1).ok
    assert verify(store, 2).ok


def test_a_stage_that_is_written_to_keeps_what_its_receipts_name(store: Store) -> None:
    age(store, 8)
    store.put("_staging/score/s1/a.json", b'{"path": "_staging/augment/k1/outcome.json"}')
    collect_garbage(store)
    assert {stage_of(path) for path in store.list("_staging")} == {
        "_staging/score/s1",
        "_staging/augment/k1",
    }


def test_orphans_go_when_they_are_old(store: Store) -> None:
    orphans = (
        "data/train-real-00000-0123456789ab.parquet",
        "_splits/v00000009.parquet",
        "_reports/v00000009-0123456789ab/report.html",
        "_quarantine/quarantine-00000-0123456789ab.parquet",
        "data/.tmp-0123456789abcdef0123456789abcdef-train-real",
        "_staging/.probe-0123456789abcdef0123456789abcdef",
    )
    for path in orphans:
        store.put(path, b"left by a killed run")
    collect_garbage(store)
    assert all(store.exists(path) for path in orphans)
    age(store, 8)
    report = collect_garbage(store, older_than_days=10)
    assert all(store.exists(path) for path in orphans)
    report = collect_garbage(store)
    assert not any(store.exists(path) for path in orphans)
    assert removed(report).items() >= {"shard": 1, "quarantine": 1, "temporary": 2}.items()
    assert verify(store).ok


def test_old_versions_go_only_where_that_is_asked_for(store: Store) -> None:
    first, second = read_manifest(store, 1), read_manifest(store, 2)
    age(store, 30)
    assert collect_garbage(store).versions_kept == (1, 2)
    assert collect_garbage(store, keep_last=2).versions_removed == ()
    assert verify(store, 1).ok
    report = collect_garbage(store, keep_last=1)
    assert (report.versions_removed, list_versions(store)) == ((1,), (2,))
    assert set(store.list("data")) == {s.path for s in second.shards}
    assert not store.exists(first.report)
    assert removed(report)["manifest"] == 1
    assert verify(store).ok
    assert open_dataset(store.uri).to_table().num_rows == 52


def test_what_only_a_removed_version_named_goes_at_once(store: Store) -> None:
    """It is not as an orphan, which may be of a run that has not committed yet."""
    report = collect_garbage(store, keep_last=1)
    assert set(store.list("data")) == {s.path for s in read_manifest(store).shards}
    assert ("shard", "of a version that goes") in {(r.kind, r.reason) for r in report.removed}
    assert store.list("_staging/ingest") != []


def test_the_next_run_goes_on_from_a_version_whose_parent_is_gone(
    store: Store, publish_two: Callable[[Store], Any], releases: ModuleType
) -> None:
    collect_garbage(store, keep_last=1)
    release = releases.stage_release(store)
    grown = releases.stage_dataset(store, releases.source_table(70), key="grown")
    assert publish_parts(**{**vars(release), "dataset": grown}).version == 3
    assert verify(store).ok


def test_what_is_not_of_the_layout_is_listed_and_left(store: Store) -> None:
    theirs = ("notes.txt", "data/notes.txt", "_reports/mine.html", "images/a.png", "_staging/x")
    for path in theirs:
        store.put(path, b"mine")
    age(store, 99)
    report = collect_garbage(store, keep_last=1, older_than_days=0)
    assert set(report.unknown) == set(theirs)
    assert all(store.read(path) == b"mine" for path in theirs)


@pytest.mark.parametrize("decision", ["", "approve", "reject"])
def test_what_an_open_proposal_names_stays(
    store: Store, releases: ModuleType, decision: str
) -> None:
    release = releases.stage_release(store, key="waiting")
    verdict = verdict_of("model", decision="accept", baseline="as is")
    assert release.recipe.strategy == Strategy(name="model", family="model")
    version = release_of(
        release.dataset,
        release.plan,
        release.recipe,
        candidates=release.candidates,
        verdict=verdict,
        classic=release.classic,
        models=release.models,
    )
    proposal = propose(version, release.report, store)
    age(store, 30)
    if decision:
        made = ApprovalDecision.model_validate({"decision": decision, "decided_at": "2026-01-01"})
        store.put(f"_proposals/{proposal.id}.decision.json", made.to_json())
    collect_garbage(store)
    waiting = {stage_of(path) for path in store.list("_staging")}
    if decision == "reject":
        assert waiting == set()
        assert store.exists(f"_proposals/{proposal.id}.decision.json")  # the rejection stands
    else:
        assert waiting == {
            f"_staging/{n}/waiting" for n in ("ingest", "filter", "augment", "report")
        }
        assert publish_parts(**{**vars(release), "verdict": verdict}).created
        assert verify(store).ok
        age(store, 30)
        collect_garbage(store)
        assert store.list("_staging") == []


class Behind(Store):
    """A store whose clock is months behind ours."""

    def put(self, path: str, data: bytes) -> None:
        super().put(path, data)
        then = time.time() - 90 * DAY
        os.utime(self.full(path), (then, then))


def test_ages_are_told_by_the_store_s_clock_alone(store: Store) -> None:
    age(store, 90)
    behind = Behind(uri=store.uri, fs=store.fs, root=store.root)
    behind.put("data/train-real-00000-0123456789ab.parquet", b"of a run at work")
    now = store_time(behind)
    assert now is not None
    assert time.time() - now > 89 * DAY
    before = store.list()
    collect_garbage(behind)
    assert store.list() == before


class Timeless(Store):
    """A store that does not say when an object was written."""

    def infos(self) -> dict[str, dict[str, Any]]:
        return {path: {"size": info["size"]} for path, info in super().infos().items()}


def test_where_ages_are_unknown_only_nought_days_remove(store: Store) -> None:
    timeless = Timeless(uri=store.uri, fs=store.fs, root=store.root)
    age(store, 90)
    report = collect_garbage(timeless)
    assert report.n_removed == 0
    assert "of unknown age" in {line.reason for line in report.kept}
    assert collect_garbage(timeless, older_than_days=0).n_removed > 10
    assert verify(store).ok


def test_it_waits_for_a_run_that_publishes_and_is_waited_for(
    store: Store, publish_two: Callable[[Store], Any], releases: ModuleType
) -> None:
    age(store, 30)
    before = store.list()
    with lease(store, "writing", "publish-x"):
        with pytest.raises(TransientError, match="publishes to"):
            collect_garbage(store, keep_last=1)
        assert collect_garbage(store, keep_last=1, dry_run=True).versions_removed == (1,)
    assert store.list() == before
    release = releases.stage_release(store, table=releases.source_table(70), key="k2")
    with lease(store, "removing", "gc"), pytest.raises(TransientError, match="removes objects"):
        publish_parts(**vars(release))
    assert list_versions(store) == (1, 2)
    assert publish_parts(**vars(release)).created


def test_the_lease_of_a_killed_run_is_in_nobody_s_way_for_long(store: Store) -> None:
    store.put("_staging/lease/writing-publish-x.json", b"{}")
    age(store, 2, "_staging/lease")
    age(store, 30, "_staging/ingest")
    collect_garbage(store)
    assert store.list("_staging/ingest") == []
    assert store.exists("_staging/lease/writing-publish-x.json")
    age(store, 8, "_staging/lease")
    collect_garbage(store)
    assert store.list("_staging/lease") == []


def test_it_works_on_an_object_store_too(two: Store) -> None:
    report = collect_garbage(two, keep_last=1, older_than_days=0)
    assert report.versions_removed == (1,)
    assert two.list("_staging") == []
    assert set(two.list("data")) == {s.path for s in read_manifest(two).shards}
    assert verify(two).ok
    assert collect_garbage(two, older_than_days=0).n_removed == 0


def test_numbers_that_make_no_sense_are_refused(store: Store) -> None:
    with pytest.raises(ParameterError, match="at least one version"):
        collect_garbage(store, keep_last=0)
    with pytest.raises(ParameterError, match="number of days"):
        collect_garbage(store, older_than_days=float("nan"))


def test_a_folder_without_a_dataset_has_no_garbage(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    report = collect_garbage(open_store(str(tmp_path)))
    assert (report.n_removed, report.unknown) == (0, ("mine.txt",))


@pytest.mark.parametrize(
    "info",
    [
        {"mtime": 1767225600.0},
        {"LastModified": datetime(2026, 1, 1, tzinfo=UTC)},
        {"last_modified": datetime(2026, 1, 1)},  # Azure's older releases
        {"updated": "2026-01-01T00:00:00.000Z"},
    ],
)
def test_every_file_system_s_time_of_writing_is_read(info: dict[str, Any]) -> None:
    assert modified_at(info) == 1767225600.0
    assert modified_at({"size": 1}) is None


def test_every_object_of_a_dataset_is_of_the_layout(two: Store) -> None:
    assert [path for path in two.list() if kind_of(path) is None] == []
    assert kind_of("_manifests/v00000001.json") == "manifest"
    assert kind_of("data/train-real-00000-0123456789ab.tar") == "shard"
    assert kind_of("../data/train-real-00000-0123456789ab.parquet") is None


@pytest.mark.slow
@pytest.mark.parametrize("is_old", [False, True])
def test_a_kill_at_any_removal_leaves_whole_versions(
    store: Store, kill_at_every_write: Callable[..., int], is_old: bool
) -> None:
    if is_old:
        age(store, 30)
    newest = read_manifest(store)

    def after(here: Store) -> None:
        assert list_versions(here) == (2,)
        assert here.list("_staging/lease") == []
        # What the killed run had orphaned waits until it is old.
        collect_garbage(here, older_than_days=0)
        assert set(here.list("data")) == {s.path for s in newest.shards}
        assert here.list("_staging") == []
        assert not here.exists(manifest_path(1))
        assert verify(here).ok

    job = partial(collect_garbage, keep_last=1)
    assert kill_at_every_write(Path(store.root), job, after) > 5


@pytest.mark.slow
def test_no_receipt_outlives_what_it_describes(
    store: Store, kill_at_every_write: Callable[..., int]
) -> None:
    """A run after the kill finds an outcome and all of it, or makes the stage anew."""
    age(store, 30)
    seen = set()

    def between(here: Store) -> None:
        there = set(here.list("_staging"))
        outcomes = {path for path in there if path.endswith("/outcome.json")}
        seen.add(len(outcomes))
        for path in outcomes:
            named = {name for name in named_in(here.read(path)) if name.startswith("_staging/")}
            assert named <= there

    n_kills = kill_at_every_write(
        Path(store.root), collect_garbage, lambda here: between(here), between
    )
    assert n_kills > 10
    assert seen == {0, 1, 2}
