"""Classic augmentation of images: mild, seeded per record, and the same wherever it runs."""

import pickle
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("albumentations", reason="needs the extra 'images'")

from prefect_augment.augmentation.image_pipeline import Operation
from prefect_augment.augmentation.image_policy import ImagePolicy, record_seed
from prefect_augment.encoding.pixels import resize
from prefect_augment.errors import ParameterError
from prefect_augment.params import Classic

SAFE = ImagePolicy.from_params(Classic())
ALWAYS = ImagePolicy.from_params(Classic(image_prob=1.0))
FLIPS = ImagePolicy(
    tuple(Operation(name, {"p": 0.5}) for name in ("HorizontalFlip", "VerticalFlip", "Transpose")),
    prob=1.0,
)


def picture(seed: int = 0, size: int = 28, channels: int = 1) -> NDArray[np.uint8]:
    """Smooth, with nothing that a mild change would push over the border."""
    small = np.random.default_rng(seed).integers(60, 190, (4, 4, channels), dtype=np.uint8)
    return resize(small, size, size)


def seeds(n: int, run_seed: int = 0) -> list[int]:
    return [record_seed(run_seed, f"{i:032x}", 0) for i in range(n)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(8, 8), (28, 28), (1, 1), (3, 120), (200, 160)])
def test_sizes_and_channel_counts_keep_their_shape(shape: tuple[int, int], channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, channels), dtype=np.uint8)
    before = image.copy()
    changed = ALWAYS.apply(image, seed=1)
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    assert np.array_equal(image, before)


def test_half_of_the_records_are_left_as_they_are() -> None:
    image = picture()
    changed = [not np.array_equal(SAFE.apply(image, seed=s), image) for s in seeds(400)]
    assert 160 < sum(changed) < 240  # 200 ± 4 standard deviations


def test_probability_does_not_change_how_a_changed_image_looks() -> None:
    image = picture()
    for seed in seeds(40):
        once = SAFE.apply(image, seed=seed)
        if not np.array_equal(once, image):
            assert np.array_equal(once, SAFE.apply(image, seed=seed, prob=1.0))
            assert np.array_equal(once, ALWAYS.apply(image, seed=seed))


def test_changes_stay_as_mild_as_the_preset_says() -> None:
    """A dot on black: its way shows turning, scaling and shifting; its brightness the rest."""
    size, place = 101, 25  # 25 pixels from the middle, both ways
    image = np.zeros((size, size, 1), dtype=np.uint8)
    image[50 + place - 2 : 50 + place + 3, 50 + place - 2 : 50 + place + 3] = 200
    distance, angles, ways = np.hypot(place, place), [], []
    for seed in seeds(150):
        weights = ALWAYS.apply(image, seed=seed)[:, :, 0].astype(float)
        weights[weights < 60] = 0  # brightness lifts the black
        rows, columns = np.indices(weights.shape)
        y = (rows * weights).sum() / weights.sum() - 50
        x = (columns * weights).sum() / weights.sum() - 50
        ways.append(float(np.hypot(x - place, y - place)))
        angles.append(float(np.degrees(np.arctan2(y, x))) - 45)
    # Farthest: turned by 10 degrees, scaled by 1.1 and shifted by 7 % both ways.
    farthest = distance * (2 * 1.1 * np.sin(np.radians(5)) + 0.1) + np.hypot(7.07, 7.07)
    assert max(ways) < farthest + 0.5
    assert max(ways) > 8
    assert max(angles) > 8
    assert min(angles) < -8


def test_small_images_move_by_less_than_a_pixel_too() -> None:
    """In whole pixels, rounded towards none, 7 % of 8 would never be a shift."""
    shift = ImagePolicy(
        (Operation("Affine", {"translate_percent": (0.06, 0.07), "border_mode": 4, "p": 1.0}),), 1.0
    )
    image = picture(size=8)
    assert not np.array_equal(shift.apply(image, seed=0), image)


def test_no_augmentation_leaves_every_image() -> None:
    policy = ImagePolicy.from_params(Classic(image="none"))
    image = picture()
    assert all(np.array_equal(policy.apply(image, seed=s, prob=1.0), image) for s in seeds(20))


def test_operations_are_independent_of_one_another() -> None:
    """One seed for a whole Compose gives 2 of these 8 patterns, and half of the images each."""
    image = np.arange(9, dtype=np.uint8).reshape(3, 3, 1)
    patterns = Counter(FLIPS.apply(image, seed=s).tobytes() for s in seeds(800))
    assert len(patterns) == 8
    assert min(patterns.values()) > 60  # 100 ± 4 standard deviations


def test_nested_pipelines_are_seeded_node_by_node() -> None:
    """A composition inside the pipeline, as a user's YAML may have, draws for itself."""
    import albumentations

    from prefect_augment.augmentation.image_pipeline import _descend

    flips = [albumentations.HorizontalFlip(p=1), albumentations.Transpose(p=1)]
    inner = albumentations.OneOf(flips)
    pipeline = albumentations.Compose([inner, albumentations.VerticalFlip()])
    names = [type(node).__name__ for node in _descend(pipeline)]
    assert names == ["Compose", "OneOf", "HorizontalFlip", "Transpose", "VerticalFlip"]


def work(job: tuple[int, int, int]) -> tuple[int, bytes]:
    """One record in a process of its own settings; at module level, because spawn imports it."""
    place, seed, cv2_threads = job
    import cv2

    cv2.setNumThreads(cv2_threads)
    image = picture(place, 96, 3)
    return place, SAFE.apply(image, seed=seed).tobytes() + FLIPS.apply(image, seed=seed).tobytes()


@pytest.fixture(scope="module")
def expected() -> dict[int, bytes]:
    return dict(work((place, seed, 1)) for place, seed in enumerate(seeds(40)))


@pytest.fixture
def _cv2_as_before() -> Iterator[None]:
    import cv2

    n = cv2.getNumThreads()
    yield
    cv2.setNumThreads(n)


@pytest.mark.usefixtures("_cv2_as_before")
@pytest.mark.parametrize("cv2_threads", [1, 2])
def test_order_and_threads_do_not_matter(expected: dict[int, bytes], cv2_threads: int) -> None:
    jobs = [(place, seed, cv2_threads) for place, seed in enumerate(seeds(40))]
    assert dict(map(work, reversed(jobs))) == expected


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_make_the_same_bytes(expected: dict[int, bytes], workers: int) -> None:
    jobs = [(place, seed, workers) for place, seed in enumerate(seeds(40))]
    np.random.default_rng(workers).shuffle(jobs)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        assert dict(pool.map(work, jobs, chunksize=7)) == expected


@pytest.mark.usefixtures("_cv2_as_before")
def test_threads_make_the_same_bytes(expected: dict[int, bytes]) -> None:
    jobs = [(place, seed, 1) for place, seed in enumerate(seeds(40))]
    with ThreadPoolExecutor(4) as pool:
        assert dict(pool.map(work, jobs * 3)) == expected


def test_a_pickled_policy_does_the_same() -> None:
    again = pickle.loads(pickle.dumps(SAFE))
    images = [picture(i) for i in range(12)]
    one, other = (policy.batch(images, seeds(12)) for policy in (SAFE, again))
    assert all(map(np.array_equal, one, other))
    assert len(one) == len(other) == 12


def test_seeds_tell_runs_records_and_copies_apart() -> None:
    found = {
        record_seed(run, f"{record:032x}", copy)
        for run in (-1, 0, 1, 2**63)
        for record in (0, 1, 2**128 - 1)
        for copy in range(3)
    }
    assert len(found) == 36
    assert all(0 <= seed < 2**63 for seed in found)


def test_known_seed_gives_the_known_copy() -> None:
    """A dataset's lineage names seed and policy: a new release must make the same copies."""
    assert record_seed(7, "00ff" * 8, 2) == 2147305092454431767
    assert SAFE.digest.startswith("08d37a7aca9f")
    known = [[175, 80, 137, 84], [193, 138, 152, 91], [157, 101, 127, 191], [101, 80, 92, 92]]
    changed = ALWAYS.apply(picture(), seed=7)[::9, ::9, 0]
    assert np.abs(changed.astype(int) - known).max() <= 1  # cv2 builds may round differently


def test_digest_names_what_the_policy_does() -> None:
    assert SAFE.digest == ImagePolicy.from_params(Classic(k_neighbors=3)).digest
    assert len({SAFE.digest, ALWAYS.digest, FLIPS.digest}) == 3


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (Operation("Afine", {}), "no operation 'Afine'; did you mean 'Affine'"),
        (Operation("os", {}), "no operation 'os'"),
        (Operation("Compose", {"transforms": []}), "no operation 'Compose'"),
        # The successor's name for it; 2.0.8 warns, and turns by 90 degrees.
        (Operation("Rotate", {"angle_range": (-5, 5)}), "no argument 'angle_range'"),
        (Operation("Rotate", {"limt": 5}), "no argument 'limt'; did you mean 'limit'"),
        (Operation("Rotate", {"limit": "five"}), "does not take"),
    ],
)
def test_mistakes_in_a_policy_are_errors(operation: Operation, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        ImagePolicy((operation,)).check()


def test_other_arrays_are_refused() -> None:
    for image in (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8)):
        with pytest.raises(ParameterError, match="expected uint8 of shape"):
            SAFE.apply(image, seed=0)


def test_policy_says_what_it_does() -> None:
    assert "never flipped" in SAFE.rule
    assert "50 %" in SAFE.rule
