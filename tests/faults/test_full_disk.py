"""A disk that fills up, at whichever write: said in one sentence, nothing half-written, a rerun ends alike."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import safetensors.numpy

from prefect_augment.maintenance.verify import verify
from prefect_augment.storage import latest_version, open_store, read_manifest, sha256_hex

pytestmark = pytest.mark.faults

# Of what a run writes in all, so that it ends in ingest, in training, and so on to publishing.
SHARES = (0.02, 0.1, 0.3, 0.5, 0.8, 0.95)


@pytest.fixture(scope="module")
def source(write_source: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write_source(folder / "1.parquet")
    return Path(folder)


def job(source: Path, destination: Path) -> dict[str, str]:
    return {"source": str(source), "label": "kind", "destination": str(destination)}


@pytest.fixture(scope="module")
def undisturbed(warm: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("undisturbed") / "out"
    code, log = warm.run("rebalance", **job(source, destination))
    assert code == 0, log
    return Path(destination)


def digest(destination: Path) -> str:
    store = open_store(str(destination))
    assert verify(store).problems == ()
    return read_manifest(store).content_digest


def pages(folder: Path) -> int:
    """Bytes that a small file system needs for the files of a folder: whole pages."""
    return sum(-(-p.stat().st_size // 4096) * 4096 for p in folder.rglob("*") if p.is_file())


def check_nothing_is_half_written(destination: Path) -> None:
    """Every object that has its name is whole; what was being written has none."""
    for path in destination.rglob("*"):
        if not path.is_file() or path.name.startswith(".tmp-"):
            continue
        named = re.search(r"-([0-9a-f]{12})\.(parquet|safetensors)$", path.name)
        if named and named[2] == "parquet":
            assert sha256_hex(path.read_bytes()).startswith(named[1]), path
        elif named:
            safetensors.numpy.load(path.read_bytes())
        elif path.suffix == ".json":
            json.loads(path.read_bytes())


@pytest.fixture(scope="module")
def _may_mount() -> None:
    unshare = shutil.which("unshare")
    words = [unshare or "unshare", "--user", "--map-root-user", "--mount", "true"]
    if unshare is None or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("this system lets nobody but root mount a small file system")


@pytest.mark.usefixtures("_may_mount")
@pytest.mark.parametrize("share", SHARES)
def test_a_full_disk_is_said_and_a_rerun_with_room_ends_alike(
    share: float, warm: Any, source: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """A real one, mounted in the place of the destination for the run's process alone."""
    kept = tmp_path / "kept"
    small = {"disk_bytes": int(pages(undisturbed) * share), "keep": str(kept)}
    code, log = warm.run("rebalance", **job(source, tmp_path / "out"), **small)
    assert code == 1, log
    assert re.search(r"StorageError: no space left to write .*out.*free some and run again", log), (
        log
    )
    assert latest_version(open_store(str(kept))) is None
    check_nothing_is_half_written(kept)
    # What the write that failed had begun is cleared away, or the disk would stay full of it.
    assert not list(kept.rglob(".tmp-*"))

    code, log = warm.run("rebalance", **job(source, kept))
    assert code == 0, log
    assert digest(kept) == digest(undisturbed)


@pytest.mark.usefixtures("_may_mount")
def test_a_disk_that_fills_up_under_a_second_version_leaves_the_first_whole(
    warm: Any, source: Path, undisturbed: Path, write_source: Any, tmp_path: Path
) -> None:
    grown, kept = tmp_path / "grown", tmp_path / "kept"
    shutil.copytree(source, grown)
    write_source(grown / "2.parquet", n=100, seed=1)
    small = {
        "start": str(undisturbed),
        "disk_bytes": int(pages(undisturbed) * 1.3),
        "keep": str(kept),
    }
    code, log = warm.run("rebalance", **job(grown, tmp_path / "out"), **small)
    assert code == 1, log
    assert "no space left" in log
    assert digest(kept) == digest(undisturbed)
    code, log = warm.run("rebalance", **job(grown, kept))
    assert code == 0, log
    assert latest_version(open_store(str(kept))) == 2
    assert verify(open_store(str(kept))).problems == ()


def test_a_file_larger_than_allowed_is_said_and_a_rerun_ends_alike(
    warm: Any, source: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """The user's limit on file sizes, which is an error in the middle of one write."""
    destination = tmp_path / "out"
    largest = max(p.stat().st_size for p in undisturbed.rglob("*") if p.is_file())
    # Well below: the largest is the page, which says where and how long, so two are not of equal size.
    code, log = warm.run("rebalance", **job(source, destination), file_bytes=largest * 9 // 10)
    assert code == 1, log
    assert re.search(
        r"StorageError: cannot write .*larger than the file system or the user's limit", log
    )
    assert latest_version(open_store(str(destination))) is None
    check_nothing_is_half_written(destination)
    code, log = warm.run("rebalance", **job(source, destination))
    assert code == 0, log
    assert digest(destination) == digest(undisturbed)
