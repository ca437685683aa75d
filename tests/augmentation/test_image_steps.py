"""Images in the augment and report stages: copies with their lineage, sheets that keep to the rules."""

import io
import json
from collections import Counter
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.staging import class_plan, image_info, plan_of, shards_of, stage_parts
from support.steps import candidates_with, release_of

pytest.importorskip("albumentations", reason="needs the extra 'images'")

from prefect_augment.augmentation import write_images
from prefect_augment.augmentation.base import augment, augment_part
from prefect_augment.augmentation.image_policy import ImagePolicy, record_seed
from prefect_augment.encoding.images import image_array
from prefect_augment.encoding.pixels import (
    decode_image,
    encode_jpeg,
    encode_like,
    encode_png,
    is_jpeg,
    resize,
)
from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.figures.image_grid import CELL, ROW_HEIGHT
from prefect_augment.params import Classic, RunParams
from prefect_augment.plan.strategies import plain_recipe
from prefect_augment.report.build import report
from prefect_augment.report.contact_sheets import picture_sheets
from prefect_augment.schema import BalancePlan, ClassFilter, DatasetRef, Experiment, FilterResult
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Store, open_store

CLASSES = {"plenty": 40, "few": 6, "🛠️ <b>one</b>": 1}
RARE, SINGLE = list(CLASSES)[1:]
KIND = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {"image": {"_type": "Image"}, "kind": {"dtype": "string", "_type": "Value"}}


def picture(seed: int, channels: int = 3) -> NDArray[np.uint8]:
    small = np.random.default_rng(seed).integers(40, 210, (4, 4, channels), dtype=np.uint8)
    return resize(small, 28, 20)


def records() -> pa.Table:
    """JPEG and PNG by turns; a column that a copy keeps; a label that is not the last column."""
    names = [name for name, n in CLASSES.items() for _ in range(n)]
    images = [(encode_jpeg if i % 2 else encode_png)(picture(i)) for i in range(len(names))]
    keys = [f"{record_seed(0, f'{i:032x}', 0):032x}" for i in range(len(names))]
    table = pa.table(
        {
            "kind": pa.array(names).dictionary_encode(),
            "image": image_array(images, [f"{i}.jpg" for i in range(len(names))], KIND),
            "tile": pa.array([i // 3 for i in range(len(names))], pa.int32()),
            "aug_id": pa.array(keys),
            "content_key": pa.array(keys),
        }
    )
    return table.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": FEATURES}})}
    )


def stage_records(store: Store, table: pa.Table) -> DatasetRef:
    """What ingest leaves: every fifth record is validation, the rest training."""
    place, n = np.arange(table.num_rows), table.num_rows
    parts = {"training": place % 5 != 4, "validation": place % 5 == 4}
    return stage_parts(
        store,
        {part: table.filter(pa.array(mask)).sort_by("aug_id") for part, mask in parts.items()},
        label="kind", key="k", digest="d" * 64, max_records=20, columns=(), compared=tuple(CLASSES),
        modality="image", image=image_info(28, 20, n=n),
    )  # fmt: skip


class Staged(NamedTuple):
    """Records as ingest leaves them, and a plan for them."""

    store: Store
    dataset: DatasetRef
    plan: BalancePlan

    @classmethod
    def of(cls, store: Store, table: pa.Table) -> "Staged":
        classes = (
            class_plan(name, n, 40, n_synthetic=min(n, 40 - n), n_classic=max(0, 40 - 2 * n))
            for name, n in CLASSES.items()
        )
        return cls(store, stage_records(store, table), plan_of(classes))

    def experiment(self, seed: int = 5, **options: Any) -> Experiment:
        params = RunParams(classic=Classic(**options), seed=seed)
        return Experiment(dataset=self.dataset, plan=self.plan, params=params)

    def copies(
        self, counts: dict[str, int] | None = None, seed: int = 5, **options: Any
    ) -> pa.Table:
        counts = counts or {RARE: 60, SINGLE: 9}
        ref = augment(self.experiment(seed, **options), counts, self.store)
        assert ref.class_counts == counts
        return read_part(self.store, load_info(ref, self.store), ["train"])


@pytest.fixture(scope="module")
def staged(memory_store: Store) -> Staged:
    return Staged.of(memory_store, records())


@pytest.fixture(scope="module")
def made(staged: Staged) -> pa.Table:
    return staged.copies()


def image_of(record: dict[str, Any]) -> bytes:
    data: bytes = record["image"]["bytes"]
    return data


def test_copies_have_the_sources_columns_and_their_lineage(made: pa.Table) -> None:
    source = records()
    lineage = ["aug_id", "aug_parent", "aug_seed", "aug_stratum"]
    assert made.column_names == ["kind", "image", "tile", *lineage]
    for name in ("kind", "image", "tile"):
        assert made.schema.field(name).equals(source.schema.field(name))
    assert made.schema.metadata == source.schema.metadata
    assert made["aug_id"].to_pylist() == sorted(set(made["aug_id"].to_pylist()))
    assert Counter(made["kind"].to_pylist()) == {RARE: 60, SINGLE: 9}
    assert made["aug_stratum"].to_pylist() == made["kind"].to_pylist()


def test_a_copy_is_its_parent_under_the_policy_or_its_parents_bytes(made: pa.Table) -> None:
    """So that any copy can be made again from parent, seed and policy."""
    parents = {record["aug_id"]: record for record in records().to_pylist()}
    policy = ImagePolicy.from_params(Classic())
    n_changed = 0
    for record in made.to_pylist():
        parent = parents[record["aug_parent"]]
        assert (record["kind"], record["tile"]) == (parent["kind"], parent["tile"])
        assert is_jpeg(image_of(record)) == is_jpeg(image_of(parent))
        ending = "jpg" if is_jpeg(image_of(parent)) else "png"
        assert record["image"]["path"] == f"classic/{record['aug_id']}.{ending}"
        if image_of(record) == image_of(parent):
            continue
        n_changed += 1
        pixels = decode_image(image_of(parent))
        again = policy.apply(pixels, seed=record["aug_seed"], prob=1.0)
        encoded = encode_like(again, image_of(parent)) if ending == "jpg" else encode_png(again)
        assert encoded == image_of(record)
    assert 0 < n_changed < made.num_rows


def test_half_of_a_class_is_changed_real_records_counted(staged: Staged) -> None:
    """As where the policy runs on the fly; with as many copies as real records, each is changed."""
    parents = {image["bytes"] for image in records()["image"].to_pylist()}
    table = staged.copies({RARE: 6})
    assert not any(image["bytes"] in parents for image in table["image"].to_pylist())
    table = staged.copies({RARE: 400})
    n_changed = sum(image["bytes"] not in parents for image in table["image"].to_pylist())
    assert 160 < n_changed < 246  # 203 ± 4 standard deviations


def test_records_of_a_class_take_turns_and_no_two_copies_are_alike(made: pa.Table) -> None:
    few = made.filter(pc.equal(made["kind"].cast(pa.string()), RARE))
    assert set(Counter(few["aug_parent"].to_pylist()).values()) == {10}
    assert len(set(made["aug_seed"].to_pylist())) == made.num_rows


def test_more_copies_add_to_fewer(staged: Staged) -> None:
    few, more = (set(staged.copies({RARE: n})["aug_id"].to_pylist()) for n in (10, 25))
    assert few < more


def test_same_seed_gives_identical_shards_in_any_order(made: pa.Table) -> None:
    other = open_store(f"memory://{uuid4().hex}")
    table = records()
    backwards = table.take(pa.array(range(table.num_rows - 1, -1, -1)))
    again = Staged.of(other, backwards.unify_dictionaries()).copies()
    order = made["aug_parent"].to_pylist()
    assert sorted(again["aug_parent"].to_pylist()) == sorted(order)
    assert again.select(["image", "aug_id", "aug_seed"]).equals(
        made.select(["image", "aug_id", "aug_seed"])
    )


def test_other_seeds_give_other_copies(made: pa.Table, staged: Staged) -> None:
    other = staged.copies(seed=6)
    assert not set(other["aug_id"].to_pylist()) & set(made["aug_id"].to_pylist())
    assert not set(other["aug_seed"].to_pylist()) & set(made["aug_seed"].to_pylist())


def test_large_amounts_have_several_shards(staged: Staged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_images, "SHARD_BYTES", 20_000)
    ref = augment(staged.experiment(seed=8), {RARE: 61}, staged.store)
    info = load_info(ref, staged.store)
    assert len(info.shards) > 1
    ids = read_part(staged.store, info, ["train"])["aug_id"].to_pylist()
    assert ids == sorted(ids)
    assert len(ids) == 61


@pytest.mark.parametrize("n_done", [1, 2])
def test_what_other_tasks_have_staged_is_found_and_changes_no_byte(
    staged: Staged, monkeypatch: pytest.MonkeyPatch, n_done: int
) -> None:
    store, one, counts = staged.store, staged.experiment(seed=9 + n_done), {RARE: 30, SINGLE: 9}
    with monkeypatch.context() as patch:
        other = open_store(f"memory://{uuid4().hex}")
        for name in store.list():
            other.put(name, store.read(name))
        patch.setattr(write_images, "BATCH_BYTES", 10_000)  # several files of a shard
        parts = [augment_part(one, counts, other, part=part, n_parts=2) for part in range(n_done)]
    assert parts == [2, 1][:n_done], "of three shards"
    whole, found = augment(one, counts, store), augment(one, counts, other)
    assert load_info(found, other).shards == load_info(whole, store).shards
    staged = [name for name in other.list("_staging/augment") if name.endswith(".arrow")]
    assert len(staged) > n_done
    assert augment_part(one, counts, other, part=0, n_parts=2) == 0, "all is done"


def test_what_cannot_be_made_is_refused(staged: Staged) -> None:
    with pytest.raises(ParameterError, match="classic.image is 'none'"):
        staged.copies(image="none")
    classes = staged.plan.classes
    ghost = classes[0].model_copy(update={"name": "ghost", "label": "ghost"})
    with_ghost = staged.plan.model_copy(update={"classes": (*classes, ghost)})
    with pytest.raises(EmptyClassError, match="'ghost' has no training record"):
        staged._replace(plan=with_ghost).copies({"ghost": 2})


@pytest.fixture(scope="module")
def candidates(memory_store: Store) -> FilterResult:
    """Kept candidates of the rare class: brighter twins of four of its training records."""
    table = records().filter(pa.array(np.arange(47) % 5 != 4))
    table = table.filter(pc.equal(table["kind"].cast(pa.string()), RARE)).slice(0, 4)
    images = []
    for image in table["image"].to_pylist():
        bright = np.minimum(decode_image(image["bytes"]).astype(int) + 30, 255)
        images.append(encode_png(bright.astype(np.uint8)))
    made = table.set_column(1, table.schema.field("image"), image_array(images, [""] * 4, KIND))
    store = memory_store
    kept = shards_of(store, made, "_staging/filter/x", "kept", label="kind", origin="synthetic")
    rare = ClassFilter(name=RARE, n_candidates=9, n_passed=4, n_kept=4, reasons={}, metrics={})
    return candidates_with({}).model_copy(
        update={"root": store.uri, "classes": (rare,), "kept": kept, "feature_space": "pixels"}
    )


def sheets(
    staged: Staged, candidates: FilterResult | None, pictures: Any, classic: Classic | None = None
) -> dict[str, bytes]:
    store, dataset, plan = staged
    info = load_info(dataset, store)
    return picture_sheets(store, info, plan, candidates, pictures=pictures, classic=classic)


def n_rows(png: bytes) -> int:
    """Rows of a sheet, by its height."""
    return Image.open(io.BytesIO(png)).height // ROW_HEIGHT


def test_rare_classes_get_a_sheet_the_rarest_first(
    staged: Staged, candidates: FilterResult
) -> None:
    found = sheets(staged, candidates, "real", Classic())
    assert list(found) == [SINGLE, RARE]
    assert [n_rows(png) for png in found.values()] == [2, 4]


def test_nearest_image_stands_below_its_twin(staged: Staged, candidates: FilterResult) -> None:
    """Each candidate is a twin that is brighter by 30."""
    png = sheets(staged, candidates, "real")[RARE]
    page = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    assert n_rows(png) == 3
    for i in range(4):
        x, y = 20 + i * (CELL + 8) + CELL // 2, 116 + CELL // 2  # the middle of the first row
        synthetic, nearest = page[y + ROW_HEIGHT, x], page[y + 2 * ROW_HEIGHT, x]
        assert np.abs(synthetic - nearest - 30).max() <= 3  # JPEG and palette


def test_pictures_show_what_they_may(staged: Staged, candidates: FilterResult) -> None:
    only_made = sheets(staged, candidates, "synthetic", Classic())
    assert list(only_made) == [RARE]
    assert n_rows(only_made[RARE]) == 1
    assert sheets(staged, candidates, "none", Classic()) == {}
    assert sheets(staged, None, "synthetic", Classic()) == {}


@pytest.mark.slow
def test_report_has_sheets_in_files_and_summary(staged: Staged, candidates: FilterResult) -> None:
    store, dataset, plan = staged
    # Without a recipe the policy is not shown, since nothing is published by it.
    recipe = plain_recipe(plan, {})
    ref, summary = report(release_of(dataset, plan, recipe, candidates=candidates), store)
    assert {"sheet_1.png", "sheet_2.png", "report.html"} <= set(ref.files)
    assert summary.count("![Pictures of") == 2
    assert "<b>one" not in summary
    info = json.loads(store.read(f"{ref.prefix}/report.json"))
    assert info["sheets"] == {SINGLE: "sheet_1.png", RARE: "sheet_2.png"}
    assert info["modality"] == "image"
    page = store.read(f"{ref.prefix}/report.html").decode()
    assert "never flipped" in page
    assert "squared pixel differences" in page
    assert "<b>one" not in page
