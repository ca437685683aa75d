"""Strips between images: which of them change once, and whether they are those of `interpolate`."""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.steps import experiment_of

from prefect_augment.ingest.ingest import ingest
from prefect_augment.latents.base import Job
from prefect_augment.latents.uses import use_latents
from prefect_augment.loading.latents import open_latents
from prefect_augment.params import Interpolation, PluginModel, RunParams, Source
from prefect_augment.plan.plan import plan
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Store
from prefect_augment.synthesis.model_store import load_model
from prefect_augment.synthesis.train import train


@pytest.mark.parametrize(
    ("seen", "once"),
    [
        ([1, 1, 2, 2], True),
        ([1, 2, 2, 2], True),
        ([1, 3, 2, 2], False),  # another class on the way
        ([1, 2, 1, 2], False),  # there and back
        ([1, 1, 1, 1], False),  # never
        ([1, 1, 3, 3], False),  # ends as something else
        ([2, 2, 1, 1], False),  # the other way round
    ],
)
def test_a_strip_changes_once_from_the_first_class_to_the_last(
    image_latents: ModuleType, seen: list[int], once: bool
) -> None:
    found = image_latents.changes_once(np.array([seen]), np.array([[1, 2]]))
    assert found.tolist() == [once]


class Brightness:
    """An image stands for its mean, and comes back as a plain one."""

    def embed(self, X: np.ndarray) -> np.ndarray:
        return X.reshape(len(X), -1).mean(axis=1, keepdims=True).astype(np.float32)

    def decode_latents(self, Z: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.broadcast_to(Z[:, :, None, None], (len(Z), 4, 4, 1)).round().astype(np.uint8)


def plain(levels: list[int]) -> np.ndarray:
    return np.repeat(np.array(levels, dtype=np.uint8), 16).reshape(-1, 4, 4, 1)


def test_only_straight_strips_pass_by_a_class_that_lies_between(image_latents: ModuleType) -> None:
    """Dark, gray and bright: between dark and bright, gray is on the way; between neighbours nothing is."""
    levels = [10, 20, 30, 110, 120, 130, 210, 220, 230]
    rows, y = np.arange(9), np.repeat([0, 1, 2], 3)
    parts = image_latents.ImageParts(plain(levels), y, ("dark", "gray", "bright"), rows, rows, rows)
    ends = image_latents.Ends(
        np.array([[0, 2], [3, 5], [6, 8]]), np.array([[0, 3], [3, 8], [0, 8], [1, 6]])
    )
    strips = image_latents.strips_of(
        Brightness(), parts, ends, lambda X: X[:, 0, 0, 0].astype(np.int64) // 86, n_steps=9
    )
    assert (strips.kept, strips.ends_within, strips.ends_between) == (1.0, 1.0, 1.0)
    assert (strips.once, strips.medoids) == (1.0, 1.0)
    assert strips.once_straight == pytest.approx(2 / 4)
    assert strips.medoids_straight == pytest.approx(2 / 3)


def test_ends_are_two_records_of_a_class_and_one_of_each_of_two(image_latents: ModuleType) -> None:
    rows, y = np.arange(40), np.repeat([0, 1, 2, 3], 10)
    parts = image_latents.ImageParts(plain([0] * 40), y, tuple("abcd"), rows, rows, rows)
    ends = image_latents.Ends.drawn(parts, rows[1::2], per_class=4, seed=0)
    assert len(ends.within) == 4 * 4
    assert len(ends.between) == 6 * 2
    assert (y[ends.within[:, 0]] == y[ends.within[:, 1]]).all()
    assert (ends.within[:, 0] != ends.within[:, 1]).all()
    assert (y[ends.between[:, 0]] < y[ends.between[:, 1]]).all()
    assert set(ends.within.ravel().tolist()) <= set(rows[1::2].tolist())


@pytest.mark.slow
@pytest.mark.parametrize("path", ["class", "straight"])
def test_strips_are_those_of_interpolate(
    image_latents: ModuleType, shapes: ModuleType, linear_model: PluginModel, tmp_path: Path,
    path: Any, store: Store) -> None:  # fmt: skip
    pq.write_table(shapes.as_table(shapes.with_attributes(192, 0)), tmp_path / "in.parquet")
    source = Source(uri=str(tmp_path / "in.parquet"), label="form")
    dataset = ingest(source, store=store, seed=0)
    planned = plan(dataset, RunParams(model=linear_model), store, compares=False)
    ref = train(experiment_of(dataset, planned, model=linear_model), store)
    interpolation = Interpolation(start="cross", end="square", n_steps=5, path=path)
    result = use_latents(Job.of("interpolations", dataset, ref, store, params=interpolation))
    strip = open_latents(f"{store.uri}/{result.folder}").to_table()
    fitted, encoder = load_model(store, ref)
    pixels = encoder.encode(strip)
    Z = fitted.embed(pixels[[0, -1]]).astype(np.float64)[None]
    y = np.array([[encoder.strata.index(name) for name in ("cross", "square")]])
    training = read_part(store, load_info(dataset, store), ["training"])
    vectors = fitted.embed(encoder.encode(training)).astype(np.float64)
    own = [np.array(training["form"].to_pylist()) == name for name in ("cross", "square")]
    centres = np.stack([vectors[rows].mean(axis=0) for rows in own])[None]
    path_centres = centres if path == "class" else None
    made = image_latents.along(fitted, Z, y, path_centres, n_steps=5)
    assert np.array_equal(made, pixels[1:-1])
    assert not np.array_equal(made[0], made[-1])
