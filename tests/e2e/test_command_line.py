"""The commands as a user types them, with Prefect's own ephemeral API behind them."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.settings import PREFECT_API_URL

pytestmark = pytest.mark.e2e


HOLD = Path(__file__).parent / "hold"
# The log is as users have it.
QUIET = {name: value for name, value in os.environ.items() if name != "PREFECT_LOGGING_LEVEL"}
GIVEN = ["--label", "state", "--model", "trees"]


def prefect_augment(
    *arguments: object, timeout: float = 400, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "prefect_augment.cli.app", *map(str, arguments)],
        env={**QUIET, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def last_line(done: subprocess.CompletedProcess[str]) -> Any:
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A user's home, where the first command makes Prefect's database, and each its API."""
    home = str(tmp_path_factory.mktemp("home"))
    return {"PREFECT_HOME": home, "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true"}


@pytest.fixture(scope="module")
def api(prefect_harness: None) -> dict[str, str]:
    """A server that is there already, which spares a command the start of its own."""
    return {"PREFECT_API_URL": str(PREFECT_API_URL.value())}


@pytest.fixture(scope="module")
def folder(make_table: Callable[..., pa.Table], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, and parameters of few comparisons."""
    folder = tmp_path_factory.mktemp("inputs")
    pq.write_table(make_table(), folder / "in.parquet")
    quick = "evaluation: {n_seeds: 1, n_settings: 1, n_bootstrap: 200, estimators: [logistic]}\n"
    (folder / "quick.yaml").write_text(quick)
    return folder


@pytest.fixture(scope="module")
def waiting(folder: Path, own: dict[str, str]) -> dict[str, Any]:
    """What a run says that leaves a proposal, `out`: all is compared, and nothing published."""
    given = [*GIVEN, "--on-no-gain", "publish", "--params", folder / "quick.yaml"]
    given += ["--require-approval", "--json"]
    done = prefect_augment("rebalance", folder / "in.parquet", folder / "out", *given, **own)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = last_line(done)
    return result


@pytest.fixture
def compared(waiting: dict[str, Any], folder: Path, tmp_path: Path) -> list[object]:
    """A table, a copy of the destination where its strategies have been compared, and the parameters."""
    out = shutil.copytree(folder / "out", tmp_path / "out")
    return [folder / "in.parquet", out, *GIVEN, "--params", folder / "quick.yaml"]


def test_rebalance_then_verify(compared: list[object], tmp_path: Path, api: dict[str, str]) -> None:
    done = prefect_augment("rebalance", *compared, "--on-no-gain", "publish", "--json", **api)
    assert done.returncode == 0, done.stderr[-3000:]
    result = last_line(done)
    assert result["version"] == 1
    assert result["counts"]["train"]["cracked"]["synthetic"] > 0
    assert Path(result["report"]).is_file()
    for name in ("version", "manifest", "counts", "quarantined", "strategies", "recipe", "verdict"):
        assert name in result
    assert result["peak_rss_bytes"] > 0

    checked = prefect_augment("verify", tmp_path / "out", "--json", **api)
    assert checked.returncode == 0, checked.stderr
    assert last_line(checked)["problems"] == []


def test_the_plan_alone_is_shown_as_a_table(
    folder: Path, tmp_path: Path, api: dict[str, str]
) -> None:
    given = ["--label", "state", "--plan-only"]
    done = prefect_augment("rebalance", folder / "in.parquet", tmp_path / "out", *given, **api)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Estimate" in done.stdout
    assert "cracked" in done.stdout
    assert not (tmp_path / "out" / "_manifests").exists()


def test_a_refused_run_ends_with_3(compared: list[object], api: dict[str, str]) -> None:
    done = prefect_augment("rebalance", *compared, "--on-no-gain", "fail", **api)
    assert done.returncode == 3, done.stderr[-3000:]
    assert "report.html" in done.stderr.replace("\n", "")


def test_demo_publishes_a_table_and_images_with_a_compared_generator(
    tmp_path: Path, own: dict[str, str]
) -> None:
    """The generator is trained as for users; what compares is shorter, as the quickstart's run is whole."""
    path = os.pathsep.join([str(HOLD), *filter(None, [os.environ.get("PYTHONPATH")])])
    short = {"PYTHONPATH": path, "CLASSIFIER_STEPS": "40", "QUICK_RUNS": "1"}
    done = prefect_augment("demo", tmp_path, "--json", timeout=900, **own, **short)
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

    checked = prefect_augment("verify", tmp_path / "images")
    assert checked.returncode == 0, checked.stderr


def test_bad_input_ends_with_2_and_says_what_to_do_before_a_server_starts(
    folder: Path, tmp_path: Path
) -> None:
    given = [folder / "in.parquet", tmp_path / "out", "--label", "stat"]
    done = prefect_augment("rebalance", *given, PREFECT_HOME=str(tmp_path / "home"))
    assert done.returncode == 2
    assert "did you mean 'state'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "home").exists()


def test_an_error_within_a_run_is_one_line(
    folder: Path, tmp_path: Path, api: dict[str, str]
) -> None:
    given = [folder / "in.parquet", folder, "--label", "state"]
    done = prefect_augment("rebalance", *given, "--json", **api)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the source")
    assert len(done.stderr.splitlines()) == 1


def test_a_run_whose_group_is_told_to_stop_ends_within_ten_seconds(
    folder: Path, tmp_path: Path, own: dict[str, str]
) -> None:
    """As by `timeout` or systemd."""
    words = ["rebalance", folder / "in.parquet", tmp_path / "out", *GIVEN]
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect_augment.cli.app", *map(str, words)],
        env={**QUIET, **own},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    assert any("Read in.parquet" in line for line in process.stderr)
    os.killpg(process.pid, signal.SIGTERM)
    told = time.monotonic()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert time.monotonic() - told < 10
    said = process.stderr.read().splitlines()
    process.stderr.close()
    assert said[-1].startswith("interrupted: nothing incomplete was published")
    assert not any("Traceback" in line or "ERROR" in line for line in said), said


def test_a_version_that_waits_is_published_by_the_command(
    waiting: dict[str, Any], compared: list[object], api: dict[str, str]
) -> None:
    assert (waiting["status"], waiting["version"]) == ("awaiting_approval", None)

    answer = ["approve", compared[1], waiting["proposal"][:8], "--by", "Ada", "--json"]
    raised = prefect_augment(*answer, "--amount", "cracked=999", **api)
    assert raised.returncode == 2
    assert "999 records were requested" in " ".join(raised.stderr.split())
    done = prefect_augment(*answer, "--amount", "cracked=2", **api)
    assert done.returncode == 0, done.stderr[-3000:]
    result = last_line(done)
    assert result["status"] == "published"
    assert sum(n for o, n in result["counts"]["train"]["cracked"].items() if o != "real") == 2
    assert result["approval"]["by"] == "Ada"


def test_something_moves_on_the_terminal_every_few_seconds(
    folder: Path, tmp_path: Path, own: dict[str, str]
) -> None:
    """From the first second on, when the imports have not ended."""
    words = ["rebalance", folder / "in.parquet", tmp_path / "out", *GIVEN]
    words += ["--params", folder / "quick.yaml"]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect_augment.cli.app", *map(str, words)],
        env={**QUIET, **own, "TERM": "xterm", "COLUMNS": "80"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown, moved, gaps = b"", time.monotonic(), []
    with os.fdopen(ours, "rb", buffering=0) as screen, suppress(OSError):  # its end on Linux
        while part := screen.read(4096):
            shown += part
            gaps.append(time.monotonic() - moved)
            moved = time.monotonic()
    assert process.wait(timeout=60) == 0, shown.decode(errors="replace")[-3000:]
    assert b"confirm on the hold-out" in shown
    assert max(gaps) < 5, sorted(gaps)[-5:]
