"""A person fills the form, watches the run, and looks at what it made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from prefect_augment.loading.dataset import open_dataset
from prefect_augment.storage import open_store, read_manifest

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CSV file: sound and cracked parts, one in seven."""
    rng = np.random.default_rng(0)
    lines = ["width,height,site,kind"]
    for i in range(420):
        shift = 1.5 * (i % 7 == 0)
        kind = "sound" if shift == 0 else "cracked"
        site = rng.choice(["north", "south"])
        lines.append(f"{rng.normal(shift):.4f},{rng.normal(0.7 * shift):.4f},{site},{kind}")
    path = tmp_path_factory.mktemp("parts") / "parts.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@dataclass(frozen=True)
class Published:
    """What one run through the form made."""

    run_id: UUID
    destination: Path


@pytest.fixture(scope="module")
def published() -> list[Published]:
    """What the first test here published, for the others to look at."""
    return []


def fill(form: Any, parts: Path, destination: Path) -> None:
    form.fill(source=parts, label="kind", destination=destination)
    form.unfold("source", "balance", "evaluation")
    form.choose("majority", "balance", "target")
    form.take("model", "trees")
    form.field_of_choice("model", "TreesModel", "min_leaf").fill("10")
    form.choose("publish", "evaluation", "on_no_gain")
    form.fill(evaluation__n_seeds=1, evaluation__n_bootstrap=200)


def test_a_filled_form_publishes_what_was_asked_for(
    ui: Any, parts: Path, published: list[Published], tmp_path_factory: pytest.TempPathFactory
) -> None:
    destination = tmp_path_factory.mktemp("form") / "parts-balanced"
    ui.open_deployment()
    ui.shot("01-deployment")
    fill(ui.open_form(), parts, destination)
    ui.shot("02-form")
    run_id = ui.submit()
    ui.shot("03-submitted")
    ui.wait_for_state("Running")
    ui.open_run(run_id, "TaskRuns")
    ui.page.get_by_text("score ", exact=False).first.wait_for(timeout=120_000)
    ui.shot("04-running")
    ui.wait_for_state("Completed")
    ui.open_run(run_id)
    ui.shot("05-completed")
    published.append(Published(run_id, destination))

    manifest = read_manifest(open_store(str(destination)))
    assert manifest.params["balance"]["target"] == "majority"
    assert manifest.params["model"] == {"kind": "trees", "min_leaf": 10, "max_depth": 14}
    assert manifest.params["evaluation"]["n_seeds"] == 1
    assert manifest.class_counts["train"]["cracked"]["synthetic"] > 0
    assert open_dataset(str(destination)).to_table().num_rows > 336  # real ones to train on


def test_the_page_of_the_run_has_plan_report_and_answer(
    ui: Any, published: list[Published]
) -> None:
    made = published[-1]  # the first test may have been run once more
    ui.open_run(made.run_id)
    ui.tab("Artifacts")
    for name in ("answer", "plan", "report", "progress"):
        ui.page.get_by_text(ui.key(made.destination, name)).first.wait_for()
    ui.shot("06-artifacts")

    ui.open_artifact(ui.key(made.destination, "plan"))
    ui.page.get_by_role("row").filter(has_text="cracked").wait_for()
    assert ui.page.get_by_role("row").count() == 3  # head, cracked, sound
    ui.shot("07-plan")

    ui.open_artifact(ui.key(made.destination, "report"))
    ui.page.get_by_role("heading", name="Verdict", exact=False).wait_for()
    widths = ui.widths_of_images()
    assert len(widths) == 2
    assert min(widths) > 0
    ui.shot("08-report")

    ui.open_artifact(ui.key(made.destination, "answer"))
    ui.page.get_by_text("Published version 1", exact=False).first.wait_for()
    ui.shot("09-answer")


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("source__holdout_fraction", "5", "5 is greater than or equal to the maximum of 0.9"),
        ("evaluation__n_seeds", "0", "Value must be greater than or equal to 1"),
    ],  # the server checks the first, the browser the second
)
def test_a_value_out_of_range_is_refused_in_the_form(
    field: str, value: str, told: str, ui: Any, parts: Path, tmp_path: Path
) -> None:
    with ui.server.client() as client:
        before = {run.id for run in client.read_flow_runs()}
    ui.open_deployment()
    form = ui.open_form()
    fill(form, parts, tmp_path / "out")
    form.fill(**{field: value})
    ui.page.get_by_role("button", name="Submit").click()
    ui.page.wait_for_timeout(3000)  # a run that was made all the same would be there by then
    ui.shot(f"10-refused-{field}")
    assert ui.page.url.split("?")[0].endswith("/run")
    shown = form.field(*field.split("__")).evaluate("field => field.validationMessage")
    assert told in shown or ui.page.get_by_text(told, exact=False).count()
    with ui.server.client() as client:
        assert {run.id for run in client.read_flow_runs()} == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("width", "most"), [(1280, 2 * 1600), (390, 4 * 844)])
def test_the_report_is_whole_and_short_at_every_width(
    width: int, most: int, browser: Any, published: list[Published], screenshots: Path
) -> None:
    made = published[-1]  # the first test may have been run once more
    report = made.destination / "_reports" / "v00000001" / "report.html"
    asked: list[str] = []
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_load_state("networkidle")
    page.screenshot(path=screenshots / f"11-report-{width}.png", full_page=True)
    widths = page.evaluate("() => [...document.images].map(image => image.naturalWidth)")
    over = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    height = page.evaluate("document.documentElement.scrollHeight")
    page.close()
    assert height <= most, "two screens of a desktop, four of a phone"
    assert [url for url in asked if not url.startswith(("data:", report.as_uri()))] == []
    assert over <= 0
    assert len(widths) >= 3
    assert min(widths) > 0
