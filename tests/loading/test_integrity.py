"""Damage to a published dataset: each kind has its own clear error, from `verify` and from every read."""

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support import releases
from support.steps import publish_parts

from prefect_augment.errors import IntegrityError
from prefect_augment.loading.dataset import Dataset, open_dataset
from prefect_augment.maintenance.rollback import rollback
from prefect_augment.maintenance.verify import verify
from prefect_augment.schema import content_digest
from prefect_augment.storage import Store, list_versions, manifest_path, open_store, read_manifest


def publish_twice(folder: Path) -> Any:
    """A dataset of two versions on disk."""
    release = releases.stage_release(open_store(str(folder)))
    publish_parts(**vars(release))
    recipe = release.recipe.model_copy(update={"sentence": "Less."})
    publish_parts(**{**vars(release), "recipe": recipe})
    return release


@pytest.fixture
def release(tmp_path: Path) -> Any:
    """What publishing takes, to publish again."""
    return publish_twice(tmp_path / "again")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("template") / "out"
    publish_twice(folder)
    return folder


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Store:
    """A copy of the dataset, to be damaged."""
    return open_store(str(shutil.copytree(template, tmp_path / "out")))


def shard(store: Store) -> str:
    return next(s.path for s in read_manifest(store).shards if s.origin == "real")


def file(store: Store, path: str) -> Path:
    return Path(store.full(path))


def flip(path: Path, at: float = 0.3) -> None:
    """Turn one bit of a file over; its size and time tell nothing."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 1
    path.write_bytes(data)


READS: dict[str, Callable[[Dataset], Any]] = {
    "table": lambda dataset: dataset.to_table(),
    "columns": lambda dataset: dataset.to_table(columns=["label"]),
    "pandas": lambda dataset: dataset.to_pandas(),
    "weights": lambda dataset: dataset.sample_weight(),
    "paths": lambda dataset: dataset.paths,
    "torch": lambda dataset: list(dataset.to_torch()),
    "recipe": lambda dataset: list(dataset.to_torch(recipe=True)),
}


def reads(names: str) -> Any:
    return pytest.mark.parametrize(
        "read", [READS[name] for name in names.split()], ids=names.split()
    )


# --- shards -----------------------------------------------------------------------------------


@reads("table columns pandas weights paths torch recipe")
def test_a_flipped_bit_is_found_by_every_read_that_verifies(
    store: Store, read: Callable[[Dataset], Any]
) -> None:
    pytest.importorskip("torch")
    path = shard(store)
    dataset = open_dataset(store.uri, verify=True)
    read(dataset)
    flip(file(store, path))
    with pytest.raises(
        IntegrityError, match=f"{path} has other bytes than were published.*rollback"
    ):
        read(dataset)


def test_a_flipped_bit_may_go_unseen_without_verifying(store: Store) -> None:
    """Why there is `verify`: Parquet as it is written has no checksums."""
    changed = 0
    before = open_dataset(store.uri).to_table()
    path = file(store, shard(store))
    whole = path.read_bytes()
    for i in range(40):
        flip(path, at=i / 40)
        with contextlib.suppress(IntegrityError):
            changed += not open_dataset(store.uri).to_table().equals(before)
        with pytest.raises(IntegrityError, match="has other bytes"):
            open_dataset(store.uri, verify=True).to_table()
        path.write_bytes(whole)
    assert changed


@reads("table pandas torch paths")
@pytest.mark.parametrize("verify", [True, False])
def test_a_missing_shard_is_named(
    store: Store, read: Callable[[Dataset], Any], verify: bool
) -> None:
    pytest.importorskip("torch")
    path = shard(store)
    file(store, path).unlink()
    dataset = open_dataset(store.uri, verify=verify)
    if read is READS["paths"] and not verify:
        assert read(dataset)  # nothing is looked at
        return
    with pytest.raises(
        IntegrityError, match=f"{path} is missing, though the dataset lists it; restore"
    ):
        read(dataset)


def test_damage_between_two_epochs_is_found_by_a_stream_that_verifies(store: Store) -> None:
    pytest.importorskip("torch")
    stream = open_dataset(store.uri, verify=True).to_torch(shuffle=False)
    assert len(list(stream)) == 55
    flip(file(store, shard(store)))
    with pytest.raises(IntegrityError, match="has other bytes than were published"):
        list(stream)


@reads("table torch")
@pytest.mark.parametrize("change", [-1, 1])
def test_a_manifest_that_lies_about_the_number_of_records_is_found_out(
    store: Store, read: Callable[[Dataset], Any], change: int
) -> None:
    pytest.importorskip("torch")

    def lie(fields: dict[str, Any]) -> None:
        one = next(s for s in fields["shards"] if s["origin"] == "real")
        one["n_records"] += change
        name = next(iter(one["class_counts"]))
        one["class_counts"][name] += change

    forge(store, lie)
    n = next(s.n_records for s in read_manifest(store).shards if s.origin == "real")
    with pytest.raises(
        IntegrityError, match=f"holds {n - change} records, and the dataset says {n}"
    ):
        read(open_dataset(store.uri))


def test_a_manifest_that_lies_about_a_digest_is_found_out(store: Store) -> None:
    def lie(fields: dict[str, Any]) -> None:
        fields["shards"][0]["sha256"] = "0" * 64

    forge(store, lie)
    with pytest.raises(IntegrityError, match="expected 000000000000"):
        open_dataset(store.uri, verify=True).to_table()
    (problem,) = [p for p in verify(store).problems if p.kind == "changed"]
    assert "the same size, other bytes" in problem.message


# --- verify -----------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


DAMAGE: dict[Callable[[Path], None], tuple[str, str]] = {
    flip: ("changed", "the same size, other bytes"),
    cut: ("changed", r"\d+ bytes instead of \d+"),
    empty: ("changed", r"0 bytes instead of \d+"),
    remove: ("missing", "is missing"),
}
OBJECTS: dict[str, Callable[[Store], str]] = {
    "shard": shard,
    "ledger": lambda store: read_manifest(store).ledger.path,  # type: ignore[union-attr]
    "report": lambda store: read_manifest(store).report,
    "quarantine": lambda store: read_manifest(store).quarantine[0].path,
}
ADVICE = {
    "shard": r"restore it from a copy, or go on with an older version \(`prefect-augment rollback`\)",
    "ledger": "restore this ledger from a copy; the records of the version do not depend on it",
    "report": "restore this report from a copy",
    "quarantine": "restore this quarantine from a copy",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("kind", OBJECTS)
def test_verify_says_what_happened_to_which_object_and_what_to_do(
    store: Store, kind: str, damage: Callable[[Path], None]
) -> None:
    path = OBJECTS[kind](store)
    damage(file(store, path))
    (problem,) = verify(store).problems
    expected, says = DAMAGE[damage]
    assert (problem.path, problem.kind) == (path, expected)
    assert re.search(f"{says}.*{ADVICE[kind]}", problem.message), problem.message


def test_what_was_lost_from_the_newest_version_only_is_no_trouble_after_a_rollback(
    store: Store,
) -> None:
    ledger = read_manifest(store, 2).report_files[0].path
    assert ledger.startswith("_reports/v00000002/")
    remove(file(store, ledger))
    assert not verify(store).ok
    rollback(store, 1)
    assert verify(store).ok
    assert list_versions(store) == (1, 2, 3)


# --- manifests --------------------------------------------------------------------------------


def forge(store: Store, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the newest manifest, sealed as if it had always been so: one that somebody made up."""
    path = manifest_path(2)
    fields = json.loads(store.read(path))
    change(fields)
    fields["content_digest"] = content_digest(fields)
    store.put(path, json.dumps(fields).encode())


@pytest.mark.parametrize("damage", [cut, empty, flip], ids=lambda damage: damage.__name__)
def test_a_damaged_manifest_is_an_error_and_older_versions_stay_readable(
    release: Any, damage: Callable[[Path], None]
) -> None:
    store = release.store
    path = file(store, manifest_path(2))
    damage(path)
    says = (
        "is not whole JSON|is not valid at|was changed after it was written|no manifest of prefect"
    )
    for look in (lambda: open_dataset(store.uri), lambda: verify(store)):
        with pytest.raises(IntegrityError, match=says) as caught:
            look()
        assert manifest_path(2) in caught.value.message
        assert "older versions stay readable with version=N" in caught.value.message
    assert open_dataset(store.uri, 1, verify=True).to_table().num_rows == 55
    assert verify(store, 1).problems[0].kind == "unreadable"  # the card, which is the newest's
    # What the message advises: move it away, and run again.
    path.rename(path.with_suffix(".damaged"))
    recipe = release.recipe.model_copy(update={"sentence": "Less."})
    publish_parts(**{**vars(release), "recipe": recipe})
    assert verify(store, 2).ok


OUTSIDE = [
    "../secret.parquet",
    "data/../../secret.parquet",
    "/etc/passwd",
    "s3://other-bucket/data/x.parquet",
    "file:///etc/passwd",
    "memory://x",
    "C:/secret.parquet",
    "data\\..\\secret.parquet",
    "data//x.parquet",
    "./x.parquet",
    "",
]


@pytest.mark.parametrize("path", OUTSIDE)
@pytest.mark.parametrize("field", ["shards", "quarantine", "ledger", "report_files", "models"])
def test_a_manifest_that_names_an_object_outside_its_dataset_is_refused(
    store: Store, tmp_path: Path, field: str, path: str
) -> None:
    pq.write_table(open_dataset(store.uri).to_table(), tmp_path / "secret.parquet")

    def point(fields: dict[str, Any]) -> None:
        one = fields[field] if isinstance(fields[field], dict) else fields[field][0]
        one["path"] = path

    forge(store, point)
    with pytest.raises(IntegrityError, match=f"not valid at {field}.*refused"):
        open_dataset(store.uri)


def change_shard(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields["shards"][0].update(changes)


LIES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "twice": (lambda fields: fields["shards"].append(fields["shards"][0]), "is listed 2 times"),
    "fewer records": (change_shard(n_records=1), "records over its classes"),
    "negative records": (change_shard(n_records=-1, class_counts={}), "has -1 records"),
    "negative bytes": (change_shard(n_bytes=-5), "-5 bytes"),
    "negative class": (change_shard(n_records=1, class_counts={"a": 2, "b": -1}), "over its classes"),
    "no digest": (change_shard(sha256=""), "'' is no sha256"),
    "short digest": (change_shard(sha256="abc"), "'abc' is no sha256"),
    "no number": (change_shard(n_records="many"), "valid integer"),
    "no shards": (lambda fields: fields.pop("shards"), "Field required"),
    "another field": (lambda fields: fields["shards"][0].update(fs="s3"), "Extra inputs"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_cannot_be_true_is_refused(store: Store, lie: str) -> None:
    change, says = LIES[lie]
    forge(store, change)
    with pytest.raises(IntegrityError, match=f"(?s)not valid at shards.*{says}"):
        open_dataset(store.uri)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"[" * 200_000, "is not whole JSON"),
        (b'{"schema_version": 1, "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "is not whole JSON"),
        (b"[1, 2]", "no manifest of prefect-augment"),
        (b"\xff\xfe\x00", "is not whole JSON"),
        (b'{"schema_version": 1}', "is not valid at version"),
    ],
    ids=["deep", "deep inside", "list", "bytes", "empty"],
)  # fmt: skip
def test_a_manifest_of_anything_else_is_refused(store: Store, data: bytes, says: str) -> None:
    store.put(manifest_path(2), data)
    with pytest.raises(IntegrityError, match=says):
        open_dataset(store.uri)


def test_a_huge_manifest_is_refused_before_it_is_read(store: Store) -> None:
    path = file(store, manifest_path(2))
    path.unlink()
    with path.open("wb") as file_:
        file_.truncate(3 << 40)  # takes no space: holes
    with pytest.raises(IntegrityError, match="3,298,534,883,328 bytes, and a manifest has at most"):
        open_dataset(store.uri)
