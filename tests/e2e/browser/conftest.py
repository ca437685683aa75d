"""A real Chromium on the UI of the real server: pages, the form, a picture of every step.

Selectors go by what a person reads (labels, buttons), checked with Prefect 3.8.8; the ids that the UI
makes are random. The names of the form's fields are read from the deployment, so that a better title
in `params.py` does not break a test.
"""

import contextlib
import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin
from uuid import UUID

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
RUN_MS = 240_000
REBALANCE = "rebalance/rebalance-nightly"


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """A browser for one module: Playwright keeps an event loop running for as long as it is open."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """The folder that a picture of every step goes to."""
    folder = Path(os.environ.get("E2E_SCREENSHOTS", REPOSITORY / "build" / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def working(deployed: Any, worker: Any) -> Any:
    """The server with our deployments and a worker."""
    return deployed


@pytest.fixture
def ui(working: Any, browser: Any, screenshots: Path) -> "Iterator[Ui]":
    """A fresh page of the UI; nothing that is not on loopback is asked for."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(120_000)  # on a busy machine
    # The UI itself asks its vendor's host for settings, whatever it is told.
    page.route("**/*", lambda route: route.continue_() if _local(route) else route.abort())
    yield Ui(page, working, screenshots)
    page.close()


def _local(route: Any) -> bool:
    return route.request.url.startswith(("http://127.0.0.1:", "data:", "blob:", "file:"))


class Ui:
    """What a person does on the pages of Prefect's UI."""

    def __init__(self, page: Any, server: Any, screenshots: Path) -> None:
        self.page, self.server, self.screenshots = page, server, screenshots

    def shot(self, name: str) -> None:
        """Keep a picture of the whole page."""
        self.page.wait_for_timeout(700)  # for what is still being faded in
        self.page.screenshot(path=self.screenshots / f"{name}.png", full_page=True)

    # --- a deployment and its form ---

    def open_deployment(self, name: str = REBALANCE) -> None:
        """Go to a deployment's page."""
        self._go(f"deployments/deployment/{self.server.deployment_id(name)}")
        self.page.get_by_role("button", name="Run", exact=True).first.wait_for()

    def open_form(self, name: str = REBALANCE) -> "Form":
        """Go from a deployment's page to its form, as a person does."""
        self._choose(self.page.get_by_role("button", name="Run", exact=True).first, "Custom run")
        return self._form(name)

    def open_filled_form(self, parameters: dict[str, Any], name: str = REBALANCE) -> "Form":
        """Open the form by a link that fills it."""
        given = quote(json.dumps(parameters))
        where = f"deployments/deployment/{self.server.deployment_id(name)}/run"
        self._go(f"{where}?parameters={given}")
        return self._form(name)

    def _form(self, name: str) -> "Form":
        self.page.get_by_role("button", name="Submit").wait_for()
        self.page.get_by_text("Enforce Parameter Schema").wait_for()
        with self.server.client() as client:
            schema = client.read_deployment_by_name(name).parameter_openapi_schema
        return Form(self.page, schema)

    def submit(self) -> UUID:
        """Submit the form and go to the page of the run that it made."""
        created = self.press(self.page.get_by_role("button", name="Submit"), "**/create_flow_run")
        run_id = UUID(created.json()["id"])
        self.open_run(run_id)
        return run_id

    def press(self, button: Any, path: str) -> Any:
        """Press a button, again while the server is busy, and return the response to its request.

        Prefect reads, checks what was given, then writes, in one transaction. Where somebody else has
        written in between, sqlite gives up, the server answers 503 and the page asks to try again.
        """
        until = time.monotonic() + RUN_MS / 1000
        self.page.wait_for_timeout(1000)  # a click while the form still redraws itself is lost
        while True:
            with self.page.expect_response(path, timeout=90_000) as answered:
                button.click()
            if answered.value.status != 503 or time.monotonic() > until:
                break
            self.page.wait_for_timeout(random.uniform(100, 1500))
        assert answered.value.ok, answered.value.text()
        return answered.value

    # --- a run ---

    def open_run(self, run_id: UUID, tab: str = "Logs") -> None:
        """Go to a run's page."""
        self._go(f"runs/flow-run/{run_id}?tab={tab}")
        self.page.get_by_role("tab", name="Parameters").wait_for()

    def leave(self) -> None:
        """Close the run's page: its graph, redrawn without a graphics card, takes a core from the run."""
        self.page.goto("about:blank")

    def tab(self, name: str) -> None:
        """Open a tab of the run's page."""
        self.page.get_by_role("tab", name=name).click()

    def menu(self, item: str) -> None:
        """Choose from the menu of the run's page."""
        self._choose(self.page.get_by_role("button", name="Open menu").first, item)

    def _choose(self, button: Any, item: str) -> None:
        """Choose from a button's menu; a click while the page still redraws itself is lost."""
        from playwright.sync_api import TimeoutError as NotShownError

        for _ in range(20):
            button.click()
            with contextlib.suppress(NotShownError):
                self.page.get_by_role("menuitem", name=item).click(timeout=6_000)
                return
            self.page.keyboard.press("Escape")
        raise AssertionError(f"the menu has no {item!r}")

    def cancel_run(self) -> None:
        """Cancel the run whose page is open."""
        self.menu("Cancel")
        dialog = self.page.get_by_role("alertdialog")
        dialog.get_by_role("button", name="Cancel Flow Run").click()
        dialog.wait_for(state="hidden")

    def retry_run(self) -> None:
        """Retry the run whose page is open, once it has ended."""
        self.menu("Retry")
        dialog = self.page.get_by_role("dialog").or_(self.page.get_by_role("alertdialog"))
        dialog.get_by_role("button", name="Retry").click()
        dialog.wait_for(state="hidden")

    def open_answer(self) -> Any:
        """Open the dialog that asks for an answer to a suspended run."""
        self.menu("Resume")
        dialog = self.page.get_by_role("dialog").or_(self.page.get_by_role("alertdialog"))
        dialog.get_by_role("button", name="Select Decision").wait_for()  # its form is loaded late
        return dialog

    def wait_for_state(self, name: str) -> None:
        """Wait until the page, left alone, shows the state of the run."""
        self.tab("Logs")  # where no task's state is shown
        badge = self.page.get_by_text(name, exact=True).first
        badge.wait_for(timeout=RUN_MS)

    @staticmethod
    def key(destination: Path, name: str) -> str:
        """Return the key of a dataset's artifact."""
        from prefect_augment.tasks._display import artifact_key, dataset_slug

        return artifact_key(name, dataset_slug(str(destination)))

    def open_artifact(self, key: str) -> None:
        """Go to the newest artifact of a key."""
        self._go(f"artifacts/key/{key}")
        # Not by a click: the page loads its list again and again, and a click on a link that is replaced is lost.
        link = self.page.locator('a[href*="artifacts/artifact"]').first
        self.page.goto(urljoin(self.page.url, link.get_attribute("href")))

    def widths_of_images(self) -> list[int]:
        """Natural widths of all pictures of ours on the page, once they are loaded or have failed."""
        images = "[...document.querySelectorAll('main img, img[src^=\"data:\"]')]"
        self.page.wait_for_function(f"() => {images}.every(image => image.complete)")
        widths: list[int] = self.page.evaluate(f"() => {images}.map(image => image.naturalWidth)")
        return widths

    def _go(self, path: str) -> None:
        self.page.goto(f"{self.server.ui_url}/v2/{path}")


class Form:
    """The form of a deployment's parameters; a field of the folded part is named `section.field`."""

    def __init__(self, page: Any, schema: dict[str, Any]) -> None:
        self.page, self.schema = page, schema

    def fill(self, **values: Any) -> None:
        """Fill texts and numbers: `source="…"`, `evaluation__n_seeds=1`."""
        for name, value in values.items():
            self.field(*name.split("__")).fill(str(value))

    def unfold(self, *sections: str) -> None:
        """Open the folded part for tables, and sections of it."""
        self._group("tables").get_by_role("tab", name="Tables", exact=True).click()
        for section in sections:
            title = self._section(section)["title"]
            self._group(title).get_by_role("tab", name=title, exact=True).click()

    def choose(self, option: str, *names: str) -> None:
        """Choose one of a list."""
        where = self._group(self._section(names[0])["title"]) if names[1:] else self.page
        title = self._title(*names)
        where.get_by_role("button", name=f"Select {title}").click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def take(self, section: str, tab: str) -> None:
        """Take one of the alternatives of a section, by its tab."""
        group = self._group(self._section(section)["title"])
        group.get_by_role("tab", name=tab, exact=True).click()

    def field(self, *names: str) -> Any:
        """The input of a field."""
        where = self._group(self._section(names[0])["title"]) if names[1:] else self.page
        return where.get_by_label(f"{self._title(*names)} (Optional)", exact=True)

    def field_of_choice(self, section: str, model: str, field: str) -> Any:
        """The input of a field of the alternative that was taken."""
        title = self.schema["definitions"][model]["properties"][field]["title"]
        group = self._group(self._section(section)["title"])
        return group.get_by_label(f"{title} (Optional)", exact=True)

    def _title(self, name: str, field: str = "") -> str:
        if not field:
            return str(self.schema["properties"][name]["title"])
        return str(self._fields(name)[field]["title"])

    def _section(self, name: str) -> dict[str, Any]:
        return dict(self.schema["definitions"]["TableSettings"]["properties"][name])

    def _fields(self, section: str) -> dict[str, Any]:
        shown = self._section(section)["anyOf"][0]
        if "$ref" in shown:
            shown = self.schema["definitions"][shown["$ref"].rsplit("/", 1)[1]]
        return dict(shown["properties"])

    def _group(self, title: str) -> Any:
        label = f'//label[normalize-space()="{title} (Optional)"]'
        return self.page.locator(f"xpath={label}/ancestor::div[fieldset][1]/fieldset").first
