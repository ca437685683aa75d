"""A wrong call from a flow to a task is an error of the type checker, not of the run."""

import subprocess
import sys
from pathlib import Path

import pytest

WRONG = """
from prefect_augment.schema.base import DatasetRef
from prefect_augment.schema.experiment import Experiment
from prefect_augment.schema.report import Release
from prefect_augment.tasks._runtime import call, run
from prefect_augment.tasks.compare import filter_candidates, score_strategy
from prefect_augment.tasks.plan import plan_balance
from prefect_augment.tasks.publish import publish_dataset
from prefect_augment.tasks.train import train_model


def wrong(dataset: DatasetRef, experiment: Experiment, release: Release) -> None:
    run(train_model, dataset)
    run(plan_balance, dataset, seach=True)
    run(filter_candidates, experiment)
    call(score_strategy, experiment, "as is", 0)
    version: str = run(publish_dataset, release)
    print(version)
"""


@pytest.mark.slow
def test_five_wrong_calls_are_five_errors(tmp_path: Path, repository: Path) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(WRONG)
    # With the cache of `make lint`, which has seen all but this file.
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(repository / "pyproject.toml"), str(file)],
        cwd=repository, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if "wrong.py" in line and "error" in line]
    assert [int(line.split(":")[1]) for line in lines] == [13, 14, 15, 16, 17], done.stdout
