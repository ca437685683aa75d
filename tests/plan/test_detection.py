"""Detection sets: rare boxes reach their target, boxes agree with pixels, and go out and in again."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from support.shapes import image_table

pytest.importorskip("albumentations", reason="needs the extra 'images'")

from prefect_augment import open_dataset
from prefect_augment.augmentation import label_preservation as check_policy
from prefect_augment.augmentation.image_policy import ImagePolicy
from prefect_augment.encoding.pixels import decode_image
from prefect_augment.errors import ParameterError
from prefect_augment.flows.augment import augment as augment_flow
from prefect_augment.flows.rebalance import rebalance
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Balance, Classic, Destination, Source
from prefect_augment.publish.export_detection import export_boxes
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import open_store

SIDE = 64
COLOURS = {"square": (255, 0, 0), "disc": (0, 255, 0), "bar": (0, 0, 255)}
SHARES = {"square": 60, "disc": 12, "bar": 4}  # images that hold one at least


def drawn(
    rng: np.random.Generator, names: list[str]
) -> tuple[Image.Image, Image.Image, list[list[float]]]:
    """Shapes of known colours on dim noise, each in a third of the image of its own; the image's mask."""
    noise = rng.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
    image, mask = Image.fromarray(noise), Image.new("L", (SIDE, SIDE))
    boxes = []
    for i, name in enumerate(names):
        w, h = (6, 20) if name == "bar" else (14, 14)
        x, y = 4 + 20 * i + int(rng.integers(0, 4)), int(rng.integers(8, SIDE - h - 8))
        shape = [x, y, x + w - 1, y + h - 1]
        for canvas, fill in ((image, COLOURS[name]), (mask, 255)):
            draw = ImageDraw.Draw(canvas)
            (draw.ellipse if name == "disc" else draw.rectangle)(shape, fill=fill)
        boxes.append([float(v) for v in (x, y, w, h)])
    return image, mask, boxes


def write_coco(folder: Path, seed: int = 0) -> None:
    """A folder with images and one COCO file."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    images: list[Any] = []
    annotations: list[Any] = []
    names = list(COLOURS)
    for rare, n in SHARES.items():
        for _ in range(n):
            held = ["square", rare] if rare != "square" else ["square"] * int(rng.integers(1, 4))
            image, _, boxes = drawn(rng, held)
            path = f"{len(images):03d}.png"
            image.save(folder / "images" / path)
            images.append({"id": len(images), "file_name": path})
            annotations += [
                {"image_id": len(images) - 1, "category_id": names.index(name), "bbox": box}
                for name, box in zip(held, boxes, strict=True)
            ]
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    whole = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(whole))


def n_boxes(table: pa.Table) -> Counter[str]:
    return Counter(c for objects in table["objects"].to_pylist() for c in objects["category"])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detection set balanced by boxes, published by the flow."""
    folder = tmp_path_factory.mktemp("detection")
    write_coco(folder / "in")
    result = augment_flow.fn(
        source=Source(uri=str(folder / "in"), holdout_fraction=0.2),
        destination=Destination(uri=str(folder / "out")),
        balance=Balance(target="sqrt", unit="object"),
        classic=Classic(image="texture", image_prob=1.0),
        seed=1,
    )
    assert result.status == "published"
    return folder


@pytest.mark.slow
def test_rare_boxes_reach_their_target(published: Path) -> None:
    table = open_dataset(str(published / "out")).to_table(split="train")
    real = table.filter(pa.compute.equal(table["aug_origin"], "real"))
    before, after = n_boxes(real), n_boxes(table)
    for name in ("disc", "bar"):
        wanted = np.sqrt(before[name] * before["square"])  # repeat-factor sampling
        assert 0.9 * wanted <= after[name] <= 1.2 * wanted + 2
    assert after["square"] < 1.6 * before["square"], "only by images that hold rare ones"
    assert set(table["aug_origin"].to_pylist()) == {"real", "classic"}


@pytest.mark.slow
def test_the_manifest_holds_the_policy_of_the_copies(published: Path) -> None:
    recipe = open_dataset(str(published / "out")).manifest.recipe
    policy = ImagePolicy.from_config(recipe.classic_config)
    assert policy.digest == recipe.classic_config["digest"]
    assert policy.operations == ImagePolicy.from_params(Classic(image="texture")).operations
    assert recipe.classic_config["libraries"]["albumentations"]


def seen(pixels: NDArray[np.uint8], name: str) -> NDArray[np.bool_]:
    """Pixels of a shape's colour."""
    channel = list(COLOURS).index(name)
    others = np.delete(pixels, channel, axis=2).max(axis=2).astype(int)
    return np.asarray(pixels[:, :, channel].astype(int) - others > 90)


@pytest.mark.slow
def test_every_box_of_a_copy_agrees_with_its_pixels(published: Path) -> None:
    table = open_dataset(str(published / "out")).to_table(split="train")
    copies = table.filter(pa.compute.equal(table["aug_origin"], "classic")).to_pylist()
    n_checked = n_moved = 0
    parents = {r["aug_id"]: r for r in table.to_pylist()}
    for record in copies:
        pixels = decode_image(record["image"]["bytes"])
        n_moved += record["objects"] != parents[record["aug_parent"]]["objects"]
        for name, (x, y, w, h) in zip(
            *map(record["objects"].get, ("category", "bbox")), strict=True
        ):
            if record["objects"]["category"].count(name) > 1:
                continue  # of one colour: not to be told apart
            rows, columns = np.nonzero(seen(pixels, name))
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.abs(np.array(found) - [x, y, x + w, y + h]).max() <= 2.5
            n_checked += 1
    assert n_checked > 20
    assert n_moved > 0.9 * len(copies)


@pytest.mark.slow
@pytest.mark.parametrize("convention", ["coco", "voc", "yolo"])
def test_it_goes_out_and_comes_in_again(published: Path, tmp_path: Path, convention: Any) -> None:
    store = open_store(str(published / "out"))
    done = export_boxes(store, str(tmp_path / "files"), convention=convention)
    for split in ("train", "holdout"):
        before = open_dataset(str(published / "out")).to_table(split=split)
        source = Source(uri=str(tmp_path / "files" / split), format=convention)
        if convention == "yolo":  # its names lie beside the splits
            (tmp_path / "files" / split / "data.yaml").write_bytes(
                (tmp_path / "files" / "data.yaml").read_bytes()
            )
        again_store = open_store(str(tmp_path / f"again-{split}"))
        dataset = ingest(source, store=again_store, seed=0)
        info = load_info(dataset, again_store)
        after = read_part(again_store, info, sorted(info.part_counts))
        assert after.num_rows == before.num_rows == done.n_records[split]
        by_bytes = {r["image"]["bytes"]: r["objects"] for r in after.to_pylist()}
        for record in before.to_pylist():
            objects = by_bytes[record["image"]["bytes"]]
            assert objects["category"] == record["objects"]["category"]
            # float32 in the dataset; YOLO's shares of the image cost a rounding more.
            assert objects["bbox"] == [
                pytest.approx(b, abs=1e-4) for b in record["objects"]["bbox"]
            ]


@pytest.mark.slow
def test_absent_parts_are_not_exported_as_nothing(published: Path, tmp_path: Path) -> None:
    store = open_store(str(published / "out"))
    for wrong in ({"splits": ["trian"]}, {"origins": ["synthetic"]}):
        with pytest.raises(ParameterError, match="has no"):
            export_boxes(store, str(tmp_path / "files"), convention="coco", **wrong)
    assert not (tmp_path / "files").exists()


@pytest.mark.slow
def test_masks_move_with_their_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_policy, "STEPS", 20)  # two colours are told apart sooner
    rng = np.random.default_rng(3)
    labels = ["disc" if i < 4 else "square" for i in range(24)]
    rows = [drawn(rng, [label]) for label in labels]
    table, masks = (image_table([np.asarray(row[k]) for row in rows], labels) for k in (0, 1))
    table = table.append_column("mask", masks["image"])
    pq.write_table(table, tmp_path / "in.parquet")
    augment_flow.fn(
        source=Source(uri=str(tmp_path / "in.parquet"), label="label"),
        destination=Destination(uri=str(tmp_path / "out")),
        balance=Balance(target="majority"),
        classic=Classic(image="texture", image_prob=1.0),
    )
    records = open_dataset(str(tmp_path / "out")).to_table(split="train").to_pylist()
    copies = [r for r in records if r["aug_origin"] == "classic"]
    assert len(copies) >= 8
    for record in copies:
        mask = decode_image(record["mask"]["bytes"])[:, :, 0] > 127
        shape = seen(decode_image(record["image"]["bytes"]), record["label"])
        assert (mask & shape).sum() / (mask | shape).sum() > 0.8
        assert record["mask"]["path"].endswith("-mask.png")


def test_boxes_are_not_compared_and_need_boxes(tmp_path: Path) -> None:
    objects = Balance(unit="object")
    with pytest.raises(ParameterError, match="balance boxes with the flow augment"):
        rebalance.fn(balance=objects, destination=Destination(uri=str(tmp_path / "a")))
    with pytest.raises(ParameterError, match="the records have no boxes"):
        augment_flow.fn(
            source=Source(uri=str(_without_boxes(tmp_path)), label="label"),
            destination=Destination(uri=str(tmp_path / "b")),
            balance=objects,
        )
    with pytest.raises(ParameterError, match="is no convention"):
        export_boxes(open_store(str(tmp_path / "a")), str(tmp_path / "c"), convention="pascal")


def _without_boxes(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    images = [np.asarray(drawn(rng, ["disc"])[0]) for _ in range(30)]
    table = image_table(images, ["a" if i % 3 else "b" for i in range(30)])
    pq.write_table(table, folder / "p.parquet")
    return folder / "p.parquet"
