"""Near-duplicate clusters of images that were made to be alike, or not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from prefect_augment.encoding.near_duplicates import (
    LEVELS,
    cluster_images,
    cluster_limit,
    nearest_by_group,
    strengths,
)

Thumbs = NDArray[np.int8]


def thumbs(n: int, seed: int = 0, cells: int = 6) -> Thumbs:
    """Random smooth pictures: no two of them are near."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(n, cells, cells))
    return scaled(coarse.repeat(24 // cells, axis=1).repeat(24 // cells, axis=2).reshape(n, -1))


def scaled(images: NDArray[np.float64]) -> Thumbs:
    centred = images - images.mean(axis=1, keepdims=True)
    return np.rint(127 * centred / np.abs(centred).max(axis=1, keepdims=True)).astype(np.int8)


def noisy(images: Thumbs, sigma: float, seed: int = 1) -> Thumbs:
    rng = np.random.default_rng(seed)
    return scaled(images + rng.normal(0, sigma, images.shape))


def same_partition(one: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    return (
        len(set(zip(one.tolist(), other.tolist(), strict=True))) == len(set(one)) == len(set(other))
    )


def test_different_images_are_clusters_of_their_own() -> None:
    clusters, levels = cluster_images(thumbs(300), limit=20)
    assert len(set(clusters.tolist())) == 300
    assert not levels.any()


def test_noisy_copies_join_their_original() -> None:
    first = thumbs(200)
    both = np.concatenate([first, noisy(first, 8.0)])
    clusters, _ = cluster_images(both, limit=20)
    assert (clusters[:200] == clusters[200:]).all()
    assert len(set(clusters.tolist())) == 200


def test_the_order_of_the_images_does_not_matter() -> None:
    first = thumbs(150)
    both = np.concatenate([first, noisy(first, 8.0), noisy(first[:50], 14.0, seed=2)])
    order = np.random.default_rng(3).permutation(len(both))
    one, one_levels = cluster_images(both, limit=20)
    other, other_levels = cluster_images(both[order], limit=20)
    assert same_partition(one[order], other)
    assert (one_levels[order] == other_levels).all()


def test_a_crowd_of_look_alikes_is_told_apart_more_strictly_and_others_are_not() -> None:
    """A class whose images are all alike would otherwise be one cluster, and could not be split."""
    crowd = noisy(thumbs(1).repeat(400, axis=0), 9.0)
    pairs = thumbs(100, seed=5)
    together = np.concatenate([crowd, pairs, noisy(pairs, 8.0, seed=6)])
    clusters, levels = cluster_images(together, limit=cluster_limit(len(together)))
    assert np.bincount(clusters).max() <= cluster_limit(len(together))
    assert levels[:400].min() >= 1
    assert not levels[400:].any()
    assert (clusters[400:500] == clusters[500:]).all()


def test_flat_images_are_near_nothing() -> None:
    flat = np.zeros((5, 576), dtype=np.int8)
    clusters, _ = cluster_images(np.concatenate([flat, thumbs(5)]), limit=20)
    assert len(set(clusters.tolist())) == 10


def test_no_image_at_all_is_no_cluster() -> None:
    clusters, levels = cluster_images(np.zeros((0, 576), dtype=np.int8), limit=20)
    assert len(clusters) == len(levels) == 0


def test_more_images_of_one_hash_than_a_bucket_holds_stay_together() -> None:
    """A still camera: thousands of frames that differ in noise alone."""
    frames = noisy(thumbs(1).repeat(2600, axis=0), 0.6)
    clusters, _ = cluster_images(frames, limit=5000)
    assert len(set(clusters.tolist())) == 1


@pytest.mark.parametrize("level", [0, 3, 6])
def test_strength_counts_the_levels_that_a_pair_exceeds(level: int) -> None:
    """Two orthogonal pictures mixed to a known correlation."""
    wave = np.sin(np.arange(576) * 2 * np.pi * 3 / 576)
    other = np.cos(np.arange(576) * 2 * np.pi * 3 / 576)
    wanted = LEVELS[level] + 0.0008
    mixed = wanted * wave + np.sqrt(1 - wanted**2) * other
    pair = scaled(np.stack([wave, mixed]))
    _, _, strength = strengths(pair[:1], pair[1:])
    assert strength.tolist() == [level + 1]


def test_the_nearest_of_each_group_is_found_with_its_place() -> None:
    first = thumbs(60)
    others = np.concatenate([noisy(first, 6.0), noisy(first[:30], 1.0, seed=4), thumbs(40, seed=9)])
    groups = np.repeat([0, 2, 1], [60, 30, 40])
    found = nearest_by_group(
        first, others, groups=groups, levels=np.zeros(130, dtype=np.int64), n_groups=3
    )
    assert (found.index[:, 0] == np.arange(60)).all()
    assert (found.index[:30, 2] == 60 + np.arange(30)).all()
    assert (found.index[30:, 2] == -1).all()
    assert (found.index[:, 1] == -1).all()
    assert (found.strength[:30, 2] >= found.strength[:30, 0]).all()
