"""kill -9 of flow runs at a real server, in ingest, in sampling and in publishing; a rerun ends with the same bytes.

Each is held at a write (`Server.hold`), so that no race decides where it is. A reader of each destination
checks every digest throughout. The three runs have a destination each and go side by side, because a
killed run's turn at its destination lapses after a minute.
"""

import os
import shutil
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_augment.flows.rebalance import rebalance
from prefect_augment.loading.dataset import open_dataset
from prefect_augment.maintenance.verify import verify
from prefect_augment.params import Destination, Evaluation, Source, TreesModel
from prefect_augment.storage import latest_version, open_store, read_manifest

pytestmark = pytest.mark.faults

# Where a run is held, below its destination: before anything of the stage is there, in its middle, and
# when all shards are in place but not the manifest.
PLACES = {
    "ingest": "_staging/ingest/*/outcome.json",
    "sample": "_staging/sample/*",
    "publish": "_reports/v00000002/*",
}
QUICK = {
    "estimators": ["logistic"],
    "n_seeds": 1,
    "n_settings": 1,
    "n_bootstrap": 100,
    "on_no_gain": "publish",
}


def write_source(path: Path, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rare = np.arange(n) % 10 == 0
    table = {
        "width": rng.normal(rare * 1.5),
        "height": rng.normal(rare * 1.0),
        "kind": np.where(rare, "rare", "usual"),
    }
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(table), path)


def run_here(source: Path, destination: Path) -> None:
    """The same run without a server, undisturbed."""
    rebalance.fn(
        source=Source(uri=str(source), label="kind"),
        destination=Destination(uri=str(destination)),
        model=TreesModel(),
        evaluation=Evaluation.model_validate(QUICK),
    )


class Reader(threading.Thread):
    """Reads the newest version whole, again and again, and remembers what it saw."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder = folder
        self.seen: list[str] = []
        self.error: BaseException | None = None
        self._stop_reading = threading.Event()

    def run(self) -> None:
        try:
            while not self._stop_reading.is_set():
                dataset = open_dataset(self.folder, verify=True)
                for split in dataset.class_counts:
                    dataset.to_table(split)
                if self.seen[-1:] != [dataset.manifest.content_digest]:
                    self.seen.append(dataset.manifest.content_digest)
                time.sleep(0.2)
        except BaseException as exc:  # noqa: BLE001 - whatever it is, the test shows it
            self.error = exc

    def end(self) -> list[str]:
        until = time.monotonic() + 60
        while len(self.seen) < 2 and self.is_alive() and time.monotonic() < until:
            time.sleep(0.1)
        self._stop_reading.set()
        self.join(timeout=60)
        assert self.error is None, self.error
        return self.seen


@pytest.mark.usefixtures("quick_runs")  # as the server's runs have it
def test_runs_killed_in_three_stages_and_run_again_end_with_the_same_bytes(
    server: Any, tmp_path: Path
) -> None:
    source, template = tmp_path / "in", tmp_path / "template"
    write_source(source / "1.parquet", 300, 0)
    run_here(source, template)
    old = read_manifest(open_store(str(template))).content_digest
    write_source(source / "2.parquet", 100, 1)
    outs = {name: Path(shutil.copytree(template, tmp_path / f"out-{name}")) for name in PLACES}
    run_here(source, template)
    expected = read_manifest(open_store(str(template)), 2)

    given = {"source": {"uri": str(source), "label": "kind"}, "model": {"kind": "trees"}}
    server.add(NAME, "rebalance", {**given, "evaluation": QUICK}, pool=POOL)
    readers = {name: Reader(out) for name, out in outs.items()}
    for reader in readers.values():
        reader.start()
    worker = server.worker(POOL)
    with ExitStack() as barriers:
        held = {n: barriers.enter_context(server.hold(outs[n], at)) for n, at in PLACES.items()}
        runs = {name: start(server, out) for name, out in outs.items()}
        for name, out in outs.items():
            pid = held[name]()
            assert pid in [process.pid for process in worker.family()]
            assert server.read(runs[name]).state_name == "Running"
            os.kill(pid, signal.SIGKILL)
            assert server.wait(runs[name]).state_name == "Crashed"
            assert latest_version(open_store(str(out))) == 1

    again = {name: start(server, out) for name, out in outs.items()}
    for name, out in outs.items():
        ended = server.wait(again[name])
        assert ended.state_name == "Completed", server.logs(again[name])[-40:]
        assert readers[name].end() == [old, expected.content_digest]
        store = open_store(str(out))
        manifest = read_manifest(store)
        assert manifest.version == 2
        assert manifest.content_digest == expected.content_digest
        assert [(s.path, s.sha256) for s in manifest.shards] == [
            (s.path, s.sha256) for s in expected.shards
        ]
        assert not verify(store).problems
    worker.stop()


POOL = "killed-runs"
NAME = "killed-in-three-stages"


def start(server: Any, out: Path) -> Any:
    return server.run(f"rebalance/{NAME}", {"destination": {"uri": str(out)}})
