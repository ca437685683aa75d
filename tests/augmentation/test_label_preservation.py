"""A policy that changes what digits are is found; one that keeps them passes; flows refuse or warn."""

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits
from support.shapes import image_table

pytest.importorskip("albumentations", reason="needs the extra 'images'")
pytest.importorskip("torch", reason="needs the extra 'torch'")

from prefect_augment.augmentation import label_preservation as module
from prefect_augment.augmentation.label_preservation import (
    Flips,
    act_on,
    check_policy,
    find_check,
    policy_page,
)
from prefect_augment.cli.formatting import show_policy
from prefect_augment.errors import LabelDamageError, ParameterError
from prefect_augment.figures.image_grid import ROW_HEIGHT
from prefect_augment.flows.augment import augment
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Balance, Classic, Destination, Report, Source
from prefect_augment.report.contact_sheets import preview
from prefect_augment.schema import DatasetRef, RunResult
from prefect_augment.storage import Store

UPSIDE_DOWN = "- Rotate: {limit: [180, 180], border_mode: 4, p: 1.0}"
LEANING = "- Rotate: {limit: [-8, 8], border_mode: 4, p: 1.0}"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Threes, fives, sixes and nines of 8 pixels, twice as large."""
    folder = tmp_path_factory.mktemp("digits")
    bunch = load_digits()
    rows = np.flatnonzero(np.isin(bunch.target, [3, 5, 6, 9])).tolist()
    small = (Image.fromarray((bunch.images[i] * 15).astype(np.uint8)) for i in rows)
    table = image_table(
        [np.asarray(image.resize((16, 16))) for image in small],
        [f"digit {bunch.target[i]}" for i in rows],
        [f"{i}.png" for i in rows],
    )
    pq.write_table(table, folder / "in.parquet")
    return Source(uri=str(folder / "in.parquet"), label="label")


@pytest.fixture
def numbers(tmp_path: Path) -> Source:
    """A table without images."""
    table = pa.table({"x": np.arange(60.0), "label": ["a", "b"] * 30})
    pq.write_table(table, tmp_path / "t.parquet")
    return Source(uri=str(tmp_path / "t.parquet"), label="label")


@pytest.fixture(autouse=True)
def _short_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four classes of small pictures are learnt sooner."""
    monkeypatch.setattr(module, "STEPS", 60)


@pytest.fixture(scope="module")
def staged(digits: Source, memory_store: Store) -> tuple[Store, DatasetRef]:
    return memory_store, ingest(digits, store=memory_store, seed=0)


@pytest.mark.slow
def test_digits_upside_down_are_found_and_leaning_ones_are_not(
    staged: tuple[Store, DatasetRef], caplog: pytest.LogCaptureFixture
) -> None:
    store, dataset = staged
    bad, good = (
        check_policy(dataset, classic=Classic(policy=text), seed=0, store=store)
        for text in (UPSIDE_DOWN, LEANING)
    )
    assert bad.accuracy > 0.9
    assert {op.name for op in bad.damaging} == {"Rotate", "the whole policy"}
    assert bad.operations[0].rate > 0.4
    assert {bad.operations[0].worst_class, bad.operations[0].becomes} <= {
        f"digit {k}" for k in (3, 5, 6, 9)
    }
    assert not good.damaging
    assert good.operations[0].rate < 0.1
    with pytest.raises(LabelDamageError, match="after Rotate .* mostly taken for 'digit"):
        act_on(bad, Classic(policy=UPSIDE_DOWN, on_label_damage="refuse"))
    with caplog.at_level(logging.WARNING):
        act_on(good, Classic(policy=LEANING, on_label_damage="refuse"))
        assert not caplog.records
        act_on(bad, Classic(policy=UPSIDE_DOWN))
    assert "may change what images show" in caplog.text
    again = check_policy(dataset, classic=Classic(policy=LEANING), seed=0, store=store)
    assert again == good, "the outcome is kept"
    found = find_check(dataset, classic=Classic(policy=LEANING), seed=0, store=store)
    assert found == good, "the report finds it"
    assert store.read(found.picture).startswith(b"\x89PNG")
    assert find_check(dataset, classic=Classic(policy=LEANING), seed=1, store=store) is None
    assert find_check(dataset, classic=Classic(image="none"), seed=0, store=store) is None
    page = policy_page(bad, store)
    assert "data:image/png;base64," in page
    assert "May change what images show: Rotate" in page
    assert "base64" not in policy_page(bad, store, show_pictures=False)


@pytest.mark.slow
def test_the_flow_refuses_before_anything_is_published(digits: Source, tmp_path: Path) -> None:
    def augmented(on_label_damage: Any) -> RunResult:
        return augment.fn(
            source=digits,
            destination=Destination(uri=str(tmp_path / on_label_damage)),
            balance=Balance(target="count", count=190),
            classic=Classic(policy=UPSIDE_DOWN, on_label_damage=on_label_damage),
            report=Report(pictures="none"),
        )

    with pytest.raises(LabelDamageError):
        augmented("refuse")
    assert not (tmp_path / "refuse" / "_manifests").exists()
    assert augmented("ignore").status == "published"


@pytest.mark.slow
def test_tables_and_no_policy_are_refused(
    staged: tuple[Store, DatasetRef], numbers: Source, store: Store
) -> None:
    rows = ingest(numbers, store=store, seed=0)
    with pytest.raises(ParameterError, match="check-policy is of images"):
        check_policy(rows, classic=Classic(), seed=0, store=store)
    store, dataset = staged
    with pytest.raises(ParameterError, match="there is no policy to check"):
        check_policy(dataset, classic=Classic(image="none"), seed=0, store=store)


def test_few_images_say_little() -> None:
    assert Flips(0, 0, -1).low == 0.0
    assert Flips(4, 4, 1).low < 0.5 < Flips(40, 40, 1).low
    assert Flips(100, 20, 1).low == pytest.approx(0.1367, abs=1e-3)


@pytest.mark.slow
def test_a_person_reads_which_operation(staged: tuple[Store, DatasetRef]) -> None:
    store, dataset = staged
    console = Console(file=io.StringIO(), width=200)
    show_policy(
        console, check_policy(dataset, classic=Classic(policy=UPSIDE_DOWN), seed=0, store=store)
    )
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "May change what images show: Rotate" in said
    assert "policy.png" in said


@pytest.mark.slow
def test_a_preview_shows_operations_and_publishes_nothing(digits: Source, numbers: Source) -> None:
    sheet = preview(digits, Classic(image="texture"))
    picture = Image.open(io.BytesIO(sheet))
    assert len(sheet) < 200_000
    one = preview(digits, Classic(policy=LEANING))
    # Of four operations, the whole policy and the originals; and of one.
    assert picture.height - Image.open(io.BytesIO(one)).height == 3 * ROW_HEIGHT
    with pytest.raises(ParameterError, match="the source is a table"):
        preview(numbers, Classic())
