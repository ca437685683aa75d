"""Policies with wider and narrower ranges: what is scaled, and that the same policy is written and applied."""

import numpy as np
import pytest

pytest.importorskip("albumentations", reason="needs the extra 'images'")

from prefect_augment.augmentation.image_pipeline import Operation, flattened
from prefect_augment.augmentation.image_policy import ImagePolicy
from prefect_augment.augmentation.image_presets import DOMAINS, check_allowed, stronger
from prefect_augment.evaluation.classifiers.batch_transforms import ClassicRanges
from prefect_augment.params import Classic

SCALABLE = [name for name in DOMAINS if name not in ("none", "trivial", "random")]


def picture() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(60, 190, (24, 24, 3), dtype=np.uint8)


def change(policy: ImagePolicy) -> float:
    """How far a picture is changed on average, over some seeds."""
    image = picture()
    made = [policy.apply(image, seed=seed, prob=1.0) for seed in range(20)]
    return float(np.mean([np.abs(m.astype(float) - image).mean() for m in made]))


def test_once_as_strong_is_the_policy_itself() -> None:
    policy = ImagePolicy.from_params(Classic())
    assert policy.stronger(1.0) is policy
    assert policy.stronger(2.0).digest != policy.digest


def test_no_strength_leaves_pictures_as_they_are() -> None:
    policy = ImagePolicy.from_params(Classic())
    assert change(policy.stronger(0.0)) < 1.0 < change(policy)


@pytest.mark.parametrize("name", SCALABLE)
def test_presets_keep_their_own_rules_with_twice_the_strength(name: str) -> None:
    policy = ImagePolicy.from_params(Classic(image=name))  # type: ignore[arg-type]
    twice = policy.stronger(2.0)
    check_allowed(twice.operations, name)
    twice.check()
    names = [op.name for op in flattened(policy.operations)]
    assert [op.name for op in flattened(twice.operations)] == names
    assert twice.name == name, "it is known by the preset's name"


def test_a_recipe_gives_the_strength_back() -> None:
    policy = ImagePolicy.from_params(Classic()).stronger(2.0)
    again = ImagePolicy.from_config(policy.info)
    assert again.digest == policy.digest
    image = picture()
    assert np.array_equal(again.apply(image, seed=3, prob=1), policy.apply(image, seed=3, prob=1))


def test_ranges_around_one_stay_above_zero_and_other_arguments_stay() -> None:
    crop = stronger(Operation("RandomResizedCrop", {"scale": (0.4, 1.0), "p": 0.3}), 4.0)
    assert crop.arguments["scale"] == (pytest.approx(0.05), 1.0)
    assert crop.arguments["p"] == 0.3
    flip = Operation("HorizontalFlip", {"p": 0.5})
    assert stronger(flip, 3.0) == flip
    inner = stronger(Operation("OneOf", {"p": 1.0}, (Operation("Rotate", {"limit": 10}),)), 2.0)
    assert inner.inner[0].arguments == {"limit": 20}


def test_the_classifiers_own_transform_scales_like_the_preset() -> None:
    ranges = ClassicRanges().stronger(2.0)
    (move, light) = ImagePolicy.from_params(Classic()).stronger(2.0).operations
    assert move.arguments["rotate"] == (-ranges.rotate_degrees, ranges.rotate_degrees)
    assert move.arguments["scale"] == pytest.approx(ranges.scale_range)
    assert move.arguments["translate_percent"] == pytest.approx((-ranges.shift, ranges.shift))
    assert light.arguments["brightness_limit"] == (-ranges.brightness, ranges.brightness)
    assert light.arguments["contrast_limit"] == (-ranges.contrast, ranges.contrast)
