"""Take the pictures of docs/ from a real run: the form, the page of a run in Prefect, its answer, the report.

``python docs/take_pictures.py [FOLDER]`` starts a Prefect server and a worker, presses **Quick run** for the
built-in table, and drives Chromium. It takes minutes; the extras `dev` and `images` have what it needs.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).resolve().parent
DEPLOYMENT = "rebalance/balance-dataset"
WIDTH = 1280
MOST_BYTES = 200 * 1024
SECONDS = 600


def wait_for(what: Callable[[], Any]) -> Any:
    """Call once a second until there is something, and return that."""
    until = time.monotonic() + SECONDS
    while not (found := what()):
        if time.monotonic() > until:
            raise TimeoutError(f"nothing after {SECONDS} s")
        time.sleep(1)
    return found


class Site:
    """A server and a worker in a home of their own, as the README's Quickstart starts them."""

    def __init__(self, home: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.ui = f"http://127.0.0.1:{probe.getsockname()[1]}"
        self.home = home
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")},
            "PYTHONPATH": str(DOCS.parent / "src"),
            "HOME": str(home),
            "PREFECT_HOME": str(home / ".prefect"),
            "PREFECT_API_URL": f"{self.ui}/api",
            "PREFECT_SERVER_UI_API_URL": f"{self.ui}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_DATABASE_TIMEOUT": "60",
        }
        self.started: list[subprocess.Popen[bytes]] = []

    def spawn(self, *words: str) -> None:
        """Start a command of Prefect's that stays."""
        log = (self.home / f"{words[0]}.log").open("wb")
        command = [sys.executable, "-m", "prefect", *words]
        self.started.append(
            subprocess.Popen(
                command, cwd=self.home, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )
        )

    def run(self, module: str, *words: str) -> None:
        """Run a command to its end."""
        command = [sys.executable, "-m", module, *words]
        subprocess.run(command, cwd=self.home, env=self.environment, check=True, stdout=sys.stderr)

    def start(self) -> None:
        """Start the server, deploy, and start the worker."""
        self.spawn("server", "start", "--port", self.ui.rpartition(":")[2])
        wait_for(self.is_up)
        self.run("prefect_augment.cli.app", "init")
        self.run("prefect", "work-pool", "create", "local-process", "--type", "process")
        self.run("prefect", "--no-prompt", "deploy", "--all")
        self.spawn("worker", "start", "--pool", "local-process")
        wait_for(lambda: "started!" in (self.home / "worker.log").read_text())
        time.sleep(10)  # until the UI's dot of the queue is green

    def is_up(self) -> bool:
        """Whether the server answers."""
        try:
            return self.get("health").is_success
        except httpx.TransportError:
            return False

    def get(self, path: str) -> httpx.Response:
        """Ask the server's API."""
        return httpx.get(f"{self.ui}/api/{path}", trust_env=False, timeout=60)

    def close(self) -> None:
        """End what was started."""
        for process in reversed(self.started):
            process.terminate()
            process.wait(timeout=60)


def keep(png: bytes, path: Path) -> None:
    """Write a screenshot as WebP, below the size that a page should load."""
    picture = Image.open(io.BytesIO(png))
    for quality in range(90, 30, -10):
        picture.save(path, quality=quality, method=6)
        if path.stat().st_size < MOST_BYTES:
            break
    print(f"{path}: {picture.width} × {picture.height}, {path.stat().st_size / 1024:.0f} KiB")


def take(site: Site, browser: Any, folder: Path) -> None:
    """Drive the browser through a run, and take the pictures."""
    page = browser.new_page(viewport={"width": WIDTH, "height": 900})
    page.set_default_timeout(120_000)

    def shot(name: str, height: int, width: int = WIDTH) -> None:
        page.set_viewport_size({"width": width, "height": height})
        page.wait_for_timeout(2000)  # for what is being faded in
        keep(page.screenshot(), folder / f"{name}.webp")

    deployment = site.get(f"deployments/name/{DEPLOYMENT}").json()["id"]
    page.goto(f"{site.ui}/v2/deployments/deployment/{deployment}/run")
    page.get_by_role("button", name="Submit").wait_for()
    shot("form", 812)

    created = httpx.post(
        f"{site.ui}/api/deployments/{deployment}/create_flow_run",
        json={"state": {"type": "SCHEDULED"}},
        trust_env=False,
        timeout=60,
    )
    run = created.raise_for_status().json()["id"]
    page.goto("about:blank")  # the run's graph, redrawn all the time, takes a core from the run
    wait_for(lambda: site.get(f"flow_runs/{run}").json()["state"]["type"] == "COMPLETED")

    page.goto(f"{site.ui}/v2/runs/flow-run/{run}?tab=Artifacts")
    page.get_by_text("answer-", exact=False).first.wait_for()
    page.wait_for_timeout(20_000)  # the graph is drawn without a graphics card
    shot("run", 1165)
    page.get_by_text("answer-", exact=False).first.click()
    page.locator('a[href*="artifacts/artifact"]').first.click()
    page.wait_for_url("**/artifacts/artifact/**")
    page.get_by_text("Published version 1", exact=False).first.wait_for()
    shot("answer", 900)

    (report,) = site.home.glob("prefect-augment/*/_reports/v00000001/report.html")
    page.goto(report.as_uri())
    shot("report", 1012, width=1100)
    page.close()


def main() -> None:
    """Take all pictures."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS
    chromium = (
        os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    )
    home = Path(tempfile.mkdtemp(prefix="demo-"))
    site = Site(home)
    try:
        site.start()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"]
            )
            take(site, browser, folder)
            browser.close()
    finally:
        site.close()
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
