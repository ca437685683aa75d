"""Annotations beside images: one class per image by a stated rule, all boxes kept."""

import json
import shutil
import zipfile
from contextlib import nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_augment.errors import InputError, ParameterError
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Source
from prefect_augment.shards.image_columns import IMAGE_TYPE, image_metadata
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.sources.images.annotations import read_labels
from prefect_augment.sources.images.columns import GROUP, with_group_column
from prefect_augment.sources.images.files import Member
from prefect_augment.storage import Store

# Image number to its objects: (class, x, y, width, height); 24x20 pixels.
OBJECTS = {
    i: [("car", 2.0, 3.0, 10.0, 8.0)] + ([("bike", 6.0, 5.0, 12.0, 10.0)] if i % 3 == 0 else [])
    for i in range(24)
}
SIZE = (24, 20)


@pytest.fixture
def images(tmp_path: Path, messy_images: ModuleType) -> Path:
    """Images in one flat folder, and two that nothing is known of."""
    folder = tmp_path / "in" / "images"
    folder.mkdir(parents=True)
    for i in [*OBJECTS, 98, 99]:
        (folder / f"{i:03d}.png").write_bytes(messy_images.encode(messy_images.picture(i, SIZE)))
    return tmp_path / "in"


def as_coco(folder: Path) -> None:
    names = {"car": 7, "bike": 3}
    found: dict[str, list[dict[str, Any]]] = {
        "images": [{"id": 50 + i, "file_name": f"{i:03d}.png"} for i in OBJECTS],
        "categories": [{"id": k, "name": name} for name, k in names.items()],
        "annotations": [
            {"image_id": 50 + i, "category_id": names[name], "bbox": box, "iscrowd": 0}
            for i, of_image in OBJECTS.items()
            for name, *box in of_image
        ],
    }
    found["images"].append({"id": 1, "file_name": "not_there.png"})
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances.json").write_text(json.dumps(found))


def as_metadata(folder: Path, ending: str) -> None:
    """The imagefolder of `datasets`; one line names a file that is not there, one image has no class."""
    rows = [
        {"file_name": f"{i:03d}.png", "site": "x", "label": of_image[-1][0]}
        for i, of_image in OBJECTS.items()
    ]
    rows += [{"file_name": "not_there.png", "label": "car"}, {"file_name": "098.png", "label": ""}]
    rows += [{"file_name": "../secret.png", "label": "car"}]
    if ending == "csv":
        lines = ["file_name,site,label"]
        lines += [f"{row['file_name']},{row.get('site', '')},{row['label']}" for row in rows]
    else:
        lines = ["not json", "[1]", *map(json.dumps, rows)]
    (folder / "images" / f"metadata.{ending}").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize("packed", [False, True])
def test_an_imagefolder_s_metadata_gives_the_classes(
    images: Path, store: Store, tmp_path: Path, ending: str, packed: bool
) -> None:
    as_metadata(images, ending)
    uri = images
    if packed:
        uri = tmp_path / "in.zip"
        with zipfile.ZipFile(uri, "w") as archive:
            for path in sorted(images.rglob("*.*")):
                archive.write(path, path.relative_to(images))
    info = load_info(ingest(Source(uri=str(uri)), store=store, seed=0), store)
    table = read_part(store, info, ["training", "validation", "holdout"])
    found = {
        image["path"].rpartition("/")[2]: label
        for image, label in zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True)
    }
    assert found == {f"{i:03d}.png": of_image[-1][0] for i, of_image in OBJECTS.items()}
    assert info.n_quarantined == 2
    notes = " ".join(info.notes)
    assert "labels are the field 'label'" in notes
    assert "2 lines of metadata name files that are not there" in notes


def test_metadata_may_name_its_class_as_the_user_says(images: Path, store: Store) -> None:
    as_metadata(images, "jsonl")
    path = images / "images" / "metadata.jsonl"
    path.write_text(path.read_text().replace('"label"', '"species"'))
    source = Source(uri=str(images), label="species")
    info = load_info(ingest(source, store=store, seed=0), store)
    assert (info.label, info.n_quarantined) == ("species", 2)


def test_metadata_without_a_class_leaves_class_folders_what_they_are(
    tmp_path: Path, store: Store, messy_images: ModuleType
) -> None:
    lines = []
    for i in range(24):
        path = tmp_path / "in" / ("car", "bike")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(messy_images.encode(messy_images.picture(i, SIZE)))
        lines.append(json.dumps({"file_name": f"{path.parent.name}/{i}.png", "text": f"no. {i}"}))
    (tmp_path / "in" / "metadata.jsonl").write_text("\n".join(lines))
    info = load_info(ingest(Source(uri=str(tmp_path / "in")), store=store, seed=0), store)
    table = read_part(store, info, ["training", "validation", "holdout"])
    assert set(table["label"].to_pylist()) == {"car", "bike"}


def test_splits_with_metadata_in_each_are_not_mixed(
    images: Path, store: Store, tmp_path: Path
) -> None:
    as_metadata(images, "csv")
    for split in ("train", "test"):
        shutil.copytree(images / "images", tmp_path / "splits" / split)
    with pytest.raises(InputError, match="'test', 'train' look like splits with metadata in each"):
        ingest(Source(uri=str(tmp_path / "splits")), store=store, seed=0)


def as_voc(folder: Path) -> None:
    (folder / "Annotations").mkdir()
    for i, of_image in OBJECTS.items():
        things = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin>"
            f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for name, x, y, w, h in of_image
        )
        text = f"<annotation><filename>{i:03d}.png</filename>{things}</annotation>"
        (folder / "Annotations" / f"{i:03d}.xml").write_text(text)


def as_yolo(folder: Path) -> None:
    (folder / "labels").mkdir()
    (folder / "data.yaml").write_text("names: [bike, car]\nnc: 2\n")
    for i, of_image in OBJECTS.items():
        lines = [
            f"{['bike', 'car'].index(name)} {(x + w / 2) / 24} {(y + h / 2) / 20} {w / 24} {h / 20}"
            for name, x, y, w, h in of_image
        ]
        (folder / "labels" / f"{i:03d}.txt").write_text("\n".join(lines))
    (folder / "labels" / "098.txt").write_text("")  # an image of nothing


WRITERS = {"coco": as_coco, "voc": as_voc, "yolo": as_yolo}


def staged(store: Store, source: Source) -> tuple[Any, list[dict[str, Any]], pa.Table]:
    info = load_info(ingest(source, store=store, seed=0), store)
    table = read_part(store, info, ["training", "validation", "holdout"])
    rows = sorted(table.to_pylist(), key=lambda row: str(row["image"]["path"]))
    return info, rows, table


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("said", [True, False], ids=["said", "found"])
def test_the_label_is_the_rarest_class_of_an_image_and_boxes_are_kept(
    images: Path, store: Store, layout: Any, said: bool
) -> None:
    WRITERS[layout](images)
    source = Source(uri=str(images), format=layout if said else "auto")
    info, rows, table = staged(store, source)
    assert [row["image"]["path"] for row in rows] == [f"images/{i:03d}.png" for i in OBJECTS]
    assert [row["label"] for row in rows] == ["bike" if i % 3 == 0 else "car" for i in OBJECTS]
    for row, of_image in zip(rows, OBJECTS.values(), strict=True):
        assert row["objects"]["category"] == [name for name, *_ in of_image]
        boxes = [box for _, *box in of_image]
        np.testing.assert_allclose(row["objects"]["bbox"], boxes, rtol=1e-5)
    assert table.schema.field("objects").type == pa.struct(
        [("bbox", pa.list_(pa.list_(pa.float32()))), ("category", pa.list_(pa.string()))]
    )
    assert info.n_quarantined == 2
    assert any("unlabelled: no annotation" in note for note in info.notes)
    assert any("8 images hold objects of several classes" in note for note in info.notes)


@pytest.mark.slow
def test_annotated_images_are_decoded_by_datasets_with_their_boxes(
    images: Path, store: Store, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    as_voc(images)
    info, _, _ = staged(store, Source(uri=str(images)))
    loaded = datasets.load_dataset(
        "parquet",
        data_files=[store.full(s.path) for s in info.shards],
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert isinstance(loaded.features["image"], datasets.Image)
    assert {len(row["bbox"]) for row in loaded["objects"]} == {1, 2}


def test_annotations_in_a_zip_are_read_too(images: Path, store: Store, tmp_path: Path) -> None:
    as_coco(images)
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for path in sorted(p for p in images.rglob("*") if p.is_file()):
            archive.write(path, f"set/{path.relative_to(images)}")
    info, rows, _ = staged(store, Source(uri=str(tmp_path / "in.zip")))
    assert len(rows) == 24
    assert any("1 annotated images are not in the source" in note for note in info.notes)


def test_a_json_that_is_no_coco_does_not_hide_class_folders(
    store: Store, tmp_path: Path, messy_images: ModuleType
) -> None:
    for i in range(24):
        path = tmp_path / "in" / ("a" if i % 2 else "b") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(messy_images.encode(messy_images.picture(i)))
    (tmp_path / "in" / "package.json").write_text('{"annotations": 3}')
    _, rows, table = staged(store, Source(uri=str(tmp_path / "in")))
    assert len(rows) == 24
    assert "objects" not in table.column_names


@pytest.mark.parametrize(
    ("layout", "says"), [("coco", "no COCO file"), ("voc", "no Pascal"), ("yolo", "no YOLO")]
)
def test_annotations_that_are_asked_for_and_not_there_are_an_error(
    images: Path, store: Store, layout: Any, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        ingest(Source(uri=str(images), format=layout), store=store, seed=0)


def test_coco_that_lacks_a_field_says_which(images: Path, store: Store) -> None:
    as_coco(images)
    path = images / "annotations" / "instances.json"
    path.write_text(path.read_text().replace('"category_id"', '"category"'))
    with pytest.raises(
        InputError, match=r"instances.json is not whole COCO: KeyError 'category_id'"
    ):
        ingest(Source(uri=str(images)), store=store, seed=0)


DEEP = b"[" * 5_000
READ = ("read", "not Pascal VOC")  # without the file
# What came in from outside and ended whole runs: (files beside the image a.png, what becomes of them).
HOSTILE: dict[str, tuple[dict[str, bytes], str]] = {
    "a class of 400 digits": ({"a.txt": b"9" * 400 + b" 0.5 0.5 0.1 0.1"}, "no YOLO labels"),
    "names by a digit that is no number": (
        {"a.txt": b"0 .5 .5 .1 .1", "data.yaml": "names: {²: cat}".encode()},
        "read",
    ),
    "names nested without end": (
        {"a.txt": b"0 .5 .5 .1 .1", "data.yaml": b"names: " + DEEP},
        "read",
    ),
    "a day that is none": ({"a.txt": b"0 .5 .5 .1 .1", "data.yaml": b"date: 2024-99-99"}, "read"),
    "aliases that stand for 9 ** 11 values": (
        {
            "a.txt": b"0 .5 .5 .1 .1",
            "data.yaml": b"x0: &x0 [a]\n"
            + b"".join(
                b"x%d: &x%d [%s]\n" % (i, i, b",".join([b"*x%d" % (i - 1)] * 9))
                for i in range(1, 12)
            )
            + b"names: *x11",
        },
        "read",
    ),
    "COCO nested without end": ({"x.json": b'{"annotations": ' + DEEP}, "no COCO file"),
    "a box of 400 digits": (
        {
            "x.json": b'{"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "c"}], '
            b'"annotations": [{"image_id": 1, "category_id": 1, "bbox": [1%s, 1, 1, 1]}]}'
            % (b"0" * 400)
        },
        "x.json is not whole COCO: OverflowError",
    ),
    "a WebDataset member nested without end": ({"a.json": DEEP}, "no image has a .cls or .json"),
    "a box without an end": ({"a.txt": b"0 1e999 .5 .1 .1"}, "read"),
    "COCO with a box of NaN": (
        {
            "x.json": b'{"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "c"}], '
            b'"annotations": [{"image_id": 1, "category_id": 1, "bbox": [NaN, 1, 1, 1]}]}'
        },
        "read",
    ),
    "XML nested without end": ({"a.xml": b"<annotation>" + b"<a>" * 50_000}, "not Pascal VOC"),
    "entities in UTF-16": (
        {"a.xml": '<!DOCTYPE a [<!ENTITY b "bb">]><annotation>&b;</annotation>'.encode("utf-16")},
        "not Pascal VOC",
    ),
    "XML in an encoding that is none": (
        {"a.xml": b'<?xml version="1.0" encoding="hex"?><annotation/>'},
        "not Pascal VOC",
    ),
}


@pytest.mark.parametrize(
    "files",
    [
        pytest.param(files, id=name, marks=pytest.mark.slow if "without end" in name else ())
        for name, files in HOSTILE.items()
    ],
)
def test_a_hostile_file_beside_an_image_is_named_or_passed_over(
    files: tuple[dict[str, bytes], str], messy_images: ModuleType
) -> None:
    beside, says = files
    images = {"a.png": messy_images.encode(messy_images.picture(0, SIZE))}
    members = [Member(path, i, data) for i, (path, data) in enumerate((images | beside).items())]
    layout: Any = {".txt": "yolo", ".xml": "voc"}.get(next(iter(beside))[-4:], "coco")
    layout = "webdataset" if "a.json" in beside else layout
    with suppress(InputError):  # the layout is looked for, too
        read_labels(members, Source(uri="x"))
    expected = nullcontext() if says in READ else pytest.raises(InputError, match=says)
    with expected:
        labels = read_labels(members, Source(uri="x", format=layout))
        assert says == "read" or says in " ".join(labels.notes)


def test_xml_with_entities_is_not_parsed(images: Path, store: Store) -> None:
    """A few lines of nested entities unpack to gigabytes."""
    as_voc(images)
    bomb = '<!DOCTYPE a [<!ENTITY b "bb">]><annotation><filename>000.png</filename></annotation>'
    (images / "Annotations" / "000.xml").write_text(bomb)
    info, rows, _ = staged(store, Source(uri=str(images)))
    assert len(rows) == 23
    assert any("1 .xml files are not Pascal VOC" in note for note in info.notes)


def test_annotated_images_may_be_compared_on_plain_ones_in_parquet(
    images: Path, store: Store, tmp_path: Path, messy_images: ModuleType
) -> None:
    as_coco(images)
    rows = [
        {
            "image": {"bytes": messy_images.encode(messy_images.picture(300 + i)), "path": f"{i}"},
            "label": ["car", "bike"][i % 2],
        }
        for i in range(20)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "held.parquet")
    source = Source(uri=str(images), format="coco", holdout_uri=str(tmp_path / "held.parquet"))
    info, found, _ = staged(store, source)
    assert sum(info.part_counts["holdout"].values()) == 20
    assert {row["objects"] is None for row in found} == {True, False}


@pytest.mark.parametrize(
    ("pattern", "group"),
    [
        (r"(p\d+)_", "p12"),
        (r"[(]?(?:x|p)(?P<id>\d+)", "12"),
        (r"(?:\(|[](]|_)(\w+)", "ct"),
        ("((?:a+)+)b$", ""),  # with Python's re this takes longer than anybody lives
    ],
)
def test_a_pattern_of_groups_is_matched_in_linear_time(pattern: str, group: str) -> None:
    path = "p12_ct.png" if group else "a" * 60
    table = pa.table({"image": pa.array([{"bytes": b"", "path": path}, None], IMAGE_TYPE)})
    table = table.replace_schema_metadata(image_metadata(table.schema, ["image"]))
    assert with_group_column(table, pattern)[GROUP].to_pylist() == [group, ""]


def test_a_pattern_that_is_not_linear_is_refused() -> None:
    table = pa.table({"image": pa.array([None], IMAGE_TYPE)})
    table = table.replace_schema_metadata(image_metadata(table.schema, ["image"]))
    with pytest.raises(ParameterError, match="linear time"):
        with_group_column(table, r"(a)(?=b)")
