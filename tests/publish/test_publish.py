import pickle
import re
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support import releases
from support.steps import publish_arguments, publish_parts

from prefect_augment.catalogue.croissant import CROISSANT
from prefect_augment.errors import (
    CommitConflictError,
    EmptyClassError,
    IntegrityError,
    ParameterError,
    SchemaError,
    StorageError,
)
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.maintenance.verify import verify
from prefect_augment.params import Publish
from prefect_augment.publish.publish import check_destination, publish_part
from prefect_augment.report.card import CARD, refresh_card
from prefect_augment.shards.base import read_shard
from prefect_augment.shards.staged import load_info
from prefect_augment.storage import Store, list_versions, open_store, read_manifest

TAIL = "c/<b>|'"


@pytest.fixture
def store(any_store: Store) -> Store:
    return any_store


@pytest.fixture
def release(store: Store) -> Any:
    return releases.stage_release(store)


def run(release: Any, **changes: Any) -> Any:
    return publish_parts(**{**vars(release), **changes})


def recipe(release: Any, **changes: Any) -> Any:
    return release.recipe.model_copy(update=changes)


def visible(store: Store) -> dict[str, bytes]:
    """Every object outside staging, without the time in the manifests and croissant.json."""
    objects = {p: store.read(p) for p in store.list() if not p.startswith("_staging/")}
    for path in [p for p in objects if p.startswith(("_manifests/", CROISSANT))]:
        objects[path] = re.sub(rb"\d{4}-\d\d-\d\dT[\d:+]+", b"", objects[path])
    return objects


# --- what goes out ----------------------------------------------------------------------------


def test_a_version_has_everything_that_its_manifest_names(store: Store, release: Any) -> None:
    done = run(release)
    assert (done.version, done.created, done.manifest) == (1, True, "_manifests/v00000001.json")
    manifest = read_manifest(store)
    assert manifest.content_digest == done.content_digest
    assert manifest.report == "_reports/v00000001/report.html"
    assert store.read(manifest.report) == b"<html>"
    assert manifest.ledger is not None
    assert manifest.ledger.path == "_splits/v00000001.parquet"
    assert manifest.quarantine[0].path.startswith("_quarantine/")
    assert manifest.models[0].digest == "f" * 64
    assert manifest.params == release.requested
    assert manifest.software["pyarrow"]
    assert verify(store).ok


def test_one_split_and_origin_stand_in_a_shard(store: Store, release: Any) -> None:
    run(release, publish=Publish(shard_records=10))
    for shard in read_manifest(store).shards:
        assert shard.path.startswith(f"data/{shard.split}-{shard.origin}-")
        assert shard.n_records <= 10
    train = [s for s in read_manifest(store).shards if s.split == "train"]
    # Staged: twice 18 records of training records and 12 of validation records; a published shard never has
    # records of two of them.
    assert [s.n_records for s in train if s.origin == "real"] == [9, 9, 9, 9, 6, 6]
    assert [s.origin for s in train] == ["real"] * 6 + ["classic", "synthetic"]


def test_weights_are_the_recipe_s_with_mean_one(store: Store, release: Any) -> None:
    run(release)
    dataset = open_dataset(store.uri)
    table = dataset.to_table()
    weights = {
        name: set(table.filter(pc.equal(table["label"], name))["aug_weight"].to_pylist())
        for name in ("a", "b", TAIL)
    }
    assert all(len(found) == 1 for found in weights.values())  # real, classic and synthetic alike
    a, b, tail = (found.pop() for found in weights.values())
    assert (b / a, tail / a) == (pytest.approx(2.0), pytest.approx(3.0))
    assert dataset.sample_weight().mean() == pytest.approx(1.0)
    assert set(dataset.sample_weight("holdout")) == {1.0}


def test_a_stratum_that_the_recipe_does_not_weigh_weighs_one(store: Store, release: Any) -> None:
    run(release, recipe=recipe(release, class_weight={}))
    assert set(open_dataset(store.uri).sample_weight()) == {1.0}


def test_strata_within_a_further_column_are_weighed_apart(store: Store, release: Any) -> None:
    sites = ("nord", "süd")
    classes = tuple(
        c.model_copy(
            update={
                "name": f"{c.name.replace('|', chr(92) + '|')} | site={site}",
                "by": {"site": site},
            }
        )
        for c in release.plan.classes
        for site in sites
    )
    plan = release.plan.model_copy(update={"classes": classes})
    weights = {c.name: 3.0 if c.by["site"] == "süd" else 1.0 for c in classes}
    run(
        release,
        plan=plan,
        recipe=recipe(release, class_weight=weights, synthetic={}, classic={}, copies={}),
    )
    table = open_dataset(store.uri).to_table()
    by_site = {
        site: set(
            table.filter(pc.equal(table["site"].cast("string"), site))["aug_weight"].to_pylist()
        )
        for site in sites
    }
    assert by_site["süd"].pop() / by_site["nord"].pop() == pytest.approx(3.0)
    assert by_site == {"nord": set(), "süd": set()}


def test_synthetic_records_are_the_first_by_rank(store: Store, release: Any) -> None:
    """A lower amount is a prefix of a higher one; they stand in the order of their ordinals."""
    ids = []
    for n in (2, 4):
        run(release, recipe=recipe(release, synthetic={TAIL: n}))
        ids.append(open_dataset(store.uri).to_table(origins=["synthetic"])["aug_id"].to_pylist())
    by_ordinal = {0: 3, 1: 2, 2: 4, 3: 1, 4: 5, 5: 0}
    assert ids[1] == [releases.hex_id("synthetic", by_ordinal[k]) for k in range(4)]
    assert ids[0] == ids[1][:2]


def test_lineage_says_where_records_come_from(store: Store, release: Any) -> None:
    run(release)
    dataset = open_dataset(store.uri)
    synthetic = dataset.to_table(origins=["synthetic"])
    assert set(synthetic["aug_model"].to_pylist()) == {"f" * 64}
    assert min(synthetic["aug_seed"].to_pylist()) >= 1 << 62
    assert synthetic["aug_parent"].null_count == 4
    classic = dataset.to_table(origins=["classic"])
    assert set(classic["aug_parent"].to_pylist()) <= set(
        dataset.to_table(origins=["real"])["aug_id"].to_pylist()
    )
    real = dataset.to_table(origins=["real"])
    for name in ("aug_parent", "aug_model", "aug_seed"):
        assert real[name].null_count == real.num_rows
    staged = [s.path for s in load_info(release.dataset, store).shards if s.split != "holdout"]
    ids = [i for path in staged for i in read_shard(store, path)["aug_id"].to_pylist()]
    assert real["aug_id"].to_pylist() == ids


def test_copies_are_written_in_turn_and_weights_are_one(store: Store, release: Any) -> None:
    run(release, publish=Publish(materialise="copies"), recipe=recipe(release, copies={TAIL: 16}))
    dataset = open_dataset(store.uri)
    copies = dataset.to_table(origins=["copy"])
    times = pc.value_counts(copies["aug_parent"]).field("counts").to_pylist()
    assert copies.num_rows == 16
    assert sorted(times) == [2, 2, 2, 2, 2, 3, 3]  # 16 over the 7 real ones
    assert set(dataset.sample_weight()) == {1.0}
    names = [c for c in copies.column_names if not c.startswith("aug_")]
    real = {r["aug_id"]: r for r in dataset.to_table(origins=["real"]).to_pylist()}
    for copy in copies.to_pylist():
        assert repr([copy[c] for c in names]) == repr([real[copy["aug_parent"]][c] for c in names])
    assert verify(store).ok


def test_without_copies_in_the_recipe_its_weights_stay(store: Store, release: Any) -> None:
    run(release, publish=Publish(materialise="copies"), recipe=recipe(release, copies={}))
    assert len(set(open_dataset(store.uri).sample_weight())) == 3


def test_only_synthetic_records_go_out_where_that_is_wanted(store: Store, release: Any) -> None:
    run(release, publish=Publish(origins=["synthetic"]))
    manifest = read_manifest(store)
    assert {s.origin for s in manifest.shards} == {"synthetic"}
    assert manifest.quarantine == ()
    assert not store.list("_quarantine")
    assert open_dataset(store.uri).sample_weight().mean() == pytest.approx(1.0)
    assert verify(store).ok


def test_what_an_earlier_version_left_in_a_share_is_named(store: Store, release: Any) -> None:
    """Published without a workspace, as before there were any."""
    run(release, publish=Publish(origins=["synthetic"]))
    report = verify(store, shareable=True)
    assert not report.ok
    assert {problem.kind for problem in report.problems} == {"folder"}
    assert {problem.path.split("/")[0] for problem in report.problems} >= {"_staging", "_splits"}


def test_made_records_whose_parents_are_not_let_out_are_sound(store: Store, release: Any) -> None:
    run(release, publish=Publish(origins=["classic", "synthetic"]))
    parents = open_dataset(store.uri).to_table(columns=["aug_parent"])
    assert parents["aug_parent"].null_count < parents.num_rows
    assert verify(store).ok


def test_inputs_of_an_older_version_say_which_one_readers_get(
    store: Store, release: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run(release)
    run(release, recipe=recipe(release, sentence="Less."))
    with caplog.at_level("WARNING", logger="prefect_augment"):
        done = run(release)
    assert (done.version, done.created) == (1, False)
    assert "The newest version" in caplog.text
    assert "--to 1" in caplog.text


def test_a_holdout_given_elsewhere_is_recorded_and_not_copied(store: Store, release: Any) -> None:
    given = releases.stage_dataset(
        store,
        releases.source_table(),
        key="given",
        holdout_uri="s3://lake/test",
        holdout_digest="d",
    )
    run(release, dataset=given)
    manifest = read_manifest(store)
    assert {s.split for s in manifest.shards} == {"train"}
    assert (manifest.holdout_uri, manifest.holdout_digest) == ("s3://lake/test", "d")


def test_fewer_records_than_the_recipe_has_are_said(store: Store, release: Any) -> None:
    run(release, recipe=recipe(release, synthetic={TAIL: 9}))
    (note,) = read_manifest(store).notes
    assert "the recipe has 9 synthetic records and 6 are there" in note


def test_neither_a_report_nor_a_model_is_needed(store: Store, release: Any) -> None:
    run(
        release,
        report=None,
        candidates=None,
        classic=None,
        models=(),
        recipe=recipe(release, synthetic={}, classic={}),
    )
    manifest = read_manifest(store)
    assert (manifest.report, manifest.report_files, manifest.models) == ("", (), ())
    assert verify(store).ok


def test_the_order_of_the_source_s_rows_does_not_change_the_bytes(
    store: Store, release: Any
) -> None:
    """Staged shards in another order stand for a source in another order."""
    run(release)
    info = load_info(release.dataset, store)
    turned = info.model_copy(update={"shards": info.shards[::-1], "key": "turned"})
    store.put("_staging/ingest/turned/outcome.json", turned.to_json())
    ref = release.dataset.model_copy(
        update={"path": "_staging/ingest/turned/outcome.json", "key": "turned"}
    )
    run(release, dataset=ref)
    assert list_versions(store) == (1, 2)
    assert read_manifest(store, 1).shards == read_manifest(store, 2).shards


def test_progress_goes_from_nought_to_one(release: Any) -> None:
    seen: list[tuple[float, str]] = []
    run(release, on_progress=lambda fraction, text: seen.append((fraction, text)))
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions)
    assert (fractions[0], seen[-1]) == (0.0, (1.0, "version 1"))


# --- the card ---------------------------------------------------------------------------------


def test_the_card_lists_this_version_and_escapes_what_users_wrote(
    store: Store, release: Any
) -> None:
    run(release)
    run(release, recipe=recipe(release, synthetic={TAIL: 1}, sentence="<script>|`x`"))
    card = store.read(CARD).decode()
    assert "version 2" in card
    listed = {line.strip("- ") for line in card.splitlines() if line.strip().startswith("- data/")}
    assert listed == {s.path for s in read_manifest(store).shards}
    assert "<script>" not in card
    assert "&lt;script&gt;\\|\\`x\\`" in card
    assert "| c/&lt;b&gt;\\|' | 7 | 3 | 1 |" in card


def test_a_readme_of_somebody_else_is_left_alone(
    store: Store, release: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store.put(CARD, b"# Mine")
    run(release)
    assert store.read(CARD) == b"# Mine"
    assert "left alone" in caplog.text
    assert not refresh_card(store)


# --- once, and only whole ---------------------------------------------------------------------


def test_the_same_inputs_publish_nothing_new(store: Store, release: Any) -> None:
    first = run(release)
    before = {p: store.read(p) for p in store.list()}
    again = run(release, requested={"compute": {"workers": 9}}, report=None)
    assert again == first.model_copy(update={"created": False})
    assert {p: store.read(p) for p in store.list()} == before


@pytest.mark.parametrize("n_done", [1, 2])
def test_what_other_tasks_have_written_is_in_the_version_and_not_written_again(
    store: Store, release: Any, n_done: int
) -> None:
    other = open_store(f"memory://{uuid4().hex}")
    twin = releases.stage_release(other)
    run(twin)
    one, _, _ = publish_arguments(**vars(release))
    counts = [publish_part(one, store, part=part, n_parts=2) for part in range(n_done)]
    early = {path: store.info(path) for path in store.list("data")}
    assert early
    assert list_versions(store) == (), "nothing is visible before the manifest"
    assert not store.list("_leases")
    run(release)
    assert read_manifest(store).shards == read_manifest(other).shards
    assert {path: store.info(path) for path in early} == early
    written = [path for path in store.list("_staging/publish") if "/stream-" in path]
    assert len(written) == sum(counts)
    assert publish_part(one, store, part=0, n_parts=2) == 0, "all is done"


def test_a_shard_of_another_task_that_is_gone_is_written_again(store: Store, release: Any) -> None:
    one, _, _ = publish_arguments(**vars(release))
    assert publish_part(one, store, part=0, n_parts=1) > 1
    store.delete(store.list("data")[0])
    run(release)
    assert verify(store).ok


def test_synthetic_records_alone_are_written_by_the_task_that_searches_them(
    store: Store, release: Any
) -> None:
    alone = vars(release) | {"publish": Publish(origins=["synthetic"])}
    one, _, _ = publish_arguments(**alone)
    assert publish_part(one, store, part=0, n_parts=1) == 0
    assert not store.list("data")


def test_a_rerun_mends_the_card(store: Store, release: Any) -> None:
    run(release)
    card = store.read(CARD)
    store.delete(CARD)
    run(release)
    assert store.read(CARD) == card


class Dying(Store):
    """A store whose user presses Ctrl-C after some writes."""

    def __init__(self, store: Store, n_writes: int) -> None:
        super().__init__(uri=store.uri, fs=store.fs, root=store.root)
        self.n_left = n_writes

    def put(self, path: str, data: bytes) -> None:
        super().put(path, data)
        self._count()

    def put_if_absent(self, path: str, data: bytes, *, look_first: bool = True) -> bool:
        done = super().put_if_absent(path, data, look_first=look_first)
        self._count()
        return done

    def _count(self) -> None:
        self.n_left -= 1
        if self.n_left == 0:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("with_parent", [False, True])
def test_a_stop_after_any_write_leaves_the_old_version_or_none_and_a_rerun_ends_as_if_nothing_was(
    tmp_path: Path, with_parent: bool
) -> None:
    store = open_store(str(tmp_path / "template"))
    release = releases.stage_release(store)
    if with_parent:
        run(release)
    new = recipe(release, synthetic={TAIL: 2})
    reference = open_store(shutil.copytree(tmp_path / "template", tmp_path / "reference"))
    run(release, store=reference, recipe=new)
    old, last = (1, 2) if with_parent else (0, 1)

    n_writes, finished = 0, False
    while not finished:
        n_writes += 1
        root = shutil.copytree(tmp_path / "template", tmp_path / f"stopped-{n_writes}")
        here = open_store(str(root))
        try:
            run(release, store=Dying(here, n_writes), recipe=new)
            finished = True
        except KeyboardInterrupt:
            versions = list_versions(here)
            assert versions in (tuple(range(1, old + 1)), tuple(range(1, last + 1)))
            if versions:
                assert open_dataset(str(root), verify=True).to_table().num_rows == (
                    55 if versions[-1] == old else 53
                )
            else:
                with pytest.raises(IntegrityError, match="holds no published dataset"):
                    open_dataset(str(root))
            if with_parent:
                for line in here.read(CARD).decode().splitlines():
                    if line.strip().startswith("- data/"):
                        assert here.exists(line.strip("- "))
        run(release, store=here, recipe=new)
        assert visible(here) == visible(reference)
        assert verify(here).ok
    assert n_writes > 8


def test_what_a_killed_run_left_under_a_number_is_never_taken_for_another_s(
    store: Store, release: Any
) -> None:
    """Another run was killed after its report and ledger, before its manifest."""
    store.put("_reports/v00000001/report.html", b"of another run")
    store.put("_splits/v00000001.parquet", b"of another run")
    run(release)
    manifest = read_manifest(store)
    assert store.read(manifest.report) == b"<html>"
    assert len({path.path.rsplit("/", 1)[0] for path in manifest.report_files}) == 1
    assert store.read("_reports/v00000001/report.html") == b"of another run"
    assert verify(store).ok


def race(*calls: Any) -> list[Any]:
    """Run the calls in threads that start together; return results and errors."""
    start = threading.Barrier(len(calls))
    results: list[Any] = [None] * len(calls)

    def one(i: int) -> None:
        start.wait()
        try:
            results[i] = calls[i]()
        except Exception as exc:  # noqa: BLE001 - handed to the test
            results[i] = exc

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_runs_of_the_same_inputs_make_one_version(store: Store, release: Any) -> None:
    done = race(lambda: run(release), lambda: run(release))
    assert [d.version for d in done] == [1, 1]
    assert sorted(d.created for d in done) == [False, True]
    assert verify(store).ok


def test_two_runs_of_other_recipes_make_a_version_each(store: Store, release: Any) -> None:
    other = releases.stage_report(store, key="other", text="other report")
    done = race(
        lambda: run(release),
        lambda: run(release, recipe=recipe(release, synthetic={TAIL: 1}), report=other),
    )
    assert sorted(d.version for d in done) == [1, 2]
    for commit, text in zip(done, (b"<html>", b"other report"), strict=True):
        manifest = read_manifest(store, commit.version)
        assert store.read(manifest.report) == text
        assert verify(store, commit.version).ok
    rows = {
        open_dataset(store.uri, version=d.version, verify=True).to_table().num_rows for d in done
    }
    assert rows == {55, 52}


# --- what does not fit ------------------------------------------------------------------------


def stage_variant(store: Store, table: pa.Table, *, label: str = "label") -> Any:
    return load_info(releases.stage_dataset(store, table, label=label, key=uuid4().hex), store)


def test_a_destination_with_another_schema_is_refused_by_column(store: Store, release: Any) -> None:
    check_destination(store, release.dataset)
    run(release)
    check_destination(store, release.dataset)
    check_destination(store, load_info(release.dataset, store))
    table = releases.source_table()
    changed = table.drop_columns("x").append_column("y", table["x"])
    changed = changed.set_column(1, "flag", changed["flag"].cast(pa.string()))
    with pytest.raises(SchemaError) as caught:
        check_destination(store, stage_variant(store, changed))
    for words in (
        "'y' is new",
        "'x' is gone",
        "'flag' was bool and is string",
        "another destination",
    ):
        assert words in str(caught.value)
    turned = table.select([*table.column_names[1:-1], "x", "label"])
    with pytest.raises(SchemaError, match="another order"):
        check_destination(store, stage_variant(store, turned))


def test_text_with_wide_and_narrow_offsets_is_one_type(store: Store, release: Any) -> None:
    """pandas 3 and polars write large_string, pyarrow string."""
    run(release)
    table = releases.source_table()
    narrow = table.cast(
        pa.schema(
            [f.with_type(pa.string()) if f.type == pa.large_string() else f for f in table.schema]
        )
    )
    assert narrow.schema != table.schema
    check_destination(store, stage_variant(store, narrow))


def test_a_destination_with_another_label_is_refused(store: Store, release: Any) -> None:
    run(release)
    with pytest.raises(SchemaError, match=r"labelled by 'label' \(large_string\).*'flag' \(bool\)"):
        check_destination(store, stage_variant(store, releases.source_table().filter(
            pc.is_valid(releases.source_table()["flag"])), label="flag"))  # fmt: skip


def test_a_split_that_takes_back_the_published_one_is_refused(store: Store, release: Any) -> None:
    """Records that trained in one version must not be the next one's hold-out."""
    run(release)
    info = load_info(release.dataset, store)
    names = ["a"] * 60
    other = info.model_copy(
        update={
            "key": "moved",
            "ledger": releases._ledger(store, "_staging/ingest/moved", names, salt=1),
        }
    )
    with pytest.raises(CommitConflictError, match=r"version 1 .* run again"):
        check_destination(store, other)
    grown = info.model_copy(
        update={
            "key": "grown",
            "ledger": releases._ledger(store, "_staging/ingest/grown", ["a"] * 70),
        }
    )
    check_destination(store, grown)


def test_ids_that_occur_twice_are_refused(store: Store, release: Any) -> None:
    twice = release.candidates.model_copy(update={"kept": release.candidates.kept * 2})
    with pytest.raises(IntegrityError, match="share their aug_id"):
        run(release, candidates=twice, recipe=recipe(release, synthetic={TAIL: 12}))
    assert not list_versions(store)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"candidates": None}, ParameterError, "pass `candidates`"),
        ({"classic": None}, ParameterError, "pass `classic`"),
        ({"publish": Publish(origins=["copy"])}, EmptyClassError, "nothing to publish"),
    ],
)
def test_parts_that_do_not_fit_together_say_so(
    store: Store, release: Any, changes: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        run(release, **changes)
    assert not list_versions(store)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_weight": {"nobody": 2.0}}, "names .*nobody"),
        ({"class_weight": {"a": 0.0}}, "positive"),
        ({"class_weight": {"a": float("nan")}}, "positive"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(
    store: Store, release: Any, changes: Any, words: str
) -> None:
    with pytest.raises(ParameterError, match=words):
        run(release, recipe=recipe(release, **changes))


def test_staged_records_that_are_gone_are_named(store: Store, release: Any) -> None:
    store.delete(f"{release.report.prefix}/report.json")
    with pytest.raises(IntegrityError, match=r"report\.json is missing from staging"):
        run(release)
    assert not list_versions(store)


@pytest.mark.slow
def test_a_quota_that_is_reached_leaves_no_version_and_a_rerun_publishes(tmp_path: Path) -> None:
    """RLIMIT_FSIZE is the quota that needs no root; the kernel refuses the write in earnest."""
    store = open_store(str(tmp_path / "out"))
    release = releases.stage_release(store, table=releases.source_table(3000))
    script = textwrap.dedent(
        """
        import pickle, resource, sys
        from prefect_augment.errors import StorageError
        from prefect_augment.publish.publish import publish
        arguments = pickle.load(open(sys.argv[1], "rb"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            publish(*arguments)
        except StorageError as exc:
            sys.exit(str(exc))
        """
    )
    (tmp_path / "arguments").write_bytes(pickle.dumps(publish_arguments(**vars(release))))
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "arguments")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "smaller shards (publish.shard_mib)" in done.stderr
    assert not list_versions(store)
    assert not list((tmp_path / "out" / "data").glob(".tmp-*"))
    assert run(release).created
    assert verify(store).ok


def test_a_destination_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    release = releases.stage_release(store)
    (tmp_path / "out" / "data").write_text("a file where a folder should be")
    with pytest.raises(StorageError, match="choose another location"):
        run(release)
    assert not list_versions(store)
