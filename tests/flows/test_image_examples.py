"""The worked examples of docs/images.md, run as they stand there on few pictures and for few steps.

Each is a whole run or two, a minute in all: they stand with the tests that go from end to end.
"""

import re
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
import yaml
from PIL import Image

pytest.importorskip("torch", reason="the extra 'torch'")
pytest.importorskip("albumentations", reason="the extra 'images'")

import prefect_augment
from prefect_augment import open_dataset
from prefect_augment.cli.app import app
from prefect_augment.flows.latents import anomalies, shift_attribute
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.maintenance.verify import verify
from prefect_augment.nn import machine
from prefect_augment.params import Balance, Budget, Destination, DiffusionModel, Evaluation
from prefect_augment.plan import estimate as estimates
from prefect_augment.schema import RunResult
from prefect_augment.storage import open_store

XRAYS, CELLS, DEFECTS, OWN = (
    "Chest X-rays",
    "Blood cells",
    "Industrial defects",
    "Your own faces or vehicles",
)
# What is fewer and shorter than on the page.
BUDGET = Budget(steps=12, batch_size=16, device="cpu")
QUICK = Evaluation(n_seeds=1, n_settings=1, n_bootstrap=100)

Names = dict[str, Any]


@pytest.fixture(scope="module")
def sections(repository: Path) -> dict[str, str]:
    page = (repository / "docs" / "images.md").read_text(encoding="utf-8")
    return {
        part.partition("\n")[0]: part for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    }


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def run_section(
    sections: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Names]]:
    """Run the Python of a section in the folder of its data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(estimates, "_STEPS_RANGE", (3, 3))
    monkeypatch.setattr(machine, "_CLASSIFIER_SIDES", (8, 32))
    for flow in (rebalance, anomalies, shift_attribute):
        monkeypatch.setattr(prefect_augment, flow.fn.__name__, _reduced(flow.fn), raising=False)

    def run(name: str) -> Names:
        names: Names = {}
        for code in blocks(sections[name], "python"):
            exec(compile(code, "images.md", "exec", dont_inherit=True), names)
        return names

    return run


def _reduced(flow: Callable[..., Any]) -> Callable[..., Any]:
    """Return the flow, without Prefect and with little effort, whatever the page says of it."""

    @wraps(flow)
    def reduced(**given: Any) -> Any:
        if isinstance(given.get("model"), DiffusionModel):
            given["model"] = given["model"].model_copy(update={"width": 16, "sampler_steps": 1})
        if flow is rebalance.fn:
            given["evaluation"] = QUICK
        return flow(**{**given, "budget": BUDGET})

    return reduced


def some_of(source: Path, destination: Path, counts: Mapping[str, int]) -> list[str]:
    """Write the first so many records of each class; return their paths."""
    table = pq.read_table(source)
    labels = np.array(table["label"].to_pylist())
    rows = [np.flatnonzero(labels == name)[:n] for name, n in counts.items()]
    taken = table.take(pa.array(np.sort(np.concatenate(rows))))
    pq.write_table(taken, destination)
    return [row["path"] for row in taken["image"].to_pylist()]


def real_records(folder: Path) -> list[dict[str, Any]]:
    dataset = open_dataset(str(folder), verify=True)
    return [
        row
        for part in dataset.class_counts
        for row in dataset.to_table(part, origins=["real"]).to_pylist()
    ]


def check_published(result: RunResult, folder: Path) -> None:
    assert result.status == "published"
    assert result.verdict is not None
    assert Path(result.report).is_file()
    assert not verify(open_store(str(folder))).problems


# --- the page ---


def test_every_section_with_python_is_run_here(sections: Mapping[str, str]) -> None:
    assert [name for name, text in sections.items() if blocks(text, "python")] == [
        XRAYS, CELLS, DEFECTS, OWN,
    ]  # fmt: skip


def test_commands_and_parameters_on_the_page_are_taken(sections: Mapping[str, str]) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = [
        line for text in sections.values() for b in blocks(text, "sh") for line in b.splitlines()
    ]
    for line in lines:
        program, name, *arguments = shlex.split(line)
        assert program == "prefect-augment"
        commands[name].make_context(name, arguments)  # options that are not there are an error
    given = [yaml.safe_load(b) for text in sections.values() for b in blocks(text, "yaml")]
    for parameters in given:
        rebalance.validate_parameters(parameters)
    assert len(lines) == 2
    assert len(given) == 1


# --- the examples ---


@pytest.mark.e2e
def test_x_rays_are_compared_on_a_test_set_of_their_own(
    run_section: Callable[[str], Names], shared_data: Path, tmp_path: Path
) -> None:
    images = shared_data / "images"
    some_of(images / "pneumonia_train.parquet", tmp_path / "pneumonia_train.parquet",
            {"pneumonia": 160, "normal": 40})  # fmt: skip
    some_of(images / "pneumonia_test.parquet", tmp_path / "pneumonia_test.parquet",
            {"pneumonia": 40, "normal": 40})  # fmt: skip
    result = run_section(XRAYS)["xrays"]
    check_published(result, tmp_path / "pneumonia-balanced")
    assert set(result.counts) == {"train"}, "the test set is not copied"
    assert Counter(row["label"] for row in real_records(tmp_path / "pneumonia-balanced")) == {
        "pneumonia": 160, "normal": 40,
    }  # fmt: skip
    assert any("images on this CPU" in note for note in result.notes), "and no generator"


@pytest.mark.e2e
def test_no_smear_of_blood_cells_is_on_both_sides(
    run_section: Callable[[str], Names], shared_data: Path, tmp_path: Path
) -> None:
    some_of(shared_data / "images" / "bccd_cells_train.parquet", tmp_path / "bccd_cells_train.parquet",
            {"RBC": 90, "WBC": 36, "Platelets": 36})  # fmt: skip
    names = run_section(CELLS)
    check_published(names["cells"], tmp_path / "cells-balanced")
    assert min(map(len, names["smears"])) > 5
    wanted = {c.name: c.n_synthetic for c in names["cells"].plan.classes}
    assert min(wanted["WBC"], wanted["Platelets"]) > 0
    assert any(strategy.family == "model" for strategy in strategies_of(names["cells"])), (
        "a generator was tried"
    )


def strategies_of(result: RunResult) -> list[Any]:
    return [score.strategy for score in result.strategies]


@pytest.mark.e2e
def test_masks_of_defects_are_no_pictures(
    run_section: Callable[[str], Names], shared_data: Path, tmp_path: Path
) -> None:
    counts = {"blowhole": 14, "break": 12, "crack": 12, "fray": 12, "free": 36, "uneven": 12}
    for name, n in counts.items():
        (tmp_path / "magnetic_tile_folder" / name).mkdir(parents=True)
        folder = shared_data / "images" / "magnetic_tile_folder" / name
        for photograph in sorted(folder.glob("*.jpg"))[:n]:
            for path in (photograph, photograph.with_suffix(".png")):
                if path.exists():
                    shutil.copy(path, tmp_path / "magnetic_tile_folder" / name / path.name)
    names = run_section(DEFECTS)
    check_published(names["defects"], tmp_path / "tiles-balanced")
    rows = real_records(tmp_path / "tiles-balanced")
    assert Counter(row["label"] for row in rows) == counts
    assert {Path(row["image"]["path"]).suffix for row in rows} == {".jpg"}
    targets = {c.name: c.target for c in names["defects"].plan.classes}
    assert targets["fray"] == targets["crack"] == 100
    assert names["defects"].plan.n_synthetic == 0
    assert set(names["strange"].latents.summary["normal"]) == {"free"}
    assert "error_map" in names["flagged"]


KINDS = {"van": 24, "truck": 11, "tractor": 3}  # vehicles of each, with two pictures from each side


def photograph(kind: str, view: str, rng: np.random.Generator) -> Image.Image:
    """A bright body on the road: long from the side, high for a truck, on large wheels for a tractor."""
    pixels = rng.normal(70, 12, (16, 24, 3))
    left, right = (3, 21) if view == "side" else (8, 16)
    top = {"van": 7, "truck": 2, "tractor": 9}[kind]
    pixels[top:13, left:right] = rng.integers(120, 230, 3) + rng.normal(
        0, 8, (13 - top, right - left, 3)
    )
    pixels[13 if kind != "tractor" else 10 : 15, left : left + 3] = 20
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.e2e
def test_own_pictures_are_balanced_within_an_attribute_and_split_by_vehicle(
    run_section: Callable[[str], Names], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    number = 0
    for kind, n in KINDS.items():
        (tmp_path / "vehicles" / kind).mkdir(parents=True)
        for _ in range(n):
            number += 1
            for view in ("side", "side", "front") if kind == "van" else ("side", "front"):
                for _ in range(2):
                    name = f"v{number:03d}_{view}_{rng.integers(1 << 30):010d}.jpg"
                    photograph(kind, view, rng).save(
                        tmp_path / "vehicles" / kind / name, quality=95
                    )
    names = run_section(OWN)
    result = names["vehicles"]
    check_published(result, tmp_path / "vehicles-balanced")
    strata = {(c.label, c.by["view"]): c for c in result.plan.classes}
    assert set(strata) == {(kind, view) for kind in KINDS for view in ("front", "side")}
    assert strata["truck", "front"].target > strata["truck", "front"].n_real
    planned = rebalance.fn(
        source=names["own"],
        destination=Destination(uri="vehicles-balanced"),
        balance=Balance(target="sqrt", by=["view"]),
        model=DiffusionModel(),
        plan_only=True,
    ).plan
    by_name = {c.label: c for c in planned.classes if c.by["view"] == "front"}
    assert by_name["truck"].n_synthetic > 0
    assert by_name["tractor"].n_synthetic == 0
    assert "a model needs 16" in by_name["tractor"].note
    assert all(sides for sides in names["sides"])
    rows = real_records(tmp_path / "vehicles-balanced")
    assert {"kind", "vehicle", "view"} <= set(rows[0])
    assert names["turned"].latents.summary["column"] == "view"
    assert names["told_apart"] > 0.9, "long and short bodies are far apart in any code"
