"""The commands as a user types them, with Prefect's own ephemeral API behind them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.e2e


def prefect_augment(
    *arguments: object, home: Path, timeout: float = 400
) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    }
    return subprocess.run(
        [sys.executable, "-m", "prefect_augment.cli.app", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def last_line(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own: Prefect's database in it is made by the first command."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def table(make_table: Callable[..., pa.Table], tmp_path: Path) -> Path:
    pq.write_table(make_table(), tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    path = tmp_path / "quick.yaml"
    path.write_text("evaluation: {n_seeds: 1, n_bootstrap: 200, estimators: [logistic]}\n")
    return path


def test_rebalance_then_verify(table: Path, quick: Path, tmp_path: Path, home: Path) -> None:
    given = ["--label", "state", "--model", "trees", "--on-no-gain", "publish", "--params", quick]
    done = prefect_augment("rebalance", table, tmp_path / "out", *given, "--json", home=home)
    assert done.returncode == 0, done.stderr[-3000:]
    result = last_line(done)
    assert result["version"] == 1
    assert result["counts"]["train"]["cracked"]["synthetic"] > 0
    assert Path(result["report"]).is_file()
    for name in ("version", "manifest", "counts", "quarantined", "strategies", "recipe", "verdict"):
        assert name in result
    assert result["peak_rss_bytes"] > 0

    checked = prefect_augment("verify", tmp_path / "out", "--json", home=home)
    assert checked.returncode == 0, checked.stderr
    assert last_line(checked)["problems"] == []


def test_the_plan_alone_is_shown_as_a_table(table: Path, tmp_path: Path, home: Path) -> None:
    done = prefect_augment(
        "rebalance", table, tmp_path / "out", "--label", "state", "--plan-only", home=home
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Estimate" in done.stdout
    assert "cracked" in done.stdout
    assert not (tmp_path / "out" / "_manifests").exists()


def test_a_refused_run_ends_with_3(table: Path, quick: Path, tmp_path: Path, home: Path) -> None:
    given = ["--label", "state", "--on-no-gain", "fail", "--params", quick]
    done = prefect_augment("rebalance", table, tmp_path / "out", *given, home=home)
    assert done.returncode == 3, done.stderr[-3000:]
    assert "report.html" in done.stderr.replace("\n", "")


def test_demo_publishes_a_table_and_images_with_a_compared_generator(
    tmp_path: Path, home: Path
) -> None:
    """It ends within about three minutes on two free cores, and these may be shared."""
    done = prefect_augment("demo", tmp_path, "--json", home=home, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = last_line(done)
    for name in ("table", "images"):
        assert found[name]["version"] == 1
        assert found[name]["verdict"]["decision"] in ("accept", "reject", "inconclusive")
        assert Path(found[name]["report"]).is_file()
    strategies = {score["strategy"]["name"] for score in found["images"]["strategies"]}
    assert "as is" in strategies
    assert {"diffusion", "classic + diffusion"} & strategies, "the better one is scored in full"
    report = Path(found["images"]["report"])
    page = json.loads((report.parent / "report.json").read_text())
    tried = {t["strategy"]["name"] for rung in page["search"]["rungs"] for t in rung["trials"]}
    assert {"as is", "balanced softmax", "resampling + classic", "diffusion"} <= tried
    kept = {c["name"]: c["n_kept"] for c in page["candidates"]["classes"]}
    assert sorted(kept) == ["eight", "five", "nine"]
    assert min(kept.values()) > 0
    sheets = [path.name for path in report.parent.glob("*.png")]
    assert any("eight" in name or "sheet" in name for name in sheets), sheets

    checked = prefect_augment("verify", tmp_path / "images", home=home)
    assert checked.returncode == 0, checked.stderr


def test_bad_input_ends_with_2_and_says_what_to_do(table: Path, tmp_path: Path, home: Path) -> None:
    done = prefect_augment("rebalance", table, tmp_path / "out", "--label", "stat", home=home)
    assert done.returncode == 2
    assert "did you mean 'state'" in " ".join(done.stderr.split())
    done = prefect_augment(
        "rebalance", table, tmp_path / "out", "--label", "state", "--target", "best", home=home
    )
    assert done.returncode == 2
    assert "median" in done.stderr


def test_a_version_that_waits_is_published_by_the_command(
    table: Path, quick: Path, tmp_path: Path, home: Path
) -> None:
    given = ["--label", "state", "--model", "trees", "--on-no-gain", "publish", "--params", quick]
    done = prefect_augment(
        *("rebalance", table, tmp_path / "out", *given, "--require-approval", "--json"), home=home
    )
    assert done.returncode == 0, done.stderr[-3000:]
    waiting = last_line(done)
    assert (waiting["status"], waiting["version"]) == ("awaiting_approval", None)

    answer = ["approve", tmp_path / "out", waiting["proposal"][:8], "--by", "Ada", "--json"]
    raised = prefect_augment(*answer, "--amount", "cracked=999", home=home)
    assert raised.returncode == 2
    assert "999 records were requested" in " ".join(raised.stderr.split())
    done = prefect_augment(*answer, "--amount", "cracked=2", home=home)
    assert done.returncode == 0, done.stderr[-3000:]
    result = last_line(done)
    assert result["status"] == "published"
    assert sum(n for o, n in result["counts"]["train"]["cracked"].items() if o != "real") == 2
    assert result["approval"]["by"] == "Ada"
