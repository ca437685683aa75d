"""The fast path against albumentations, operation by operation, and what moves with an image."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

A = pytest.importorskip("albumentations", reason="needs the extra 'images'")

from prefect_augment.augmentation.image_fused import Fused, draws, fused  # noqa: E402 - needs the extra
from prefect_augment.augmentation.image_pipeline import FILL, Operation, Pipeline  # noqa: E402
from prefect_augment.augmentation.image_policy import ImagePolicy  # noqa: E402
from prefect_augment.augmentation.image_presets import PRESETS  # noqa: E402
from prefect_augment.encoding.annotations import Targets  # noqa: E402
from prefect_augment.encoding.pixels import resize  # noqa: E402
from prefect_augment.params import Classic  # noqa: E402


def picture(height: int = 48, width: int = 64, channels: int = 3) -> NDArray[np.uint8]:
    """Smooth, with nothing that a mild change would push over the border."""
    small = np.random.default_rng(0).integers(70, 180, (4, 5, channels), dtype=np.uint8)
    return resize(small, width, height)


def both(
    name: str, image: NDArray[np.uint8], **arguments: Any
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """What the fast path and albumentations make of an operation that has no choice."""
    size = (0, 0) if name == "RandomResizedCrop" else image.shape[:2]  # it has a size of its own
    ours, theirs = applied([Operation(name, {**arguments, "p": 1.0})], image, size)
    assert theirs.shape[:2] == ours.shape[:2]
    return ours, theirs.reshape(ours.shape)


def applied(
    operations: list[Operation], image: NDArray[np.uint8], size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    pipeline = Pipeline(operations, size=size)
    fast = fused(pipeline.nodes)
    assert isinstance(fast, Fused), f"{operations} do not fit in"
    words = np.arange(pipeline.n_words, dtype=np.uint64)
    return fast.apply(image, draws(3))[0], pipeline.apply(image, words)[0]


REFLECT = {"border_mode": 4}

# Largest mean difference in levels. Warps differ by rounding, brightness is rounded where albumentations cuts off, and
# hue is turned in YIQ, which keeps luma, instead of HSV, which keeps the largest channel.
OPERATIONS: list[tuple[str, dict[str, Any], float]] = [
    ("HorizontalFlip", {}, 0.0),
    ("VerticalFlip", {}, 0.0),
    ("NoOp", {}, 0.0),
    ("Rotate", {"limit": (12.0, 12.0), **REFLECT}, 0.3),
    ("Rotate", {"limit": (-30.0, -30.0), **REFLECT}, 0.3),
    ("Affine", {"rotate": (9.0, 9.0), "scale": (1.1, 1.1), **REFLECT}, 0.3),
    ("Affine", {"shear": {"x": (8.0, 8.0), "y": (-5.0, -5.0)}, **REFLECT}, 0.3),
    ("Affine", {"scale": {"x": (0.8, 0.8), "y": (1.2, 1.2)}, **REFLECT}, 0.3),
    ("Affine", {"translate_percent": {"x": (0.1, 0.1), "y": (-0.2, -0.2)}, **REFLECT}, 0.3),
    ("Affine", {"rotate": (9.0, 9.0), "scale": (1.2, 1.2), "shear": (4.0, 4.0), "translate_percent": (0.05, 0.05),
                "keep_ratio": True, **REFLECT}, 0.3),
    ("RandomResizedCrop", {"scale": (1.0, 1.0), "ratio": (64 / 48, 64 / 48), "size": (30, 50)}, 0.3),
    ("RandomBrightnessContrast", {"brightness_limit": (0.1, 0.1), "contrast_limit": (-0.2, -0.2)}, 1.0),
    ("ColorJitter", {"brightness": (1.2, 1.2), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0)}, 0.51),
    ("ColorJitter", {"brightness": (1, 1), "contrast": (0.8, 0.8), "saturation": (1, 1), "hue": (0, 0)}, 0.6),
    ("ColorJitter", {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1.2, 1.2), "hue": (0, 0)}, 0.6),
    ("ColorJitter", {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0.05, 0.05)}, 4.5),
    ("GaussianBlur", {"blur_limit": (5, 5), "sigma_limit": (0.8, 0.8)}, 0.6),
    ("GaussianBlur", {"blur_limit": 0, "sigma_limit": (1.5, 1.5)}, 0.6),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "tolerance"), OPERATIONS)
def test_an_operation_agrees_with_albumentations(
    name: str, arguments: dict[str, Any], tolerance: float
) -> None:
    ours, theirs = both(name, picture(), **arguments)
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.mean() <= tolerance
    assert name in ("NoOp", "RandomResizedCrop") or not np.array_equal(ours, picture())


@pytest.mark.parametrize(
    "name", ["Rotate", "RandomBrightnessContrast", "ColorJitter", "GaussianBlur"]
)
def test_gray_images_agree_too(name: str) -> None:
    arguments = next(a for n, a, _ in OPERATIONS if n == name)
    ours, theirs = both(name, picture(channels=1), **arguments)
    assert np.abs(ours.astype(int) - theirs).mean() <= 1.0


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("Affine", {"rotate": (5.0, 5.0), "border_mode": 0}),  # another border
        ("Rotate", {"interpolation": 2, **REFLECT}),  # another interpolation
        ("Affine", {"translate_px": 3, **REFLECT}),
        ("GaussNoise", {}),
        ("OneOf", {}),
    ],
)
def test_what_does_not_fit_is_left_to_albumentations(name: str, arguments: dict[str, Any]) -> None:
    inner = (Operation("HorizontalFlip", {}),) if name == "OneOf" else ()
    pipeline = Pipeline([Operation(name, arguments, inner)], size=(8, 8))
    assert fused(pipeline.nodes) is None


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"none", "trivial", "random"}))
def test_presets_take_the_fast_path(name: str) -> None:
    assert fused(Pipeline(PRESETS[name], size=(32, 32)).nodes) is not None


def test_operations_are_composed_in_their_order() -> None:
    """Turned and then mirrored is not mirrored and then turned."""
    image = picture(48, 48)
    turn = Operation("Rotate", {"limit": (20.0, 20.0), "p": 1.0, **REFLECT})
    flip = Operation("HorizontalFlip", {"p": 1.0})
    for operations in ([turn, flip], [flip, turn]):
        ours, theirs = applied(operations, image, (48, 48))
        assert np.abs(ours.astype(int) - theirs).mean() < 0.3


def test_the_random_numbers_are_even_and_independent_of_one_another() -> None:
    def drawn(seed: int, n: int) -> list[float]:
        draw = draws(seed)
        return [draw() for _ in range(n)]

    found = np.array([drawn(seed, 12) for seed in range(4000)])
    assert 0.0 <= found.min() < 0.001 < 0.999 < found.max() < 1.0
    assert np.abs(found.mean(axis=0) - 0.5).max() < 0.025  # five standard deviations
    correlation = np.corrcoef(found.T) - np.eye(12)
    assert np.abs(correlation).max() < 0.08
    assert drawn(5, 12) == drawn(5, 12)
    assert drawn(-1, 2) != drawn(1, 2)


def test_four_channels_are_warped_as_three_are(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    policy = ImagePolicy(PRESETS["safe"], prob=1.0)
    four = policy.apply(image, seed=1)
    monkeypatch.setattr("prefect_augment.augmentation.image_fused.MIN_RGBA_VALUES", image.size + 1)
    assert np.array_equal(policy.apply(image, seed=1), four)


def test_crops_have_the_areas_and_places_that_were_asked_for() -> None:
    """Of a ramp, the copy's first and last column say where the crop began and ended."""
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 1)).copy()
    crop = Operation(
        "RandomResizedCrop",
        {"scale": (0.5, 0.8), "ratio": (1.0, 1.0), "size": (200, 200), "p": 1.0},
    )
    policy = ImagePolicy((crop,), prob=1.0)
    ends = np.array([policy.apply(ramp, seed=s)[100, [0, -1], 0] for s in range(150)], dtype=float)
    sides = (ends[:, 1] - ends[:, 0] + 1) / 200
    assert np.sqrt(0.5) - 0.02 < sides.min() < 0.74
    assert 0.86 < sides.max() < np.sqrt(0.8) + 0.02
    assert ends[:, 0].min() < 5
    assert ends[:, 1].max() > 194


Scene = tuple[NDArray[np.uint8], Targets]


def scene(height: int = 80, width: int = 100) -> Scene:
    """Two bright rectangles on black, their boxes, their corners and a mask of each."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    boxes = [(20, 15, 24, 18), (60, 40, 20, 30)]
    masks = []
    for x, y, w, h in boxes:
        mask = np.zeros((height, width, 1), dtype=np.uint8)
        mask[y : y + h, x : x + w] = 255
        masks.append(mask)
        image[y : y + h, x : x + w, len(masks) - 1] = 255
    points = [(x, y) for x, y, _, _ in boxes] + [(x + w - 1, y + h - 1) for x, y, w, h in boxes]
    return image, Targets(np.array(boxes, np.float32), np.array(points, np.float32), tuple(masks))


FAST: Callable[[], ImagePolicy] = lambda: ImagePolicy(PRESETS["vehicles"], prob=1.0)  # noqa: E731
SLOW: Callable[[], ImagePolicy] = lambda: ImagePolicy(  # noqa: E731
    (*PRESETS["texture"], Operation("NoOp", {}), Operation("GaussNoise", {"p": 0.01})), prob=1.0
)


@pytest.mark.parametrize("policy", [FAST(), SLOW()], ids=["fused", "albumentations"])
def test_boxes_masks_and_keypoints_move_with_the_pixels(policy: ImagePolicy) -> None:
    """Each rectangle has a channel of its own, so that its place can be read off the pixels."""
    image, targets = scene()
    n_moved = 0
    for seed in range(40):
        changed, moved = policy.apply_targets(image, targets, seed=seed)
        ground = int(changed[0, 0].min())
        for place, box in zip(moved.places.tolist(), moved.boxes, strict=True):
            # The gray about the image is in all channels; the rectangle in its own.
            others = np.delete(changed, place, axis=2).max(axis=2).astype(int)
            rows, columns = np.nonzero(changed[:, :, place].astype(int) - others > 60)
            if not rows.size or ground > 200:
                continue
            found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            x, y, w, h = box
            # A turned rectangle's upright box is about its corners; blur and crops cost two pixels.
            assert np.abs(found - [x, y, x + w, y + h]).max() <= 4.5, (seed, place)
            mask_rows, mask_columns = np.nonzero(moved.masks[place][..., 0] > 0)
            seen = np.array(
                [mask_columns.min(), mask_rows.min(), mask_columns.max() + 1, mask_rows.max() + 1]
            )
            assert np.abs(seen - found).max() <= 2.5, (seed, place)
            point = moved.keypoints[place]
            if moved.inside[place]:
                near = moved.masks[place][
                    max(0, round(float(point[1])) - 2) : round(float(point[1])) + 3,
                    max(0, round(float(point[0])) - 2) : round(float(point[0])) + 3,
                ]
                assert near.max() == 255, "the corner lies in its mask"
            n_moved += 1
    assert n_moved > 50


def test_moved_boxes_are_those_of_all_their_points() -> None:
    """Brute force: every point of a box's outline under the map."""
    rng = np.random.default_rng(0)
    box = np.array([[12.0, 20.0, 30.0, 15.0]], np.float32)
    for _ in range(20):
        matrix = np.column_stack([np.eye(2) + rng.normal(0, 0.2, (2, 2)), rng.normal(0, 5, 2)])
        moved = Targets(box, min_visibility=0.0).started(200, 200).moved(matrix, 200, 200)
        x, y, w, h = box[0]
        t = np.linspace(0, 1, 50)
        outline = np.concatenate(
            [np.stack([x + w * t, y + 0 * t]), np.stack([x + w * t, y + h + 0 * t]),
             np.stack([x + 0 * t, y + h * t]), np.stack([x + w + 0 * t, y + h * t])], axis=1,
        )  # fmt: skip
        points = np.clip(matrix[:, :2] @ (outline - 0.5) + matrix[:, 2:] + 0.5, 0, 200)
        low, high = points.min(axis=1), points.max(axis=1)
        assert moved.boxes[0] == pytest.approx([*low, *(high - low)], abs=1e-3)


@pytest.mark.parametrize("policy_border", [4, 0], ids=["fused", "albumentations"])
def test_a_box_that_leaves_the_image_goes(policy_border: int) -> None:
    """Shifted to the right by half: the right one is gone, of the left one all is there."""
    image, targets = scene()

    def shifted(part: float, targets: Targets) -> Scene:
        ways = {"x": (part, part), "y": (0.0, 0.0)}
        arguments = {"translate_percent": ways, "border_mode": policy_border, "p": 1.0}
        policy = ImagePolicy((Operation("Affine", arguments),), prob=1.0)
        return policy.apply_targets(image, targets, seed=0)

    changed, moved = shifted(0.4, targets)
    assert moved.places.tolist() == [0]
    assert moved.boxes[0] == pytest.approx([60, 15, 24, 18], abs=0.6)
    assert moved.inside.tolist() == [True, False, True, False]
    assert (changed[:, :30] == FILL).all(), "gray, and nothing of the image once more"
    for least, places in ((0.4, [0, 1]), (0.6, [0])):
        _, moved = shifted(0.3, replace(targets, min_visibility=least))
        assert moved.places.tolist() == places, "half of the right one is left"


def test_an_image_that_is_passed_over_keeps_all_that_belongs_to_it() -> None:
    image, targets = scene()
    changed, moved = FAST().apply_targets(image, targets, seed=0, prob=0.0)
    assert changed is image
    assert np.array_equal(moved.boxes, targets.boxes)
    assert moved.places.tolist() == [0, 1]


def test_images_without_boxes_pass() -> None:
    image, _ = scene()
    for policy in (FAST(), SLOW()):
        changed, moved = policy.apply_targets(image, Targets(), seed=1)
        assert changed.shape == image.shape
        assert (len(moved.boxes), len(moved.keypoints), moved.masks) == (0, 0, ())


@pytest.mark.parametrize("preset", ["safe", "natural", "medical", "trivial", "random"])
def test_a_batch_is_what_each_image_alone_would_be(preset: str) -> None:
    policy = ImagePolicy.from_params(Classic(image=preset, image_prob=0.6))
    images = [picture(), picture()[:40, :52], picture()[..., :1].copy()] * 4
    seeds = list(range(40, 52))
    n_passed_over = []
    for probs in (None, [1.0] * len(seeds)):
        batch = policy.batch(images, seeds, probs)
        for image, seed, one in zip(images, seeds, batch, strict=True):
            alone = policy.apply(image, seed=seed, prob=probs and 1.0)
            np.testing.assert_array_equal(one, alone)
            assert (one is image) == (alone is image)
        n_passed_over.append(sum(x is image for x, image in zip(batch, images, strict=True)))
    assert len(images) > n_passed_over[0] > n_passed_over[1]


@pytest.mark.parametrize("preset", ["trivial", "safe"])
def test_boxes_of_which_nothing_is_in_the_image_are_left_out(preset: str) -> None:
    policy = ImagePolicy.from_params(Classic(image=preset))
    boxes = np.array([[5, 5, 0, 10], [2, 2, 10, 10], [40, 1, 5, 5]], np.float32)
    image = np.full((32, 32, 3), 90, np.uint8)
    for seed in range(5):
        _, moved = policy.apply_targets(image, Targets(boxes=boxes), seed=seed, prob=1.0)
        assert set(moved.places.tolist()) <= {1}
