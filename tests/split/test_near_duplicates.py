"""Near-duplicate clusters of images that were made to be alike, or not."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from prefect_augment.split.near_duplicates import (
    DISTANCES,
    GAP,
    MAX_LEVEL,
    ThumbRows,
    cluster_images,
    cluster_limit,
    nearest_by_group,
    strengths,
)
from prefect_augment.storage import spill

Thumbs = NDArray[np.int8]


def thumbs(n: int, seed: int = 0, cells: int = 8) -> Thumbs:
    """Random smooth pictures: no two of them are near."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(n, cells, cells))
    return scaled(coarse.repeat(32 // cells, axis=1).repeat(32 // cells, axis=2).reshape(n, -1))


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


def test_images_on_disk_have_the_clusters_and_neighbours_of_those_in_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The split is permanent: where thumbnails lie must not change a decision."""
    first = thumbs(60, cells=4)
    both = np.concatenate([first, noisy(first, 8.0), noisy(first[:30], 14.0, seed=2)])
    clusters, levels = cluster_images(both, limit=20)
    parts: dict[str, Any] = {"groups": np.arange(60) % 2, "levels": levels[:60], "n_groups": 2}
    near = nearest_by_group(both[60:], first, **parts)
    monkeypatch.setattr(spill, "IN_MEMORY", 0)
    order = np.random.default_rng(3).permutation(len(both))
    aside = spill.ArraySpill(1024)
    aside.append(both[order])
    view = ThumbRows(aside, np.argsort(order))
    found = cluster_images(view, limit=20)
    assert np.array_equal(found[0], clusters)
    assert np.array_equal(found[1], levels)
    again = nearest_by_group(ThumbRows(view, np.arange(60, 150)), first, **parts)
    assert near.strength.any()
    for name in ("strength", "index", "level"):
        assert np.array_equal(getattr(again, name), getattr(near, name))


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
    flat = np.zeros((5, 1024), dtype=np.int8)
    clusters, _ = cluster_images(np.concatenate([flat, thumbs(5)]), limit=20)
    assert len(set(clusters.tolist())) == 10


def test_no_image_at_all_is_no_cluster() -> None:
    clusters, levels = cluster_images(np.zeros((0, 1024), dtype=np.int8), limit=20)
    assert len(clusters) == len(levels) == 0


@pytest.mark.slow
def test_more_images_of_one_hash_than_a_bucket_holds_stay_together() -> None:
    """A still camera: thousands of frames that differ in noise alone."""
    frames = noisy(thumbs(1).repeat(2600, axis=0), 0.6)
    clusters, _ = cluster_images(frames, limit=5000)
    assert len(set(clusters.tolist())) == 1


def apart(*distances: float) -> Thumbs:
    """A random picture, and others so far from it on one line; below 0 on the other side of it."""
    first, other = thumbs(2, seed=3).astype(np.float64)
    other -= (other @ first) / (first @ first) * first
    first, other = (x / np.linalg.norm(x) for x in (first, other))
    away = np.array([0.0, *distances])[:, None]
    cosines = 1 - np.abs(away)
    return scaled(cosines * first + np.sign(away) * np.sqrt(1 - cosines**2) * other)


@pytest.mark.parametrize("level", [0, 3, MAX_LEVEL])
def test_a_pair_is_near_at_the_levels_whose_distance_it_is_below(level: int) -> None:
    limit = DISTANCES[GAP + level]
    found = apart(0.7 * limit, 1.6 * limit)
    assert strengths(found[:2])[2] > level
    assert not (strengths(found[[0, 2]])[2] > level).any()


def moved(images: Thumbs, cells: int) -> Thumbs:
    """The pictures shifted to the right; their left edge is repeated."""
    square = images.reshape(len(images), 32, 32).astype(np.float64)
    square = np.concatenate([square[:, :, :1].repeat(cells, axis=2), square[:, :, :-cells]], axis=2)
    return scaled(square.reshape(len(images), -1))


@pytest.mark.parametrize("cells", [1, 2])
def test_a_copy_that_is_moved_joins_its_original(cells: int) -> None:
    """One pixel of an image of 16 is two cells of its thumbnail, one of an image of 32 is one."""
    first = thumbs(200)
    clusters, _ = cluster_images(np.concatenate([first, moved(first, cells)]), limit=20)
    assert (clusters[:200] == clusters[200:]).mean() > 0.95
    assert np.bincount(clusters).max() == 2


def test_a_pair_is_near_only_where_all_else_is_much_farther() -> None:
    """The same two pictures, with and without a third one that is three times as far."""
    pair = apart(0.02)
    far = thumbs(60, seed=8)
    alone, levels = cluster_images(np.concatenate([pair, far]), limit=20)
    assert alone[0] == alone[1]
    assert levels[0] == 0
    crowded, levels = cluster_images(np.concatenate([pair, apart(-0.06)[1:], far]), limit=20)
    assert len(set(crowded[:3].tolist())) == 3
    assert levels[:2].min() >= 3


def test_nothing_is_cut_from_a_cluster_that_is_alone() -> None:
    """Frames of one scene that moves: the first and the last are far apart, each is near the next."""
    scene = apart(*np.linspace(0, 0.2, 19) ** 1.5)
    clusters, levels = cluster_images(np.concatenate([scene, thumbs(40, seed=8)]), limit=25)
    assert len(set(clusters[:20].tolist())) == 1
    assert not levels[:20].any()


@pytest.mark.slow
def test_real_digits_are_no_copies_of_one_another_and_copies_of_them_are() -> None:
    """At 16x16 pixels, as the demo has them; one shared threshold had half of them in clusters."""
    datasets = pytest.importorskip("sklearn.datasets")
    check = pytest.importorskip("prefect_augment.sources.images.validation")
    image = pytest.importorskip("PIL.Image")

    def thumb(picture: Any, kind: str = "PNG", **options: int) -> Any:
        sink = io.BytesIO()
        picture.save(sink, kind, **options)
        return check.check_image(sink.getvalue(), max_megapixels=1).thumb

    ink = np.rint(datasets.load_digits().images[:600] * (255 / 16)).astype(np.uint8)
    originals = [image.fromarray(x).resize((16, 16), image.Resampling.BICUBIC) for x in ink]
    first = np.stack([thumb(x) for x in originals])
    clusters, _ = cluster_images(first, limit=30)
    assert len(set(clusters.tolist())) >= 598
    shifted = [image.fromarray(np.roll(np.asarray(x), 1, axis=1)) for x in originals[:200]]
    for copies in (
        [thumb(x, "JPEG", quality=50) for x in originals[:200]],
        [thumb(x.resize((18, 18))) for x in originals[:200]],
        [thumb(x.point(lambda v: v * 0.95)) for x in originals[:200]],
        [thumb(x.crop((1, 0, 16, 16))) for x in originals[:200]],
        [thumb(x) for x in shifted],
    ):
        clusters, _ = cluster_images(np.concatenate([first, copies]), limit=40)
        assert (clusters[:200] == clusters[600:]).mean() >= 0.95


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
