"""Image sources of every kind: each readable file is staged unchanged, every other one accounted for."""

import io
import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefect_augment.errors import InputError, ParameterError, SourceChangedError
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import ColumnOverride, Source
from prefect_augment.report.profile import profile
from prefect_augment.schema import DatasetInfo
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Store, open_store

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def staged(store: Store, source: Source) -> tuple[DatasetInfo, pa.Table, dict[str, str]]:
    """Info, all staged records, and reason by file or member of what was quarantined."""
    info = load_info(ingest(source, store=store, seed=0), store)
    table = read_part(store, info, ["training", "validation", "holdout"])
    out = {}
    for shard in info.quarantine:
        for row in pq.read_table(io.BytesIO(store.read(shard.path))).to_pylist():
            out[row["file"]] = row["reason"]
    return info, table, out


def by_path(table: pa.Table, column: str = "label") -> dict[str, str]:
    return {
        image["path"]: label
        for image, label in zip(table["image"].to_pylist(), table[column].to_pylist(), strict=True)
    }


def contents(table: pa.Table) -> dict[str, bytes]:
    return {image["path"]: image["bytes"] for image in table["image"].to_pylist()}


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


@pytest.fixture
def class_files(messy_images: ModuleType) -> dict[str, bytes]:
    """Thirty images in two class folders."""
    return {
        f"{label}/{i:02d}.png": messy_images.encode(messy_images.picture(100 * k + i))
        for k, (label, n) in enumerate((("head", 18), ("tail", 12)))
        for i in range(n)
    }


# --- folders ----------------------------------------------------------------------------------


def test_a_messy_folder_stages_every_readable_file_unchanged_and_loses_none(
    tmp_path: Path, store: Store, messy_images: ModuleType
) -> None:
    messy = messy_images.make_messy_folder(tmp_path / "in")
    info, table, out = staged(store, Source(uri=str(messy.root)))
    assert contents(table) == messy.readable
    assert by_path(table) == messy.labels
    assert out == messy.quarantined
    assert info.n_quarantined == len(messy.quarantined)
    assert table.num_rows == len(messy.readable)
    assert any("2 links that lead back" in note for note in info.notes)
    assert any("1 file that is no image was skipped: 1 .md" in n for n in info.notes)


def test_every_file_of_a_messy_folder_is_counted_once(
    tmp_path: Path, store: Store, messy_images: ModuleType
) -> None:
    messy = messy_images.make_messy_folder(tmp_path / "in")
    info, _, _ = staged(store, Source(uri=str(messy.root)))
    assert sum(f.n_records for f in info.sources) == len(messy.readable)
    assert sum(f.n_quarantined for f in info.sources) == len(messy.quarantined)
    assert [f.path for f in info.sources if f.path == "two words/"]


def test_info_says_what_kinds_of_images_there_are(
    tmp_path: Path, store: Store, messy_images: ModuleType
) -> None:
    messy = messy_images.make_messy_folder(tmp_path / "in")
    info, _, _ = staged(store, Source(uri=str(messy.root)))
    image = info.image
    assert info.modality == "image"
    assert image is not None
    assert {"1", "L", "LA", "RGB", "RGBA", "P", "CMYK", "LAB", "I;16", "F"} <= image.modes.keys()
    assert sum(image.modes.values()) == sum(image.formats.values()) == len(messy.readable)
    assert (image.n_animated, image.n_rotated, image.n_channels) == (3, 2, 3)
    assert image.most_common_size == (24, 20)
    assert image.sizes["24x20"] >= 60
    assert (image.smallest_side, image.largest_side) == (1, 400)
    # The turned image is counted as it is shown: upright.
    assert image.sizes["20x24"] == 1
    (column,) = (c for c in info.columns if c.name == "image")
    assert column.kind == "image"


def test_content_keys_are_the_hash_of_the_files_bytes(
    tmp_path: Path, store: Store, class_files: dict[str, bytes]
) -> None:
    _, table, _ = staged(store, Source(uri=str(write(tmp_path / "in", class_files))))
    for image, key in zip(
        table["image"].to_pylist(), table["content_key"].to_pylist(), strict=True
    ):
        assert key == blake2b(image["bytes"], digest_size=16).hexdigest()


def test_staged_images_are_decoded_by_datasets(
    tmp_path: Path, store: Store, class_files: dict[str, bytes]
) -> None:
    datasets = pytest.importorskip("datasets")
    info, table, _ = staged(store, Source(uri=str(write(tmp_path / "in", class_files))))
    loaded = datasets.load_dataset(
        "parquet",
        data_files=[store.full(s.path) for s in info.shards],
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert isinstance(loaded.features["image"], datasets.Image)
    assert len(loaded) == table.num_rows == 30
    assert loaded[0]["image"].size == (24, 20)


def test_include_and_exclude_choose_files_by_name_and_path(
    tmp_path: Path, store: Store, class_files: dict[str, bytes], messy_images: ModuleType
) -> None:
    jpegs = {
        path.replace(".png", ".JPG"): messy_images.encode(messy_images.picture(7000 + i), "JPEG")
        for i, path in enumerate(class_files)
    }
    folder = write(tmp_path / "in", {**class_files, **jpegs})
    _, table, _ = staged(store, Source(uri=str(folder), exclude=["*.png"]))
    assert by_path(table).keys() == jpegs.keys()
    _, table, _ = staged(
        store, Source(uri=str(folder), include=["head/*.jpg", "**/0*.png"], exclude=["*5.png"])
    )
    assert {"head/17.JPG", "tail/03.png"} <= by_path(table).keys()
    assert not {"tail/03.JPG", "head/05.png", "head/17.png"} & by_path(table).keys()


def test_masks_beside_images_are_pointed_out_with_the_remedy(
    tmp_path: Path, store: Store, class_files: dict[str, bytes], messy_images: ModuleType
) -> None:
    jpegs = {
        path.replace(".png", ".jpg"): messy_images.encode(messy_images.picture(7000 + i), "JPEG")
        for i, path in enumerate(class_files)
        if path.startswith("tail")
    }
    source = Source(uri=str(write(tmp_path / "in", {**class_files, **jpegs})))
    found = profile(source)
    assert "looks like masks: in 'tail' every .jpg has a .png" in found.notes[0]
    assert "source.exclude='*.png'" in found.notes[0]
    clean = profile(source.model_copy(update={"exclude": ["*.png"], "include": ["*"]}))
    assert not any("masks" in note for note in clean.notes)


def test_folders_around_the_class_folders_are_seen_through(
    tmp_path: Path, store: Store, class_files: dict[str, bytes]
) -> None:
    files = {f"my data/v2/{path}": data for path, data in class_files.items()}
    files["my data/LICENSE.txt"] = b"mine"
    _, table, out = staged(store, Source(uri=str(write(tmp_path / "in", files))))
    assert Counter(table["label"].to_pylist()) == {"head": 18, "tail": 12}
    assert not out


def test_split_folders_are_not_taken_for_classes(
    tmp_path: Path, store: Store, class_files: dict[str, bytes]
) -> None:
    files = {f"{s}/{path}": data for s in ("train", "Test") for path, data in class_files.items()}
    folder = write(tmp_path / "in", files)
    with pytest.raises(InputError, match=r"'Test', 'train' look like splits.*source.holdout_uri"):
        ingest(Source(uri=str(folder)), store=store, seed=0)
    _, table, _ = staged(store, Source(uri=str(folder / "train")))
    assert table.num_rows == 30


def test_classes_may_be_called_like_splits(
    tmp_path: Path, store: Store, class_files: dict[str, bytes]
) -> None:
    files = {
        path.replace("head", "train").replace("tail", "test"): data
        for path, data in class_files.items()
    }
    _, table, _ = staged(store, Source(uri=str(write(tmp_path / "in", files))))
    assert Counter(table["label"].to_pylist()) == {"train": 18, "test": 12}


def test_a_column_may_be_named_after_what_is_asked_for(
    tmp_path: Path, store: Store, class_files: dict[str, bytes]
) -> None:
    folder = write(tmp_path / "in", class_files)
    info, table, _ = staged(store, Source(uri=str(folder), label="defect"))
    assert info.label == "defect"
    assert set(by_path(table, "defect").values()) == {"head", "tail"}


def test_the_same_folder_in_memory_gives_the_same_records(
    tmp_path: Path, class_files: dict[str, bytes]
) -> None:
    local = write(tmp_path / "in", class_files)
    remote = open_store("memory://ingest-images-in")
    for path, data in class_files.items():
        remote.put(path, data)
    one = ingest(Source(uri=str(local)), store=open_store(str(tmp_path / "a")), seed=0)
    other = ingest(Source(uri=remote.uri), store=open_store(str(tmp_path / "b")), seed=0)
    assert one.digest == other.digest


def test_a_name_that_is_not_unicode_is_no_trouble(
    tmp_path: Path, store: Store, class_files: dict[str, bytes]
) -> None:
    folder = write(tmp_path / "in", class_files)
    odd = bytes(folder) + b"/head/caf\xe9.png"
    try:
        Path(odd.decode("utf-8", "surrogateescape")).write_bytes(class_files["head/00.png"])
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    _, table, _ = staged(store, Source(uri=str(folder)))
    assert "head/caf\\xe9.png" in by_path(table)


def test_a_file_that_changes_while_it_is_read_stops_the_run(
    tmp_path: Path, store: Store, class_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "in", class_files)
    plain = Store.read

    def read(self: Store, path: str) -> bytes:
        if path == "tail/03.png":
            (folder / path).write_bytes(b"another one")
        return plain(self, path)

    monkeypatch.setattr(Store, "read", read)
    with pytest.raises(SourceChangedError, match=r"tail/03.png changed"):
        ingest(Source(uri=str(folder)), store=store, seed=0)


def test_an_unchanged_folder_is_not_read_again(
    tmp_path: Path, store: Store, class_files: dict[str, bytes]
) -> None:
    source = Source(uri=str(write(tmp_path / "in", class_files)))
    first = ingest(source, store=store, seed=0)
    shards = {s.path: store.size(s.path) for s in load_info(first, store).shards}
    for path in shards:
        store.delete(path)
    assert ingest(source, store=store, seed=0) == first
    assert not any(store.exists(path) for path in shards)


def test_a_folder_without_a_usable_image_is_an_error(tmp_path: Path, store: Store) -> None:
    folder = write(tmp_path / "in", {"a/x.png": b"no", "b/y.png": b"no"})
    with pytest.raises(InputError, match=r"none of the source's 2 images.*undecodable"):
        ingest(Source(uri=str(folder)), store=store, seed=0)


def test_the_limit_on_megapixels_is_the_users(
    tmp_path: Path, store: Store, class_files: dict[str, bytes], messy_images: ModuleType
) -> None:
    large = messy_images.encode(messy_images.picture(3, (500, 300)), "JPEG")
    folder = write(tmp_path / "in", {**class_files, "head/large.jpg": large})
    _, table, out = staged(store, Source(uri=str(folder), max_megapixels=0.1))
    assert out == {"head/large.jpg": "oversized (more than 0.1 megapixels)"}
    _, table, out = staged(store, Source(uri=str(folder)))
    assert "head/large.jpg" in contents(table)


def test_an_image_folder_that_holds_a_table_too_is_still_images(
    tmp_path: Path, store: Store, class_files: dict[str, bytes]
) -> None:
    folder = write(tmp_path / "in", {**class_files, "metadata.csv": b"a,b\n1,2\n"})
    info, table, _ = staged(store, Source(uri=str(folder)))
    assert table.num_rows == 30
    assert any("skipped: 1 .csv" in note for note in info.notes)


# --- archives ---------------------------------------------------------------------------------


def zipped(files: Mapping[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def tarred(files: Mapping[str, bytes], path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


PACKERS: list[tuple[str, Callable[[Mapping[str, bytes], Path], Path]]] = [
    ("in.zip", zipped),
    ("in.tar", tarred),
    ("in.tar.gz", lambda files, path: tarred(files, path, "w:gz")),
    ("in.tgz", lambda files, path: tarred(files, path, "w:gz")),
]


@pytest.mark.parametrize(("name", "pack"), PACKERS, ids=[name for name, _ in PACKERS])
def test_an_archive_of_class_folders_gives_the_folders_records(
    tmp_path: Path, store: Store, class_files: dict[str, bytes], name: str, pack: Any
) -> None:
    inside = {f"tiles/{path}": data for path, data in class_files.items()}
    inside |= {"__MACOSX/tiles/head/._00.png": b"x", "tiles/head/bad.png": b"no picture"}
    _, table, out = staged(store, Source(uri=str(pack(inside, tmp_path / name))))
    assert contents(table) == {f"tiles/{path}": data for path, data in class_files.items()}
    assert Counter(table["label"].to_pylist()) == {"head": 18, "tail": 12}
    assert out == {name: "undecodable"}


@pytest.mark.parametrize("name", ["in.zip", "in.tar"])
def test_unsafe_members_are_quarantined_and_never_written(
    tmp_path: Path, store: Store, class_files: dict[str, bytes], name: str
) -> None:
    data = class_files["head/00.png"]
    unsafe = {"../up.png": data, "/abs.png": data, "head/../../up.png": data, "C:\\up.png": data}
    pack = zipped if name.endswith("zip") else tarred
    archive = pack({**class_files, **unsafe}, tmp_path / name)
    info, table, _ = staged(store, Source(uri=str(archive)))
    rows = [
        row
        for shard in info.quarantine
        for row in pq.read_table(io.BytesIO(store.read(shard.path))).to_pylist()
    ]
    assert contents(table) == class_files
    assert len(rows) == 4
    assert {row["reason"] for row in rows} == {
        "unsafe name: an absolute path",
        "unsafe name: leaves the archive's folder",
    }
    assert not list(tmp_path.parent.glob("up.png"))


def test_links_in_a_tar_are_not_followed(
    tmp_path: Path, store: Store, class_files: dict[str, bytes]
) -> None:
    path = tarred(class_files, tmp_path / "in.tar")
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("tail/link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    _, table, out = staged(store, Source(uri=str(path)))
    assert contents(table) == class_files
    assert out == {"in.tar": "a link in an archive is not followed"}


def test_a_tar_that_is_cut_off_keeps_what_is_whole(
    tmp_path: Path, store: Store, class_files: dict[str, bytes]
) -> None:
    path = tarred(class_files, tmp_path / "in.tar")
    path.write_bytes(path.read_bytes()[: 2048 * 21 + 700])
    _, table, out = staged(store, Source(uri=str(path)))
    assert 18 < table.num_rows < 30
    assert set(out) == {"in.tar"}
    assert "truncated" in out["in.tar"]


def test_several_archives_are_one_source(
    tmp_path: Path, store: Store, class_files: dict[str, bytes]
) -> None:
    names = sorted(class_files)
    (tmp_path / "in").mkdir()
    for i in range(3):
        some = {name: class_files[name] for name in names[i::3]}
        tarred(some, tmp_path / "in" / f"part-{i}.tar")
    info, table, _ = staged(store, Source(uri=str(tmp_path / "in")))
    assert contents(table) == class_files
    assert [f.n_records for f in info.sources] == [10, 10, 10]


# --- WebDataset -------------------------------------------------------------------------------


def test_webdataset_tars_take_the_class_from_cls_or_json(
    tmp_path: Path, store: Store, class_files: dict[str, bytes]
) -> None:
    members: dict[str, bytes] = {}
    for i, (path, data) in enumerate(sorted(class_files.items())):
        members[f"{i:06d}.png"] = data
        label = path.split("/")[0]
        if i % 2:
            members[f"{i:06d}.cls"] = label.encode()
        else:
            members[f"{i:06d}.json"] = json.dumps({"label": label, "n": i}).encode()
    members["999999.png"] = class_files["head/00.png"][:-1] + b"x"
    _, table, out = staged(store, Source(uri=str(tarred(members, tmp_path / "in.tar"))))
    assert Counter(table["label"].to_pylist()) == {"head": 18, "tail": 12}
    assert out == {"in.tar": "unlabelled: no .cls or .json with a label"}


# --- Parquet ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        IMAGE,
        pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]),
        pa.struct([("path", pa.string()), ("bytes", pa.binary())]),
        pa.binary(),
        pa.large_binary(),
    ],
    ids=str,
)
def test_parquet_images_of_any_layout_become_one_that_datasets_decodes(
    tmp_path: Path, store: Store, class_files: dict[str, bytes], kind: pa.DataType
) -> None:
    flat = not pa.types.is_struct(kind)
    values = [d if flat else {"bytes": d, "path": p} for p, d in class_files.items()]
    table = pa.table(
        {
            "label": [path.split("/")[0] for path in class_files],
            "image": pa.array(values, kind),
            "camera": [i % 3 for i in range(30)],
        }
    )
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "in.parquet")
    info, records, _ = staged(store, Source(uri=str(tmp_path / "in")))
    assert records.column_names == ["label", "image", "camera", "aug_id", "content_key"]
    assert records.schema.field("image").type == IMAGE
    assert sorted(i["bytes"] for i in records["image"].to_pylist()) == sorted(class_files.values())
    features = json.loads(records.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["camera"] == {"dtype": "int64", "_type": "Value"}
    assert info.modality == "image"


def test_rows_without_a_usable_image_are_quarantined_with_their_position(
    tmp_path: Path, store: Store, class_files: dict[str, bytes]
) -> None:
    images: list[dict[str, Any] | None] = [{"bytes": d, "path": p} for p, d in class_files.items()]
    images[4] = None
    images[7] = {"bytes": None, "path": "only/a/path.png"}
    images[9] = {"bytes": b"<html>", "path": "x"}
    labels: list[str | None] = [path.split("/")[0] for path in class_files]
    labels[11] = None
    pq.write_table(
        pa.table({"image": pa.array(images, IMAGE), "label": labels}), tmp_path / "in.parquet"
    )
    info, table, _ = staged(store, Source(uri=str(tmp_path / "in.parquet")))
    rows = pq.read_table(io.BytesIO(store.read(info.quarantine[0].path))).to_pylist()
    assert [(r["position"], r["reason"]) for r in rows] == [
        (5, "empty"),
        (8, "empty"),
        (10, "undecodable"),
        (12, "no label"),
    ]
    assert "only/a/path.png" in rows[1]["record"]
    assert table.num_rows + len(rows) == 30


def test_a_class_label_of_datasets_stays_what_it_is(
    tmp_path: Path, store: Store, class_files: dict[str, bytes]
) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["head", "tail"])}
    )
    made = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": d, "path": None} for d in class_files.values()],
            "label": [int(p.startswith("tail")) for p in class_files],
        },
        features=features,
    )
    made.to_parquet(str(tmp_path / "in.parquet"))
    info, table, _ = staged(store, Source(uri=str(tmp_path / "in.parquet")))
    assert info.label_type == "int64"
    kept = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["label"]
    assert kept == {"names": ["head", "tail"], "_type": "ClassLabel"}


def test_the_order_of_the_rows_changes_nothing(
    tmp_path: Path, class_files: dict[str, bytes]
) -> None:
    """Also not between records of one image and label that differ in a path alone."""
    rows = [{"image": {"bytes": d, "path": p}, "label": p[:4]} for p, d in class_files.items()]
    rows += [
        {"image": {"bytes": class_files["head/00.png"], "path": f"copy{i}"}, "label": "head"}
        for i in range(3)
    ]
    schema = pa.schema([("image", IMAGE), ("label", pa.string())])
    digests = []
    for i, ordered in enumerate((rows, rows[::-1])):
        pq.write_table(pa.Table.from_pylist(ordered, schema=schema), tmp_path / f"{i}.parquet")
        source = Source(uri=str(tmp_path / f"{i}.parquet"))
        digests.append(ingest(source, store=open_store(str(tmp_path / f"o{i}")), seed=0).digest)
    assert digests[0] == digests[1]


def test_a_table_with_bytes_that_are_no_images_stays_a_table(tmp_path: Path, store: Store) -> None:
    table = pa.table(
        {
            "x": [float(i % 7) for i in range(40)],
            "blob": pa.array([b"blob %d" % i for i in range(40)], pa.binary()),
            "label": ["a", "b"] * 20,
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    info, records, _ = staged(store, Source(uri=str(tmp_path / "in.parquet")))
    assert info.modality == "table"
    assert info.image is None
    assert records.schema.field("blob").type == pa.binary()


def test_the_image_column_cannot_be_dropped(
    tmp_path: Path, store: Store, class_files: dict[str, bytes]
) -> None:
    folder = write(tmp_path / "in", class_files)
    source = Source(uri=str(folder), columns=[ColumnOverride(name="image", kind="drop")])
    with pytest.raises(ParameterError, match="holds the images and cannot be dropped"):
        ingest(source, store=store, seed=0)
