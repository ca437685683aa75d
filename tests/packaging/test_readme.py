"""What the README tells a new user to type does what it says."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    temporary_settings,
)

import prefect_augment
from prefect_augment import NoModel, open_dataset, rebalance
from prefect_augment.cli.app import app

DOCS = Path(__file__).resolve().parents[2] / "docs"
README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(section: str, language: str = "") -> list[str]:
    """The code blocks of one section, as they stand."""
    text = re.split(r"^##+ ", README.split(f"# {section}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[
        0
    ]
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def parts(
    make_table: Callable[..., pa.Table], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    monkeypatch.chdir(tmp_path)
    pq.write_table(make_table(), tmp_path / "parts.parquet")
    return str(tmp_path / "parts.parquet")


@pytest.mark.flow
@pytest.mark.usefixtures("quick_runs")
def test_the_flow_of_tasks_publishes(parts: str, tmp_path: Path) -> None:
    (code,) = blocks("As tasks in your own flow", "python")
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec", dont_inherit=True), names)
    manifest = names["bring_up"](parts, "state", str(tmp_path / "out"))
    assert manifest.endswith("v00000001.json")
    dataset = open_dataset(tmp_path / "out")
    assert dataset.to_table(origins=["synthetic"]).num_rows > 0
    recipe = dataset.recipe
    assert recipe.prior_train["cracked"] > 1.2 * recipe.prior_true["cracked"], "it brings it up"


@pytest.mark.flow
@pytest.mark.usefixtures("quick_runs")
def test_the_python_section_publishes_and_reads(
    make_table: Callable[..., pa.Table], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table = make_table(counts={"ok": 120, "worn": 12})
    pq.write_table(table.rename_columns([*table.schema.names[:-1], "label"]), "defects.parquet")
    (code,) = blocks("Python", "python")
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec", dont_inherit=True), names)
    assert len(names["weights"]) == names["table"].num_rows


@pytest.mark.slow
@pytest.mark.usefixtures("quick_runs")
def test_the_tutorial_trains_and_rebalances(
    make_table: Callable[..., pa.Table], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_table(counts={"ok": 120, "worn": 12}).to_pandas().to_csv("parts.csv", index=False)
    text = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    train, alone = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    with temporary_settings({PREFECT_API_URL: None, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: False}):
        rebalance("parts.csv", "parts-balanced", label="state", model=NoModel())
        for code in (train, alone):
            exec(compile(code, "tutorial.md", "exec", dont_inherit=True), {})


def test_every_public_name_is_in_the_reference() -> None:
    text = (DOCS / "reference.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: prefect_augment\.[\w.]+\.(\w+)$", text, flags=re.MULTILINE)
    assert sorted(listed) == sorted(prefect_augment.__all__)


def test_every_page_is_in_the_navigation() -> None:
    nav = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    assert {page.name for page in DOCS.glob("*.md")} == set(re.findall(r"[\w-]+\.md", nav))


def test_pictures_are_small_and_each_is_on_a_page() -> None:
    """`docs/take_pictures.py` takes them from a real run."""
    pages = [page.read_text(encoding="utf-8") for page in DOCS.glob("*.md")]
    for picture in DOCS.glob("*.webp"):
        assert picture.stat().st_size < 200 * 1024
        assert any(f"]({picture.name})" in page for page in pages), picture


def test_every_command_that_is_named_exists() -> None:
    known = {
        c.name or c.callback.__name__.replace("_", "-")
        for c in app.registered_commands
        if c.callback
    }
    named = {
        name
        for block in re.findall(r"^```\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
        for name in re.findall(r"^prefect-augment ([a-z-]+)", block, flags=re.MULTILINE)
    }
    assert {"rebalance", "init", "doctor", "inspect"} <= named
    assert named <= known


def test_every_link_into_the_repository_leads_somewhere() -> None:
    root = Path(__file__).resolve().parents[2]
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (root / target).exists(), target


# --- the quickstart, word by word -------------------------------------------------------------


def spawn(
    command: str, folder: Path, environment: dict[str, str], log: Path
) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            ["bash", "-ec", command],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )


def kill(process: subprocess.Popen[bytes]) -> None:
    """End what was started, and whatever it started itself."""
    if process.poll() is None:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
    process.wait(timeout=30)


def press_quick_run(chromium: str, ui: str) -> UUID:
    """Do in the browser what the Quickstart says; return the run that it made."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        page.goto(ui, wait_until="domcontentloaded")
        page.get_by_role("link", name="Deployments").click()
        page.locator('a[href*="deployments/deployment/"]', has_text="balance-dataset").click()
        page.get_by_role("button", name="Run", exact=True).first.click()
        quick = page.get_by_role("menuitem", name="Quick run")
        with page.expect_response("**/create_flow_run") as created:
            quick.click()
        assert created.value.ok, created.value.text()
        run = UUID(created.value.json()["id"])
        browser.close()
    return run


def wait_for(ready: Callable[[], bool], seconds: float, log: Path) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, log.read_text(errors="replace")[-3000:]
        time.sleep(1.0)


@pytest.mark.e2e
def test_the_quickstart_publishes_a_balanced_dataset(
    wheel: zipfile.ZipFile, chromium: str, tmp_path: Path
) -> None:
    """From an empty folder with the wheel, in two terminals and a browser."""
    first, second, last = blocks("Quickstart")
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(str(wheel.filename), empty)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ui = f"http://127.0.0.1:{port}"
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "VIRTUAL_ENV"))},
        "HOME": str(tmp_path / "home"),
        "PREFECT_HOME": str(tmp_path / "home" / ".prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_API_PORT": port,
        "PREFECT_SERVER_UI_API_URL": f"{ui}/api",
        # Nothing is downloaded: the libraries are those of the tests, see below.
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PATH": os.pathsep.join([str(Path(sys.base_prefix) / "bin"), os.environ["PATH"]]),
        "OMP_NUM_THREADS": "1",
    }
    (tmp_path / "home").mkdir()
    environment.pop("PYTHONPATH", None)

    install, start = first.rsplit("\n", 2)[0], "prefect server start"
    assert first.rstrip().endswith(start)
    subprocess.run(["bash", "-ec", install], cwd=empty, env=environment, check=True, timeout=200)
    venv = empty / ".venv"
    (libraries,) = venv.glob("lib/python*/site-packages")
    (libraries / "libraries-of-the-tests.pth").write_text(sysconfig.get_path("purelib"))
    script = venv / "bin" / "prefect"
    script.write_text(f'#!/bin/sh\nexec "{venv}/bin/python" -m prefect "$@"\n')
    script.chmod(0o755)

    begun = time.monotonic()
    processes = []
    log = tmp_path / "server.log"
    try:
        processes.append(spawn(f". .venv/bin/activate\n{start}", empty, environment, log))
        wait_for(lambda: _healthy(ui), 240, log)
        log = tmp_path / "worker.log"
        processes.append(spawn(second.replace("4200", port), empty, environment, log))
        wait_for(lambda: "started!" in log.read_text(errors="replace"), 240, log)
        run = press_quick_run(chromium, ui)
        with SyncPrefectClient(f"{ui}/api") as api:

            def ended() -> bool:
                state = api.read_flow_run(run).state
                assert state is not None
                assert state.name not in ("Failed", "Crashed"), log.read_text()[-3000:]
                return state.is_completed()

            wait_for(ended, 400, log)
        print(
            f"quickstart: {time.monotonic() - begun:.0f} s from the server's start to the end of the run"
        )
        shown = subprocess.run(
            ["bash", "-ec", f". .venv/bin/activate\n{last}"],
            cwd=empty,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert shown.returncode == 0, shown.stderr
        assert "eight" in shown.stdout
    finally:
        for process in reversed(processes):
            kill(process)


def _healthy(ui: str) -> bool:
    try:
        return httpx.get(f"{ui}/api/health", trust_env=False, timeout=5).is_success
    except httpx.TransportError:
        return False
