"""The stream for torch: every record once or as the recipe draws them, over workers, ranks and epochs."""

import json
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support import releases
from support.steps import publish_parts

pytest.importorskip("torch", reason="needs the extra 'torch'")

import torch

from prefect_augment.augmentation.image_policy import ImagePolicy
from prefect_augment.encoding.pixels import decode_image
from prefect_augment.errors import IntegrityError, ParameterError, SchemaError
from prefect_augment.loading.dataset import Dataset, open_dataset
from prefect_augment.loading.torch_records import RowMaker
from prefect_augment.params import Classic, Publish
from prefect_augment.shards import base as groups
from prefect_augment.storage import open_store

TAIL = "c/<b>|'"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("template") / "out"
    release = vars(releases.stage_release(open_store(str(folder))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "ROW_GROUP_BYTES", 200)
        publish_parts(**{**release, "publish": Publish(shard_records=20)})
    return folder


@pytest.fixture
def table(template: Path, tmp_path: Path) -> Dataset:
    """55 train records in many small groups: 48 real, 3 classic, 4 synthetic; weights 1 : 2 : 3."""
    return open_dataset(str(shutil.copytree(template, tmp_path / "out")))


@pytest.fixture(scope="module", params=["parquet", "webdataset"])
def images(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    messy_images: ModuleType,
) -> Dataset:
    """Pictures that no test changes."""
    folder = tmp_path_factory.mktemp("pictures")
    return publish_images(folder, messy_images, shard_format=request.param)


def publish_images(folder: Path, messy_images: ModuleType, **changes: Any) -> Dataset:
    store = open_store(str(folder / "images"))
    source = releases.image_table(messy_images)
    release = releases.stage_release(store, table=source)
    release.dataset = releases.stage_dataset(store, source, key="pictures", modality="image")
    shard_format = changes.pop("shard_format", "parquet")
    publish_parts(
        **{
            **vars(release),
            "publish": Publish(format=shard_format, shard_records=20),
            "recipe": release.recipe.model_copy(update=changes),
        }
    )
    return open_dataset(store.uri)


def with_recipe(dataset: Dataset, **changes: Any) -> Dataset:
    recipe = dataset.recipe.model_copy(update=changes)
    return Dataset(dataset.store, dataset.manifest.model_copy(update={"recipe": recipe}))


def ids(stream: Any) -> list[str]:
    return [x["aug_id"] for x, _ in stream]


def over_all(dataset: Dataset, *, n_ranks: int, n_workers: int, **asked: Any) -> list[list[str]]:
    """The ids that each rank's loader gives; workers in this process, one after the other."""
    found = []
    for rank in range(n_ranks):
        stream = dataset.to_torch(columns=["aug_id"], rank=rank, world_size=n_ranks, **asked)
        of_rank = []
        for worker in range(n_workers):
            info = torch.utils.data._utils.worker.WorkerInfo(
                id=worker, num_workers=n_workers, seed=0, dataset=stream
            )
            torch.utils.data._utils.worker._worker_info = info
            try:
                of_rank += ids(stream)
            finally:
                torch.utils.data._utils.worker._worker_info = None
        assert len(of_rank) == len(stream)
        found.append(of_rank)
    return found


# --- every record once ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("n_ranks", "n_workers"), [(1, 1), (1, 3), (2, 1), (3, 2), (7, 9)])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_record_comes_once_over_all_ranks_and_workers(
    table: Dataset, n_ranks: int, n_workers: int, shuffle: bool
) -> None:
    found = over_all(table, n_ranks=n_ranks, n_workers=n_workers, shuffle=shuffle, buffer_groups=3)
    everything = [i for of_rank in found for i in of_rank]
    expected = table.to_table()["aug_id"].to_pylist()
    assert sorted(everything) == sorted(expected)
    assert max(map(len, found)) - min(map(len, found)) <= 1
    if not shuffle:
        assert (n_ranks > 1) or everything == expected


def test_without_shuffling_the_order_is_the_table_s(table: Dataset) -> None:
    stream = table.to_torch("holdout", columns=["aug_id"])
    assert ids(stream) == table.to_table("holdout")["aug_id"].to_pylist()


def test_the_order_is_that_of_seed_and_epoch(table: Dataset) -> None:
    stream = table.to_torch(columns=["aug_id"], seed=3)
    first, again = ids(stream), ids(stream)
    stream.set_epoch(1)
    second = ids(stream)
    assert first == again == ids(table.to_torch(columns=["aug_id"], seed=3))
    assert first != second
    assert first != ids(table.to_torch(columns=["aug_id"], seed=-4))
    assert sorted(first) == sorted(second)


def test_pictures_come_as_their_bytes_where_that_is_asked_for(images: Dataset) -> None:
    expected = [image["bytes"] for image in images.to_table()["image"].to_pylist()]
    plain = images.to_torch(decode=False, shuffle=False)
    assert [x for x, _ in plain] == expected
    shuffled = list(images.to_torch(decode=False, seed=1))
    decoded = list(images.to_torch(seed=1))
    assert [y for _, y in shuffled] == [y for _, y in decoded]
    for (data, _), (pixels, _) in zip(shuffled, decoded, strict=True):
        assert np.array_equal(decode_image(data).transpose(2, 0, 1), pixels)
    sizes = images.to_torch(decode=False, shuffle=False, transform=len)
    assert [x for x, _ in sizes] == [len(data) for data in expected]
    both = images.to_torch(columns=["image", "mask"], decode=False, shuffle=False)
    masks = images.to_table()["mask"].to_pylist()
    assert [x["mask"] for x, _ in both] == [mask and mask["bytes"] for mask in masks]


@pytest.mark.parametrize("verify", [False, True])
def test_bytes_are_those_of_the_table_in_any_order(images: Dataset, verify: bool) -> None:
    dataset = open_dataset(images.store.uri, verify=verify)
    read = dataset.to_table(columns=["image", "label"])
    expected = [
        (image and image["bytes"], label)
        for image, label in zip(read["image"].to_pylist(), read["label"].to_pylist(), strict=True)
    ]
    stream = dataset.to_torch(decode=False, shuffle=False)
    assert [(x, stream.classes[y]) for x, y in stream] == expected
    stream = dataset.to_torch(decode=False, seed=3)
    mixed = [(x, stream.classes[y]) for x, y in stream]
    assert mixed != expected
    assert Counter(mixed) == Counter(expected)


@pytest.mark.parametrize(
    "kind", [pa.int8(), pa.large_string(), pa.dictionary(pa.int8(), pa.int64())]
)
def test_labels_are_indices_whatever_their_type(kind: pa.DataType) -> None:
    values = pa.array(["10", "2", "10", "-3"]).cast(getattr(kind, "value_type", kind))
    column = values.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else values
    schema = pa.schema([("label", kind)])
    maker = RowMaker(schema, (), "label", ("2", "10", "-3"), None, True, None)
    assert maker.codes(pa.table({"label": column}, schema=schema)) == [1, 0, 1, 2]


@pytest.mark.parametrize("values", [[True, False], [1.5, 2.0]])
def test_labels_of_other_types_are_found_by_their_names(values: list[Any]) -> None:
    column = pa.array(values)
    classes = tuple(column.cast(pa.string()).to_pylist())
    maker = RowMaker(pa.schema([("y", column.type)]), (), "y", classes, None, True, None)
    assert maker.codes(pa.table({"y": column})) == [0, 1]


def test_a_policy_with_bytes_or_without_its_mask_or_of_another_release_is_refused(
    tmp_path: Path, messy_images: ModuleType
) -> None:
    pytest.importorskip("albumentations", reason="needs the extra 'images'")
    dataset = publish_images(tmp_path, messy_images, classic_policy="safe", classic_prob=0.5)
    with pytest.raises(ParameterError, match="decode=False gives their bytes"):
        dataset.to_torch(recipe=True, decode=False)
    with pytest.raises(ParameterError, match="'mask' where they were"):
        dataset.to_torch(columns=["image", "mask"], recipe=True)
    with pytest.raises(ParameterError, match="'wild' is not one of this release's"):
        with_recipe(dataset, classic_policy="wild").to_torch(recipe=True)


def test_shuffling_mixes_groups_of_the_whole_split(table: Dataset) -> None:
    place = {k: i for i, k in enumerate(table.to_table()["aug_id"].to_pylist())}
    order = [place[i] for i in ids(table.to_torch(columns=["aug_id"], buffer_groups=4))]
    assert len(table.to_torch()._groups.n_rows) > 20
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
def test_a_loader_with_processes_gives_every_record_of_each_epoch(
    table: Dataset, persistent: bool
) -> None:
    """Workers that outlive an epoch hear of the next one too.

    In a process of its own: loader workers are forked, and this one has threads of Prefect's.
    """
    script = """
import json, sys, torch
from prefect_augment.loading.dataset import open_dataset
stream = open_dataset(sys.argv[1]).to_torch(columns=["aug_id"])
loader = torch.utils.data.DataLoader(
    stream, batch_size=None, num_workers=2, persistent_workers=sys.argv[2] == "True"
)
for epoch in range(2):
    stream.set_epoch(epoch)
    print(json.dumps([x["aug_id"] for x, _ in loader]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, table.store.uri, str(persistent)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert sorted(first) == sorted(second) == sorted(ids(table.to_torch(columns=["aug_id"])))
    assert first != second


@pytest.mark.slow
def test_ranks_come_from_torch_distributed_and_travel_to_workers(
    table: Dataset, tmp_path: Path
) -> None:
    script = """
import pickle, sys, torch
from prefect_augment.loading.dataset import open_dataset
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=0, world_size=1)
stream = open_dataset(sys.argv[1]).to_torch(columns=["aug_id"])
assert pickle.loads(pickle.dumps(stream))._place == (0, 1)
torch.distributed.get_rank, torch.distributed.get_world_size = (lambda: 1), (lambda: 2)
assert len(stream) == 27, len(stream)
assert len(pickle.loads(pickle.dumps(stream))) == 27
"""
    done = subprocess.run(
        [sys.executable, "-c", script, table.store.uri, str(tmp_path / "meet")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_stream_can_be_pickled(table: Dataset) -> None:
    stream = table.to_torch(columns=["aug_id"], rank=1, world_size=2)
    assert ids(pickle.loads(pickle.dumps(stream))) == ids(stream)


# --- what a record is -------------------------------------------------------------------------


def test_classes_are_indices(table: Dataset) -> None:
    stream = table.to_torch(columns=["aug_id"], shuffle=False)
    assert stream.classes == table.classes == ("a", "b", TAIL)
    names = [stream.classes[y] for _, y in stream]
    assert names == table.to_table()["label"].to_pylist()


def test_a_table_of_numbers_is_a_vector(table: Dataset) -> None:
    stream = table.to_torch(columns=["x", "n", "flag"], shuffle=False)
    frame = table.to_pandas()[["x", "n", "flag"]].astype("float32")
    found = torch.stack([x for x, _ in stream])
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), frame.to_numpy(dtype=np.float32, na_value=np.nan))


def test_a_table_with_text_is_a_dict_of_columns(table: Dataset) -> None:
    stream = table.to_torch(shuffle=False)
    assert stream.features == ("x", "n", "flag", "site", "when")
    loader = torch.utils.data.DataLoader(stream, batch_size=5)
    x, y = next(iter(loader))
    assert x["x"].dtype == torch.float32
    assert x["site"] == table.to_pandas()["site"].tolist()[:5]
    assert x["when"][0].startswith("2026-01-")
    assert y.dtype == torch.int64


def test_an_image_is_its_pixels_by_our_rules(images: Dataset) -> None:
    stream = images.to_torch(shuffle=False, channels=3)
    assert stream.features == ("image",)
    read = images.to_table()
    for (x, y), image, label in zip(
        stream, read["image"].to_pylist(), read["label"].to_pylist(), strict=True
    ):
        assert x.dtype == torch.uint8
        assert x.shape[0] == 3
        pixels = decode_image(image["bytes"])
        expected = np.broadcast_to(pixels, (*pixels.shape[:2], 3)).transpose(2, 0, 1)
        np.testing.assert_array_equal(x.numpy(), expected)
        assert stream.classes[y] == label
    gray = [x.shape[0] for x, _ in images.to_torch()]
    assert set(gray) == {1, 3}
    assert {x.shape[0] for x, _ in images.to_torch(channels=1)} == {1}


def test_columns_beside_the_image_make_a_dict(images: Dataset) -> None:
    x, _ = list(images.to_torch(columns=["image", "tile", "aug_id"], shuffle=False))[1]
    assert x["image"].ndim == 3
    assert x["tile"] == images.to_table()["tile"][1].as_py() is not None
    assert x["aug_id"] == images.to_table()["aug_id"][1].as_py()


def test_the_transform_comes_last(images: Dataset) -> None:
    shapes = {x.shape for x, _ in images.to_torch(transform=lambda x: x[:, :8, :8], channels=1)}
    assert shapes == {(1, 8, 8)}


# --- the recipe -------------------------------------------------------------------------------


def drawn(dataset: Dataset, *, epochs: int = 1, **asked: Any) -> Counter[str]:
    found: Counter[str] = Counter()
    for epoch in range(epochs):
        stream = dataset.to_torch(columns=["aug_id"], recipe=True, **asked)
        stream.set_epoch(epoch)
        found.update(ids(stream))
    return found


@pytest.mark.slow
def test_a_recipe_draws_in_proportion_to_the_weights(table: Dataset) -> None:
    found = drawn(table, epochs=60)
    read = table.to_table().select(["aug_id", "aug_weight"]).to_pylist()
    assert sum(found.values()) == 60 * len(read)
    for record in read:
        assert found[record["aug_id"]] / 60 == pytest.approx(record["aug_weight"], abs=0.35)
    by_weight: dict[float, list[int]] = {}
    for record in read:
        by_weight.setdefault(record["aug_weight"], []).append(found[record["aug_id"]])
    mean = {weight: np.mean(draws) for weight, draws in by_weight.items()}
    for weight, draws in mean.items():
        assert draws / 60 == pytest.approx(weight, rel=0.03)


@pytest.mark.parametrize(("n_ranks", "n_workers"), [(1, 1), (2, 3), (5, 1)])
def test_a_recipe_s_draws_are_shared_out_and_the_same_for_any_number_of_readers(
    table: Dataset, n_ranks: int, n_workers: int
) -> None:
    found = over_all(table, n_ranks=n_ranks, n_workers=n_workers, recipe=True)
    assert Counter(i for of_rank in found for i in of_rank) == drawn(table)
    assert max(map(len, found)) - min(map(len, found)) <= 1


@pytest.mark.slow
def test_repeats_of_a_rare_record_are_spread_over_the_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read once, the 20 draws of one record would stand in one batch."""
    monkeypatch.setattr(groups, "ROW_GROUP_BYTES", 200)
    store = open_store(str(tmp_path / "out"))
    release = releases.stage_release(store, table=releases.source_table(400))
    weights = {"a": 0.1, "b": 0.1, TAIL: 20.0}
    recipe = release.recipe.model_copy(
        update={"class_weight": weights, "synthetic": {}, "classic": {}}
    )
    publish_parts(**{**vars(release), "recipe": recipe})
    order = ids(open_dataset(store.uri).to_torch(columns=["aug_id"], recipe=True, buffer_groups=2))
    most, times = Counter(order).most_common(1)[0]
    assert times >= 5
    assert np.ptp([i for i, k in enumerate(order) if k == most]) > len(order) / 2


def synthetic_by_epoch(dataset: Dataset, epochs: int) -> list[int]:
    made = set(dataset.to_table(origins=["synthetic"])["aug_id"].to_pylist())
    found = []
    stream = dataset.to_torch(columns=["aug_id"], recipe=True, epochs=epochs)
    for epoch in range(epochs):
        stream.set_epoch(epoch)
        found.append(sum(i in made for i in ids(stream)))
    return found


def test_synthetic_records_come_in_the_first_share_of_training_only(table: Dataset) -> None:
    found = synthetic_by_epoch(with_recipe(table, real_only_finish=0.6), 5)
    assert all(n > 0 for n in found[:3])
    assert found[3:] == [0, 0]


def test_the_share_may_end_within_an_epoch(table: Dataset) -> None:
    made = set(table.to_table(origins=["synthetic"])["aug_id"].to_pylist())
    stream = with_recipe(table, real_only_finish=0.5).to_torch(
        columns=["aug_id"], recipe=True, epochs=1
    )
    order = ids(stream)
    assert len(order) == len(stream) == 55
    assert any(i in made for i in order[:28])
    assert not any(i in made for i in order[28:])


@pytest.mark.slow
def test_classes_keep_their_share_of_the_draws_without_synthetic_records(table: Dataset) -> None:
    stream = with_recipe(table, real_only_finish=0.5).to_torch(columns=["aug_id"], recipe=True)
    stream.set_progress(1.0)
    found: Counter[int] = Counter()
    for epoch in range(100):
        stream.set_epoch(epoch)
        found.update(y for _, y in stream)
    weights = table.to_table().group_by("label").aggregate([("aug_weight", "sum")]).to_pylist()
    for row in weights:
        share = found[stream.classes.index(row["label"])] / found.total()
        assert share == pytest.approx(row["aug_weight_sum"] / 55, rel=0.05)


def test_progress_may_be_told_instead_of_epochs(
    table: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    made = set(table.to_table(origins=["synthetic"])["aug_id"].to_pylist())
    stream = with_recipe(table, real_only_finish=0.6).to_torch(columns=["aug_id"], recipe=True)
    assert any(i in made for i in ids(stream))
    stream.set_epoch(1)
    assert "give its length with to_torch(epochs=…)" in caplog.text
    stream.set_progress(0.59)
    assert any(i in made for i in ids(stream))
    stream.set_progress(0.6)
    assert not any(i in made for i in ids(stream))
    assert len(ids(stream)) == 55


def test_a_class_without_real_records_keeps_its_synthetic_ones(table: Dataset) -> None:
    dataset = with_recipe(table, real_only_finish=0.5)
    stream = dataset.to_torch(origins=["synthetic"], columns=["aug_id"], recipe=True)
    stream.set_progress(1.0)
    assert len(ids(stream)) == 4


def test_a_recipe_changes_pictures_by_its_policy_with_its_probability(
    tmp_path: Path, messy_images: ModuleType
) -> None:
    pytest.importorskip("albumentations", reason="needs the extra 'images'")
    asked = {"classic_policy": "safe", "synthetic": {}, "classic": {}}
    dataset = publish_images(tmp_path, messy_images, classic_prob=0.5, class_weight={}, **asked)
    columns = ["image", "aug_id"]
    plain = {x["aug_id"]: x["image"] for x, _ in dataset.to_torch(columns=columns, channels=3)}

    def changed(epoch: int, **places: int) -> dict[str, Any]:
        stream = dataset.to_torch(columns=columns, recipe=True, channels=3, seed=1, **places)
        stream.set_epoch(epoch)
        return {x["aug_id"]: x["image"] for x, _ in stream}

    first, second = changed(0), changed(1)
    assert set(first) == set(plain)
    n = sum(not torch.equal(first[k], plain[k]) for k in plain)
    assert 0.25 < n / len(plain) < 0.75
    assert all(torch.equal(first[k], v) for k, v in changed(0).items())
    assert any(not torch.equal(first[k], second[k]) for k in plain)
    # Whoever reads a record changes it in the same way.
    assert all(torch.equal(first[k], v) for k, v in changed(0, rank=1, world_size=3).items())


def test_repeated_draws_of_a_picture_are_changed_differently(
    tmp_path: Path, messy_images: ModuleType
) -> None:
    pytest.importorskip("albumentations", reason="needs the extra 'images'")
    assert ImagePolicy.from_params(Classic()).operations
    dataset = publish_images(
        tmp_path, messy_images, classic_policy="safe", classic_prob=1.0,
        class_weight={"a": 0.1, "b": 0.1, TAIL: 9.0}, synthetic={}, classic={},
    )  # fmt: skip
    seen: dict[str, list[Any]] = {}
    for x, _ in dataset.to_torch(columns=["image", "aug_id"], recipe=True):
        seen.setdefault(x["aug_id"], []).append(x["image"].numpy().tobytes())
    repeated = [pictures for pictures in seen.values() if len(pictures) > 2]
    assert repeated
    assert all(len(set(pictures)) == len(pictures) for pictures in repeated)


def mixing_images(tmp_path: Path, messy_images: ModuleType) -> Dataset:
    return publish_images(
        tmp_path, messy_images, synthetic={}, classic={}, class_weight={},
        mixing="cutmix", mixing_prob=1.0, smoothing={"a": 0.3, "b": 0.0},
    )  # fmt: skip


def square(image: Any) -> Any:
    """A picture as 8 by 8 numbers."""
    return torch.nn.functional.interpolate(image[None].float(), (8, 8))[0]


def test_a_recipe_that_mixes_is_applied_to_batches(
    tmp_path: Path, messy_images: ModuleType
) -> None:
    """By seed, epoch and the batch's values; hard labels become shares that sum to one."""
    dataset = mixing_images(tmp_path, messy_images)
    plain = dataset.to_torch(channels=3, transform=square)
    records = list(plain)[:12]
    assert not plain.soft_targets
    x, y = plain.collate(records)
    assert y.tolist() == [y for _, y in records]

    def mixed(seed: int = 0, epoch: int = 0) -> tuple[Any, Any]:
        stream = dataset.to_torch(channels=3, transform=square, recipe=True, seed=seed)
        stream.set_epoch(epoch)
        assert stream.soft_targets
        return stream.collate(records)

    images, targets = mixed()
    assert targets.shape == (12, len(plain.classes))
    assert torch.allclose(targets.sum(dim=1), torch.ones(12))
    assert not torch.equal(images, x)
    assert all(torch.equal(a, b) for a, b in zip(mixed(), (images, targets), strict=True))
    for other in (mixed(seed=1), mixed(epoch=1)):
        assert not torch.equal(other[0], images)


def test_other_columns_stay_beside_mixed_pictures_and_masks_are_refused(
    tmp_path: Path, messy_images: ModuleType
) -> None:
    dataset = mixing_images(tmp_path, messy_images)

    def only_the_picture(x: dict[str, Any]) -> dict[str, Any]:
        return {**x, "image": square(x["image"])}

    stream = dataset.to_torch(
        columns=["image", "aug_id"], channels=3, recipe=True, transform=only_the_picture
    )
    records = list(stream)[:12]
    x, _ = stream.collate(records)
    assert x["aug_id"] == [one["aug_id"] for one, _ in records]
    assert not torch.equal(x["image"], torch.stack([one["image"] for one, _ in records]))
    with pytest.raises(ParameterError, match="'mask' where they were"):
        dataset.to_torch(columns=["image", "mask"], recipe=True)


@pytest.mark.slow
def test_a_network_trains_on_the_batches_of_a_recipe_that_mixes(
    tmp_path: Path, messy_images: ModuleType
) -> None:
    dataset = with_recipe(
        mixing_images(tmp_path, messy_images),
        loss="balanced_softmax",
        mixing="mixup",
        mixing_prob=0.5,
    )
    stream = dataset.to_torch(channels=3, recipe=True, transform=square)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, len(stream.classes)))
    torch.nn.init.zeros_(network[1].weight)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for epoch in range(15):
        stream.set_epoch(epoch)
        loader = torch.utils.data.DataLoader(stream, batch_size=16, collate_fn=stream.collate)
        losses.append(0.0)
        for images, targets in loader:
            logits = network(images / 255) + stream.log_prior
            loss = torch.nn.functional.cross_entropy(logits, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1] += loss.item()
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_deferred_weights_count_in_the_last_part_of_the_training(table: Dataset) -> None:
    rare = table.classes.index(TAIL)
    n = sum(table.class_counts["train"][TAIL].values())

    def drawn(stream: Any, epoch: int) -> int:
        stream.set_epoch(epoch)
        assert len(list(stream)) == len(stream)
        return sum(y == rare for _, y in stream)

    plain = table.to_torch(columns=["aug_id"], recipe=True)
    late = with_recipe(table, deferred=0.5).to_torch(columns=["aug_id"], recipe=True, epochs=4)
    by_weight = [drawn(plain, epoch) for epoch in range(4)]
    found = [drawn(late, epoch) for epoch in range(4)]
    assert all(abs(k - n) <= 1 for k in found[:2]), "as the records are"
    assert min(by_weight) > n + 1
    assert all(abs(k - by_weight[0]) <= 2 for k in found[2:])
    late.set_progress(0.1)
    assert abs(drawn(late, 3) - n) <= 1


def test_what_the_training_loop_has_to_do_is_said(table: Dataset) -> None:
    stream = table.to_torch(recipe=True)
    assert (stream.loss, stream.thresholds, stream.log_prior) == ("cross_entropy", {}, None)
    tuned = {"boosting": {"a": 1.0, "b": 2.0, TAIL: 3.0}}
    strategy = table.recipe.strategy.model_copy(update={"family": "loss", "amount": 0.5})
    dataset = with_recipe(table, loss="balanced_softmax", thresholds=tuned, strategy=strategy)
    stream = dataset.to_torch(origins=["real"], recipe=True)
    assert stream.loss == "balanced_softmax"
    assert stream.thresholds == tuned
    counts = [table.class_counts["train"][name]["real"] for name in stream.classes]
    expected = np.sqrt(counts) / np.sqrt(counts).sum()
    np.testing.assert_allclose(stream.log_prior.exp().numpy(), expected, rtol=1e-5)
    assert dataset.to_torch().log_prior is None


# --- what does not fit ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"split": "holdout", "recipe": True}, "train split"),
        ({"recipe": True, "shuffle": False}, "at random"),
        ({"rank": 1}, "belong together"),
        ({"rank": 2, "world_size": 2}, "expected 0 to 1"),
        ({"channels": 2}, "expected 1, 3"),
        ({"epochs": 0}, "at least 1"),
        ({"origins": ["copy"]}, "no record to read"),
        ({"split": "test"}, "no split 'test'"),
    ],
)
def test_what_contradicts_itself_is_refused(
    table: Dataset, asked: dict[str, Any], words: str
) -> None:
    with pytest.raises(ParameterError, match=words):
        table.to_torch(**asked)


def test_progress_and_epochs_are_checked(table: Dataset) -> None:
    stream = table.to_torch()
    with pytest.raises(ParameterError, match="from 0 to 1"):
        stream.set_progress(60)
    with pytest.raises(ParameterError, match="count from 0"):
        stream.set_epoch(-1)


def test_an_unknown_column_is_named(table: Dataset) -> None:
    with pytest.raises(SchemaError, match="no column 'nope'"):
        table.to_torch(columns=["nope"])


def test_a_damaged_shard_is_found_before_training_where_asked(table: Dataset) -> None:
    shard = table.manifest.shards[0]
    data = table.store.read(shard.path)
    table.store.put(shard.path, data[:40] + bytes([data[40] ^ 1]) + data[41:])
    with pytest.raises(IntegrityError, match="other bytes than were published"):
        open_dataset(table.store.uri, verify=True).to_torch()


def most_held(dataset: Dataset) -> int:
    """Bytes that are allocated at most while all records are read once."""
    stream = iter(dataset.to_torch(columns=["x"], recipe=True, buffer_groups=2))
    before, most = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    try:
        for _ in stream:
            by_arrow = pa.total_allocated_bytes() - before
            most = max(most, by_arrow + tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    return most


@pytest.mark.slow
def test_what_is_held_does_not_grow_with_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "ROW_GROUP_BYTES", 20_000)
    held = []
    for n in (7200, 21600):  # more shards than are kept open, with either
        store = open_store(str(tmp_path / str(n)))
        rows = releases.source_table(n)
        publish_parts(**vars(releases.stage_release(store, table=rows, shard_records=400)))
        dataset = open_dataset(store.uri)
        # The smaller of two readings: other threads of the process may allocate during one.
        held.append(min(most_held(dataset) for _ in range(2)))
    assert held[1] < 2 * held[0]  # a little is known of each group
