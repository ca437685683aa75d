"""Near-duplicates stay on one side of the split, now and in every later version."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageEnhance
from sklearn.datasets import load_digits

from prefect_augment.errors import InputError
from prefect_augment.ingest.ingest import ingest
from prefect_augment.params import Source
from prefect_augment.schema import DatasetInfo
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.split.ledger import HOLDOUT, TRAINING, VALIDATION, ImageRows, Ledger
from prefect_augment.split.ledger_io import read_ledger, split_clusters
from prefect_augment.split.near_duplicates import strengths
from prefect_augment.split.near_split import NearClusters, find_clusters
from prefect_augment.storage import Store, latest_version

N_HEAD, N_TAIL = 60, 30


@pytest.fixture
def originals(messy_images: ModuleType) -> dict[str, Image.Image]:
    return {
        f"{'head' if i < N_HEAD else 'tail'}/{i:03d}.png": messy_images.picture(i, (48, 40))
        for i in range(N_HEAD + N_TAIL)
    }


def jpeg(image: Image.Image) -> Image.Image:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=50)
    return Image.open(io.BytesIO(sink.getvalue()))


def grainy(image: Image.Image) -> Image.Image:
    rng = np.random.default_rng(0)
    pixels = np.asarray(image) + rng.normal(0, 6, (image.height, image.width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg": jpeg,
    "smaller": lambda image: image.resize((30, 25)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "duller": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "gray": lambda image: image.convert("L"),
    "grainy": grainy,
    "moved": lambda image: image.crop((1, 0, 48, 40)),
}


def write(folder: Path, images: Mapping[str, Image.Image]) -> Path:
    for path, image in images.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / path, "PNG")
    return folder


def run(store: Store, folder: Path, **options: Any) -> tuple[DatasetInfo, dict[str, str]]:
    """Info, and the part of each image by its path; quarantined ones by their reason."""
    info = load_info(ingest(Source(uri=str(folder), **options), store=store, seed=0), store)
    parts = {}
    for part in ("training", "validation", "holdout"):
        for image in read_part(store, info, [part], ["image"])["image"].to_pylist():
            parts[image["path"]] = part
    for shard in info.quarantine:
        for row in pq.read_table(io.BytesIO(store.read(shard.path))).to_pylist():
            parts[row["file"]] = row["reason"]
    return info, parts


# --- one version ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_of_an_image_is_on_its_side(
    tmp_path: Path, store: Store, originals: dict[str, Image.Image], change: str
) -> None:
    copies = {
        path.replace(".png", "-copy.png"): CHANGES[change](image)
        for path, image in originals.items()
    }
    info, parts = run(store, write(tmp_path / "in", {**originals, **copies}))
    cut = [path for path in originals if parts[path] != parts[path.replace(".png", "-copy.png")]]
    assert not cut
    assert info.image is not None
    assert info.image.n_clusters == len(originals)
    assert {"training", "validation", "holdout"} == set(parts.values())


def test_equal_bytes_of_two_classes_are_on_one_side(
    tmp_path: Path, store: Store, originals: dict[str, Image.Image]
) -> None:
    twice = {f"tail/again-{path[5:]}": image for path, image in list(originals.items())[:20]}
    info, parts = run(store, write(tmp_path / "in", {**originals, **twice}))
    assert all(
        parts[f"head/{path[11:]}"] == part for path, part in parts.items() if "again" in path
    )
    assert info.n_twins == 40


def test_clusters_of_staged_images_can_be_asked_for(
    tmp_path: Path, store: Store, originals: dict[str, Image.Image]
) -> None:
    copies = {f"{path[:-4]}-c.png": jpeg(image) for path, image in originals.items()}
    info, _ = run(store, write(tmp_path / "in", {**originals, **copies}))
    training, held = (
        read_part(store, info, [part], ["content_key"])["content_key"].to_pylist()
        for part in ("training", "holdout")
    )
    assert len(set(split_clusters(store, info, training))) == len(training) / 2
    assert not set(split_clusters(store, info, training)) & set(split_clusters(store, info, held))
    assert split_clusters(store, info, ["not there"]) == ["not there"]


def test_a_group_pattern_goes_before_near_duplicates(
    tmp_path: Path, store: Store, originals: dict[str, Image.Image]
) -> None:
    named = {
        f"{path[:4]}/patient{i // 3}_{i}.png": image
        for i, (path, image) in enumerate(originals.items())
    }
    named["head/unknown.png"] = originals["head/000.png"].rotate(90)
    info, parts = run(store, write(tmp_path / "in", named), group_pattern=r"(patient\d+)_")
    sides: dict[str, set[str]] = {}
    for path, part in parts.items():
        sides.setdefault(path.split("/")[1].split("_")[0], set()).add(part)
    assert all(len(found) == 1 for found in sides.values())
    assert parts["head/unknown.png"] == "source.group_pattern does not match its path"
    assert info.group_column == "group"
    groups = read_part(store, info, ["training"], ["group"])["group"].to_pylist()
    assert all(group.startswith("patient") for group in groups)


@pytest.mark.parametrize(
    ("pattern", "says"),
    [("(", "not a regular expression"), ("a", "has 0 groups"), ("(a)(b)", "has 2 groups")],
)
def test_a_group_pattern_has_one_group(pattern: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Source(group_pattern=pattern)


# --- a hold-out of the user's own -------------------------------------------------------------


def test_near_duplicates_of_a_given_holdout_are_counted_and_kept(
    tmp_path: Path, store: Store, originals: dict[str, Image.Image], messy_images: ModuleType
) -> None:
    folder = write(tmp_path / "in", originals)
    held = {f"{k}/h{i}.png": messy_images.picture(500 + i) for i in range(20) for k in ("head",)}
    held |= {f"tail/h{i}.png": messy_images.picture(600 + i) for i in range(20)}
    held |= {f"head/n{i}.png": jpeg(originals[f"head/{i:03d}.png"]) for i in range(7)}
    info, parts = run(store, folder, holdout_uri=str(write(tmp_path / "held", held)))
    assert info.image is not None
    assert info.image.n_near_holdout == 7
    assert any("7 images have a near-duplicate in the hold-out" in note for note in info.notes)
    assert parts["head/003.png"] in ("training", "validation")


@pytest.mark.slow
def test_small_pictures_of_one_kind_are_not_near_for_want_of_clusters(
    tmp_path: Path, store: Store
) -> None:
    """Where groups decide what stays together: of 16-pixel digits most were near to a hold-out."""
    digits = load_digits().images[:260] * 16

    def picture(i: int, turned: float = 1.0) -> Image.Image:
        pixels = np.clip(digits[i] * turned, 0, 255).astype(np.uint8)
        return Image.fromarray(pixels).resize((16, 16), Image.Resampling.BICUBIC)

    named = {f"{'head' if i % 3 else 'tail'}/p{i}_a.png": picture(i) for i in range(160)}
    held = {f"{'head' if i % 3 else 'tail'}/q{i}_a.png": picture(i) for i in range(160, 260)}
    held |= {f"head/c{i}_a.png": picture(i, 0.8) for i in (1, 4, 7)}
    info, _ = run(
        store,
        write(tmp_path / "in", named),
        holdout_uri=str(write(tmp_path / "held", held)),
        group_pattern=r"(\w\d+)_",
    )
    assert info.image is not None
    assert info.image.n_near_holdout == 3


def test_images_that_are_also_in_the_holdout_are_refused_or_dropped(
    tmp_path: Path, store: Store, originals: dict[str, Image.Image], messy_images: ModuleType
) -> None:
    folder = write(tmp_path / "in", originals)
    held = {
        f"{k}/h{i}.png": messy_images.picture(500 + i) for i in range(9) for k in ("head", "tail")
    }
    held |= {path: originals[path] for path in ("head/001.png", "tail/070.png")}
    uri = str(write(tmp_path / "held", held))
    with pytest.raises(InputError, match="2 of the source's 90 records are also in the hold-out"):
        run(store, folder, holdout_uri=uri, on_overlap="error")
    _, parts = run(store, folder, holdout_uri=uri)
    dropped = {path for path, part in parts.items() if part == "in hold-out"}
    assert dropped == {"head/001.png", "tail/070.png"}


def test_bad_images_of_a_holdout_are_quarantined_too(
    tmp_path: Path, store: Store, originals: dict[str, Image.Image]
) -> None:
    some = dict(list(originals.items())[::2])
    rest = {path: image for path, image in originals.items() if path not in some}
    folder = write(tmp_path / "held", rest)
    (folder / "head" / "bad.png").write_bytes(b"no")
    _, parts = run(store, write(tmp_path / "in", some), holdout_uri=str(folder))
    assert parts["hold-out head/bad.png"] == "undecodable"


def test_marks_of_the_users_own_are_respected(
    tmp_path: Path, store: Store, originals: dict[str, Image.Image]
) -> None:
    rows = []
    for i, (path, image) in enumerate(originals.items()):
        for j, picture in enumerate((image, jpeg(image))):
            sink = io.BytesIO()
            picture.save(sink, "PNG")
            struct = {"bytes": sink.getvalue(), "path": f"{path}{j}"}
            rows.append({"image": struct, "label": path[:4], "held": i % 4 == 0 and j == 0})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    _, parts = run(store, tmp_path / "in.parquet", holdout_column="held")
    held = {row["image"]["path"] for row in rows if row["held"]}
    assert {path for path, part in parts.items() if part == "holdout"} == held


# --- later versions ---------------------------------------------------------------------------


def publish(store: Store, folder: Path, releases: ModuleType) -> dict[str, str]:
    """Publish what the folder holds and return the parts."""
    ref = ingest(Source(uri=str(folder)), store=store, seed=0)
    releases.publish_as_is(store, ref)
    return run(store, folder)[1]


@pytest.mark.slow
def test_new_images_join_the_side_of_those_that_they_are_near(
    tmp_path: Path, store: Store, originals: dict[str, Image.Image], releases: ModuleType
) -> None:
    folder = write(tmp_path / "in", originals)
    before = publish(store, folder, releases)
    assert latest_version(store) == 1
    write(folder, {f"{path[:-4]}-new.png": jpeg(image) for path, image in originals.items()})
    info, after = run(store, folder)
    assert {path: after[path] for path in before} == before
    assert all(after[f"{path[:-4]}-new.png"] == part for path, part in before.items())
    assert info.extra["n_new"] == len(originals)


@pytest.mark.slow
def test_new_images_join_the_side_of_images_that_are_gone(
    tmp_path: Path, store: Store, originals: dict[str, Image.Image], releases: ModuleType
) -> None:
    """The ledger keeps a thumbnail of each."""
    before = publish(store, write(tmp_path / "in", originals), releases)
    later = write(tmp_path / "later", {path: jpeg(image) for path, image in originals.items()})
    info, after = run(store, later)
    assert after == before
    assert len(read_ledger(store, info.ledger).keys) == 2 * len(originals)


def test_an_image_between_the_sides_is_quarantined_as_a_bridge(
    tmp_path: Path, store: Store, originals: dict[str, Image.Image], releases: ModuleType
) -> None:
    before = publish(store, write(tmp_path / "in", originals), releases)
    training = next(path for path, part in before.items() if part == "training")
    held = next(path for path, part in before.items() if part == "holdout")
    # Versions in which the two grow alike, step by step, until one is near both.
    steps = {
        f"head/mix{k:02d}.png": Image.blend(originals[training], originals[held], k / 16)
        for k in range(1, 16)
    }
    _, after = run(store, write(tmp_path / "in", steps))
    assert {path: after[path] for path in before} == before
    reasons = {path: part for path, part in after.items() if "mix" in path}
    assert reasons["head/mix01.png"] in ("training", "bridge")
    assert reasons["head/mix15.png"] == "holdout"
    assert "bridge" in reasons.values()
    # On the way from one to the other each step is near the next: no leak is left but the bridge.
    order = [reasons[path] for path in sorted(reasons)]
    assert order.index("bridge") < order.index("holdout")
    assert "training" not in order[order.index("holdout") :]


def test_a_dataset_of_images_does_not_go_on_as_a_table(
    tmp_path: Path, store: Store, originals: dict[str, Image.Image], releases: ModuleType
) -> None:
    publish(store, write(tmp_path / "in", originals), releases)
    table = pa.table({"x": np.arange(60) / 7, "label": ["head", "tail"] * 30})
    pq.write_table(table, tmp_path / "table.parquet")
    with pytest.raises(InputError, match="earlier version had images.*now holds no images"):
        run(store, tmp_path / "table.parquet")
    with pytest.raises(InputError, match="split by near-duplicate images.*group_pattern"):
        run(store, tmp_path / "in", group_pattern="(.)")


# --- the rule itself --------------------------------------------------------------------------


def _two_pictures() -> np.ndarray[Any, np.dtype[np.float64]]:
    cells = np.random.default_rng(0).normal(size=(2, 8, 8))
    first, second = (np.kron(x - x.mean(), np.ones((4, 4))).ravel() for x in cells)
    second -= (second @ first) / (first @ first) * first
    return np.stack([x / np.linalg.norm(x) for x in (first, second)])


PICTURES = _two_pictures()


def toward(share: float) -> np.ndarray[Any, np.dtype[np.int8]]:
    """A picture between the two, as a thumbnail."""
    angle = share * np.pi / 2
    mixed = np.cos(angle) * PICTURES[0] + np.sin(angle) * PICTURES[1]
    return np.rint(127 * mixed / np.abs(mixed).max()).astype(np.int8)


def chain(parts: Mapping[float, int], new: list[float]) -> tuple[Ledger, NearClusters, list[str]]:
    """A ledger of pictures on the way from one wave to another, and what becomes of new ones."""
    old = sorted(parts)
    ledger = Ledger(
        "salt",
        "near-duplicate",
        tuple(f"old{x:.2f}" for x in old),
        (0,) * len(old),
        ("",) * len(old),
        tuple(parts[x] for x in old),
        images=ImageRows(
            tuple(f"old{x:.2f}" for x in old),
            (0,) * len(old),
            np.array([toward(x) for x in old], dtype=np.int8).reshape(-1, 1024),
        ),
    )
    keys = [f"new{x:.2f}" for x in new]
    thumbs = np.stack([toward(x) for x in new])
    return ledger, find_clusters(keys, thumbs, ledger=ledger), keys


def near(x: float, y: float) -> bool:
    return len(strengths(np.stack([toward(x), toward(y)]))[0]) > 0


STEP = 0.15


def test_the_chain_of_pictures_is_one_in_which_only_neighbours_are_near() -> None:
    """What the next tests stand on."""
    for x in (0.2, 0.35, 0.5):
        assert near(x, x + STEP)
        assert not near(x, x + 2 * STEP)


def test_of_a_chain_between_the_sides_one_image_is_the_bridge() -> None:
    _, found, _ = chain({0.20: TRAINING, 0.80: HOLDOUT}, [0.35, 0.50, 0.65])
    assert found.is_bridge.tolist() == [True, False, False]
    assert found.names[1:].tolist() == ["old0.80", "old0.80"]


def test_an_image_near_training_and_validation_joins_training() -> None:
    _, found, _ = chain({0.20: VALIDATION, 0.50: TRAINING}, [0.35])
    assert not found.is_bridge.any()
    assert found.names.tolist() == ["old0.50"]


def test_what_a_bridge_alone_connects_is_free_to_go_anywhere() -> None:
    _, found, keys = chain({0.20: TRAINING, 0.50: HOLDOUT}, [0.35])
    assert found.is_bridge.tolist() == [True]
    assert found.names.tolist() == keys


def test_a_known_image_keeps_its_cluster_whatever_comes() -> None:
    ledger, _, _ = chain({0.20: TRAINING, 0.50: HOLDOUT}, [0.35])
    thumbs = np.stack([toward(x) for x in (0.20, 0.50)])
    found = find_clusters(["old0.20", "old0.50"], thumbs, ledger=ledger)
    assert found.names.tolist() == ["old0.20", "old0.50"]
    assert not found.is_bridge.any()
