"""Another team's repository, with `tasks/` and `flows/` of its own, uses our tasks from the wheel."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CLEAN = '''
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task


@task
def export_readings(folder: str) -> str:
    """Their own step before ours: write last night's readings."""
    rng = np.random.default_rng(0)
    names = ["fine"] * 200 + ["leak"] * 40
    table = pa.table({"flow": rng.normal([float(n == "leak") for n in names]), "outcome": names})
    path = Path(folder) / "readings.parquet"
    pq.write_table(table, path)
    return str(path)
'''

NIGHTLY = """
import json
import sys

from prefect import flow

import prefect_augment
from prefect_augment import (
    Destination, Experiment, Release, RunParams, Source, TreesModel, filter_candidates,
    ingest_dataset, plan_balance, publish_dataset, sample_classes, train_model,
)
from tasks.clean import export_readings


@flow
def nightly(folder: str):
    path = export_readings(folder)
    source, destination = Source(uri=path, label="outcome"), Destination(uri=f"{folder}/balanced")
    dataset = ingest_dataset.with_options(retries=1)(source, destination)
    params = RunParams(model=TreesModel())
    plan = plan_balance(dataset, params)
    experiment = Experiment(dataset=dataset, plan=plan, params=params)
    model = train_model.submit(experiment)
    drawn = sample_classes(dataset, model, {"leak": 50})
    kept = filter_candidates(experiment, drawn)
    experiment = experiment.model_copy(update={"candidates": kept})
    return publish_dataset(Release(experiment=experiment, models=(model.result(),))), kept


if __name__ == "__main__":
    commit, kept = nightly(sys.argv[1])
    dataset = prefect_augment.open_dataset(f"{sys.argv[1]}/balanced")
    origins = dataset.to_table("train", columns=["aug_origin"])["aug_origin"].to_pylist()
    print(json.dumps({
        "package": prefect_augment.__file__, "version": commit.version, "synthetic": origins.count("synthetic"),
        "kept": sum(shard.n_records for shard in kept.kept),
    }))
"""


@pytest.mark.e2e
def test_another_repository_composes_our_tasks(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    installed, theirs, data = tmp_path / "site", tmp_path / "their-repository", tmp_path / "data"
    wheel.extractall(installed)
    data.mkdir()
    for name, text in {"tasks/clean.py": CLEAN, "flows/nightly.py": NIGHTLY}.items():
        path = theirs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(text)

    done = subprocess.run(
        [sys.executable, "-m", "flows.nightly", str(data)],
        cwd=theirs,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(installed), str(theirs)]),
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert Path(result["package"]).is_relative_to(installed), "the wheel is what was tested"
    assert result["version"] == 1
    assert result["synthetic"] == result["kept"] >= 50
