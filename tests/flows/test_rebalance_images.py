"""The whole job on images, run as a plain function: what comes out, byte by byte."""

import hashlib
import html
import io
import os
import re
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import messy_images

pytest.importorskip("torch", reason="the extra 'torch'")
pytest.importorskip("albumentations", reason="the extra 'images'")

from prefect_augment import remake_records
from prefect_augment.errors import IntegrityError, ParameterError
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.loading.dataset import Dataset, open_dataset
from prefect_augment.maintenance.verify import verify
from prefect_augment.params import (
    Budget,
    Compute,
    Destination,
    DiffusionModel,
    Evaluation,
    NoModel,
    Publish,
    Quality,
    Source,
)
from prefect_augment.schema import Manifest, RunResult
from prefect_augment.storage import open_store, read_manifest, with_workspace

pytestmark = pytest.mark.usefixtures("quick_runs", "few_steps")

# The quantiles are wide open: so short a training makes poor pictures, and some have to go out.
PUBLISH = Evaluation(n_seeds=1, n_settings=1, n_bootstrap=100, on_no_gain="publish")
OPEN = Quality(near_copy_quantile=0.0, fidelity_quantile=0.0)
STEPS = Budget(steps=40, batch_size=16, device="cpu")
MODEL = DiffusionModel(width=16, sampler_steps=2)
RARE = "<i>ring & 😀"  # of messy_images.SHAPES


def run(source: Source, folder: Path, **params: Any) -> RunResult:
    wanted = {"evaluation": PUBLISH, "budget": STEPS, "model": NoModel(), **params}
    destination = Destination(uri=str(folder))
    return rebalance.fn(source=source, destination=destination, quality=OPEN, **wanted)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def published(folder: Path) -> Dataset:
    return open_dataset(str(folder), verify=True)


def digests(folder: Path) -> tuple[str, list[str]]:
    """What makes two versions of one source the same one: the content's digest, the shards' names."""
    manifest: Manifest = read_manifest(open_store(str(folder)))
    return manifest.content_digest, sorted(path.name for path in (folder / "data").iterdir())


def content(folder: Path) -> dict[str, Any]:
    """What two versions of one content have in common though their sources have other names.

    The names of stages, which hold the source's listing, are left out; the shards' names and those of
    checkpoints hold the sha256 of their bytes.
    """
    manifest = read_manifest(open_store(str(folder))).model_dump()
    for model in manifest["models"]:
        for name in ("key", "path", "checkpoint", "config"):
            model[name] = Path(model[name]).name if name != "key" else ""
    same = ("class_counts", "shards", "plan", "recipe", "verdict", "filtered", "models", "columns")
    return {name: manifest[name] for name in same}


# --- a folder with every trouble there is -----------------------------------------------------


@pytest.fixture(scope="module")
def messy_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, RunResult, Path]:
    folder = tmp_path_factory.mktemp("messy")
    messy = messy_images.make_messy_folder(folder / "in")
    whole_search = PUBLISH.model_copy(update={"n_settings": 0})
    result = run(Source(uri=str(folder / "in")), folder / "out", evaluation=whole_search)
    return messy, result, folder / "out"


def every_record(folder: Path) -> list[dict[str, Any]]:
    dataset = published(folder)
    return [row for split in dataset.class_counts for row in dataset.to_table(split).to_pylist()]


@pytest.mark.slow
def test_every_readable_file_is_published_unchanged(messy_run: tuple[Any, RunResult, Path]) -> None:
    messy, _, out = messy_run
    real = [row for row in every_record(out) if row["aug_origin"] == "real"]
    found = {row["image"]["path"]: sha256(row["image"]["bytes"]) for row in real}
    assert found == {path: sha256(data) for path, data in messy.readable.items()}
    assert {row["image"]["path"]: row["label"] for row in real} == messy.labels
    assert len(real) == len(messy.readable)
    for path, digest in found.items():  # and the source was not touched
        assert sha256((messy.root / path).read_bytes()) == digest


@pytest.mark.slow
def test_every_other_file_is_in_quarantine_with_its_reason(
    messy_run: tuple[Any, RunResult, Path],
) -> None:
    messy, result, out = messy_run
    rows = [
        row
        for path in sorted((out / "_quarantine").rglob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    assert {row["file"]: row["reason"] for row in rows} == messy.quarantined
    assert len(rows) == result.quarantined == len(messy.quarantined)


@pytest.mark.slow
def test_no_record_is_lost_and_the_version_verifies(messy_run: tuple[Any, RunResult, Path]) -> None:
    messy, result, out = messy_run
    real = sum(n.get("real", 0) for split in result.counts.values() for n in split.values())
    assert real + result.quarantined == len(messy.readable) + len(messy.quarantined)
    assert set(result.counts) == {"train", "holdout"}
    assert not verify(open_store(str(out))).problems


@pytest.mark.slow
def test_class_names_are_escaped_in_the_report_and_on_the_card(
    messy_run: tuple[Any, RunResult, Path],
) -> None:
    _, result, out = messy_run
    page = Path(result.report).read_text()
    card = (out / "README.md").read_text()
    for name in messy_images.CLASSES:
        assert html.escape(name) in page, name
    assert "<b>bold" not in page
    assert "<b>bold" not in re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL)
    assert "émoji" in card


@pytest.mark.slow
def test_datasets_decodes_every_image_of_a_messy_folder(
    messy_run: tuple[Any, RunResult, Path], tmp_path: Path
) -> None:
    _, _, out = messy_run
    check_with_datasets(out, tmp_path / "cache")


def check_with_datasets(folder: Path, cache: Path) -> Counter[tuple[str, str, str]]:
    """Load the published folder as a user of `datasets` does, and hold it against the manifest."""
    datasets = pytest.importorskip("datasets")
    manifest = read_manifest(open_store(str(folder)))
    loaded = datasets.load_dataset(str(folder), cache_dir=str(cache))
    assert set(loaded) == set(manifest.class_counts)
    found: Counter[tuple[str, str, str]] = Counter()
    for split, records in loaded.items():
        assert isinstance(records.features["image"], datasets.Image)
        for record in records:
            assert min(record["image"].size) >= 1
            record["image"].load()
            found[split, record[manifest.label], record["aug_origin"]] += 1
    assert found == {
        (split, name, origin): n
        for split, classes in manifest.class_counts.items()
        for name, origins in classes.items()
        for origin, n in origins.items()
        if n
    }
    return found


# --- with a generator -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of pictures and the dataset that was made of it, with synthetic ones."""
    folder = tmp_path_factory.mktemp("made")
    messy_images.write(folder / "in", messy_images.shapes())
    out = folder / "out"
    run(Source(uri=str(folder / "in")), out, model=MODEL, compute=Compute(workers=1))
    return folder / "in", out


def synthetic(folder: Path) -> pa.Table:
    return published(folder).to_table(origins=["synthetic"])


@pytest.mark.slow
def test_synthetic_records_of_the_rare_class_are_published(made: tuple[Path, Path]) -> None:
    found = synthetic(made[1])
    assert found.num_rows >= 4
    assert set(found["label"].to_pylist()) == {RARE}
    assert not verify(open_store(str(made[1]))).problems


@pytest.mark.slow
def test_datasets_decodes_every_image_per_split_and_origin(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    found = check_with_datasets(made[1], tmp_path / "cache")
    assert found["train", RARE, "synthetic"] == synthetic(made[1]).num_rows
    real = {
        name: sum(n for (_, k, origin), n in found.items() if (k, origin) == (name, "real"))
        for name in messy_images.SHAPES
    }
    assert real == messy_images.SHAPES


# --- made again -------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_synthetic_image_is_made_again_bit_for_bit_in_its_micro_batch(
    made: tuple[Path, Path],
) -> None:
    dataset = published(made[1])
    rows = dataset.to_table(origins=["synthetic"]).to_pylist()
    chosen = [rows[-1], rows[0], rows[len(rows) // 2]]
    again = remake_records(str(made[1]), [row["aug_id"] for row in chosen])
    assert again.to_pylist() == [
        {k: v for k, v in row.items() if not k.startswith("aug_")} for row in chosen
    ]
    assert again.schema.names == ["image", "label"]
    assert remake_records(dataset, []).num_rows == 0


@pytest.mark.slow
def test_what_cannot_be_made_again_is_said(made: tuple[Path, Path]) -> None:
    dataset = published(made[1])
    real = dataset.to_table(origins=["real"])["aug_id"][0].as_py()
    with pytest.raises(ParameterError, match="1 of 1 are unknown"):
        remake_records(dataset, [real])
    elsewhere = dataset.manifest.model_copy(update={"models": ()})
    one = dataset.to_table(origins=["synthetic"])["aug_id"][0].as_py()
    with pytest.raises(IntegrityError, match="made elsewhere"):
        remake_records(Dataset(dataset.store, elsewhere), [one])


@pytest.mark.slow
def test_the_audit_of_a_share_stays_in_its_workspace(tmp_path: Path) -> None:
    # The first pictures of each class lie in the folder of the next one.
    classes = [*messy_images.SHAPES]
    after = dict(zip(classes, [*classes[1:], classes[0]], strict=True))
    files = {}
    for path, data in messy_images.shapes().items():
        label, name = path.split("/")
        files[f"{after[label]}/of-{label}-{name}" if name < "004.png" else path] = data
    source = messy_images.write(tmp_path / "in", files)
    params = {"model": MODEL, "publish": Publish(origins=["synthetic"])}
    run(Source(uri=str(source)), tmp_path / "out", **params)
    kept = {path.name for path in (tmp_path / "out-workspace" / "_reports").rglob("*")}
    assert kept >= {"audit.parquet", "doubted_1.png"}
    shared = {path.name for path in (tmp_path / "out").rglob("*")}
    assert not shared & {name for name in kept if name.startswith(("audit", "doubted"))}
    assert verify(with_workspace(open_store(str(tmp_path / "out"))), shareable=True).ok


# --- the same bytes ---------------------------------------------------------------------------


@pytest.mark.slow
def test_two_workers_give_the_bytes_of_one(made: tuple[Path, Path], tmp_path: Path) -> None:
    run(Source(uri=str(made[0])), tmp_path / "out", model=MODEL, compute=Compute(workers=2))
    assert digests(tmp_path / "out") == digests(made[1])


@pytest.mark.slow
def test_a_folder_written_in_another_order_elsewhere_gives_the_same_bytes(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    files = messy_images.shapes()
    messy_images.write(tmp_path / "moved" / "root", dict(reversed(files.items())))
    for i, path in enumerate(sorted(files)):
        os.utime(tmp_path / "moved" / "root" / path, (10**9 - i, 10**9 - i))
    run(Source(uri=str(tmp_path / "moved" / "root")), tmp_path / "out", model=MODEL)
    assert content(tmp_path / "out") == content(made[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", pytest.param("webdataset", marks=pytest.mark.e2e)])
def test_shards_and_records_in_another_order_give_the_same_bytes(tmp_path: Path, kind: str) -> None:
    files = list(messy_images.shapes().items())
    order = np.random.default_rng(1).permutation(len(files)).tolist()
    found = []
    for name, rows in (("first", range(len(files))), ("other", order)):
        folder = tmp_path / name
        folder.mkdir()
        chosen = [files[i] for i in rows]
        for shard in range(3):
            # Of the second source the shards are named in another order too.
            number = shard if name == "first" else 2 - shard
            WRITERS[kind](folder / f"part-{number}", chosen[shard::3])
        run(Source(uri=str(folder), label=LABELS[kind]), tmp_path / f"out-{name}")
        found.append(content(tmp_path / f"out-{name}"))
    assert found[0] == found[1]


def write_parquet(stem: Path, files: list[tuple[str, bytes]]) -> None:
    rows = [
        {"image": {"bytes": data, "path": path}, "label": path.split("/")[0]}
        for path, data in files
    ]
    pq.write_table(pa.Table.from_pylist(rows), stem.with_suffix(".parquet"))


def write_webdataset(stem: Path, files: list[tuple[str, bytes]]) -> None:
    with tarfile.open(stem.with_suffix(".tar"), "w") as tar:
        for path, data in files:
            name, key = path.split("/")[0], hashlib.sha256(path.encode()).hexdigest()[:12]
            for ending, content in (("png", data), ("cls", name.encode())):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


WRITERS = {"parquet": write_parquet, "webdataset": write_webdataset}
LABELS = {"parquet": "label", "webdataset": "cls"}
