"""Presets of images by domain: their operations, and the operations that would change a label there.

Stored copies are seen as often as their originals, so they are milder than augmentation on the fly.
Ranges are those of the prototype that gained five points (``safe``), of the papers cited in
``docs/augmentation.md``, and of practice; ``check-policy`` tests whether they keep your labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from prefect_augment.augmentation.image_fused import REFLECT_101
from prefect_augment.augmentation.image_pipeline import Operation, flattened
from prefect_augment.errors import ParameterError


@dataclass(frozen=True)
class Domain:
    """Operations that suit one kind of images, and those that may change their label."""

    rule: str  # what the preset does, in a sentence for the report
    operations: tuple[Operation, ...]
    forbids: tuple[str, ...] = ()  # also in a user's pipeline that names this domain
    most_degrees: float = 180.0  # largest rotation


def _op(name: str, p: float = 1.0, **arguments: Any) -> Operation:
    return Operation(name, {**arguments, "p": p})


def _move(degrees: float, scale: float, shift: float, shear: float = 0.0) -> Operation:
    """Turn, scale and shift, the border filled by reflection."""
    return _op(
        "Affine",
        rotate=(-degrees, degrees),
        scale=(1.0 - scale, 1.0 + scale),
        keep_ratio=True,
        translate_percent=(-shift, shift),
        shear=(-shear, shear),
        border_mode=REFLECT_101,
    )


def _light(brightness: float, contrast: float) -> Operation:
    return _op(
        "RandomBrightnessContrast",
        brightness_limit=(-brightness, brightness),
        contrast_limit=(-contrast, contrast),
    )


def _blur(p: float) -> Operation:
    return _op("GaussianBlur", p, blur_limit=(3, 5), sigma_limit=(0.5, 1.0))


_FLIPS = ("HorizontalFlip", "VerticalFlip", "Transpose", "D4", "SquareSymmetry", "RandomRotate90")
_COVERS = ("CoarseDropout", "GridDropout", "XYMasking", "Erasing", "PixelDropout", "Mosaic")
_COLOURS = ("ColorJitter", "HueSaturationValue", "ChannelShuffle", "RGBShift", "PlanckianJitter", "ToSepia",
            "ChannelDropout", "InvertImg")  # fmt: skip
_TONES = ("Solarize", "Posterize", "Equalize", "CLAHE", "AutoContrast")
_WARPS = ("ElasticTransform", "GridDistortion", "OpticalDistortion", "ThinPlateSpline", "GridElasticDeform",
          "PiecewiseAffine")  # fmt: skip
_CROPS = ("RandomResizedCrop", "RandomCrop", "CenterCrop", "RandomSizedCrop", "CropAndPad")


def _one_of_14(m: float) -> Operation:
    """One of 14 operations, equally likely, with a uniform magnitude up to the share ``m`` of the full one.

    Müller & Hutter 2021, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", table of the space "RA".
    """
    factor = (round(1 - 0.9 * m, 6), round(1 + 0.9 * m, 6))

    def affine(name: str, x: float, y: float) -> Operation:
        ranges: Any = {name: {"x": (0.0 - x, x), "y": (0.0 - y, y)}}
        return _op("Affine", **ranges, border_mode=REFLECT_101)

    def colour(name: str) -> Operation:
        same: Any = dict.fromkeys(("brightness", "contrast", "saturation"), (1.0, 1.0))
        return _op("ColorJitter", **{**same, name: factor}, hue=(0.0, 0.0))

    operations = (
        _op("NoOp"),
        affine("shear", 17.0 * m, 0.0),
        affine("shear", 0.0, 17.0 * m),
        affine("translate_percent", 0.3 * m, 0.0),
        affine("translate_percent", 0.0, 0.3 * m),
        _op("Rotate", limit=(-30.0 * m, 30.0 * m), border_mode=REFLECT_101),
        colour("brightness"),
        colour("saturation"),
        colour("contrast"),
        _op("Sharpen", alpha=(0.0, 0.9 * m)),
        _op("Posterize", num_bits=(8 - round(4 * m), 8)),
        _op("Solarize", threshold_range=(1 - m, 1.0)),
        _op("AutoContrast"),
        _op("Equalize"),
    )
    return Operation("OneOf", {"p": 1.0}, operations)


DOMAINS: dict[str, Domain] = {
    "none": Domain("Images are not augmented.", ()),
    "safe": Domain(
        "turned by up to 10 degrees, scaled by 0.9 to 1.1, shifted by up to 7 %, brightness and contrast changed by "
        "up to a tenth, never flipped",
        (_move(10.0, 0.1, 0.07), _light(0.1, 0.1)),
    ),
    "natural": Domain(
        "mirrored in half of the cases, cropped to 0.7 of the area or more, turned by up to 15 degrees, brightness, "
        "contrast and saturation changed by up to a fifth, sometimes blurred",
        (
            _op("RandomResizedCrop", scale=(0.7, 1.0), ratio=(0.9, 1.1)),
            _op("HorizontalFlip", 0.5),
            _op("Rotate", limit=(-15.0, 15.0), border_mode=REFLECT_101),
            _op("ColorJitter", brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=(-0.05, 0.05)),
            _blur(0.2),
        ),
        forbids=("VerticalFlip", "Transpose", "D4", "SquareSymmetry", "RandomRotate90", "InvertImg"),
        most_degrees=45.0,
    ),
    "characters": Domain(
        "turned by up to 10 degrees, scaled by 0.9 to 1.1, shifted by up to 10 %, sheared by up to 8 degrees, "
        "brightness changed by up to a tenth, contrast by up to a fifth, never flipped",
        (_move(10.0, 0.1, 0.1, shear=8.0), _light(0.1, 0.2)),
        forbids=(*_FLIPS, *_CROPS, *_COVERS),
        most_degrees=20.0,
    ),
    "medical": Domain(
        "turned by up to 15 degrees, scaled by 0.9 to 1.1, shifted by up to 5 %, brightness and contrast changed by "
        "up to a tenth, sometimes blurred a little, never flipped",
        (_move(15.0, 0.1, 0.05), _light(0.1, 0.1), _blur(0.1)),
        # Left and right may be the finding; gray levels and hues are measurements.
        forbids=(*_FLIPS, *_COVERS, *_COLOURS, *_TONES),
        most_degrees=30.0,
    ),
    "texture": Domain(
        "mirrored both ways, turned by up to 3 degrees, shifted by up to 5 %, scaled by 0.95 to 1.05, brightness "
        "changed by up to 15 %, contrast by up to a fifth",
        (
            _op("HorizontalFlip", 0.5),
            _op("VerticalFlip", 0.5),
            _move(3.0, 0.05, 0.05),
            _light(0.15, 0.2),
        ),
        # A defect may be a few pixels wide: covering, smearing or cropping may remove it.
        forbids=(*_COVERS, *_CROPS, *_WARPS, "MotionBlur", "MedianBlur", "GlassBlur", "Defocus", "ZoomBlur"),
    ),
    "vehicles": Domain(
        "mirrored in half of the cases, cropped to 0.8 of the area or more, turned by up to 8 degrees, brightness, "
        "contrast and saturation changed by up to a fifth, sometimes blurred",
        (
            _op("RandomResizedCrop", scale=(0.8, 1.0), ratio=(0.95, 1.05)),
            _op("HorizontalFlip", 0.5),
            _op("Rotate", limit=(-8.0, 8.0), border_mode=REFLECT_101),
            _op("ColorJitter", brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=(-0.02, 0.02)),
            _blur(0.2),
        ),
        forbids=("VerticalFlip", "Transpose", "D4", "SquareSymmetry", "RandomRotate90", "InvertImg"),
        most_degrees=30.0,
    ),
    "trivial": Domain(
        "one of 14 operations of any strength (TrivialAugment), which include solarising, posterising and equalising",
        (_one_of_14(1.0),),
    ),
    "random": Domain(
        "two of 14 operations one after the other, each up to a third of its full strength (RandAugment); they include "
        "solarising, posterising and equalising",
        # Cubuk et al. 2020, "RandAugment: Practical Automated Data Augmentation", section 4: a random magnitude up to
        # the level, here 10 of 30, does as well as a constant one.
        (_one_of_14(1 / 3), _one_of_14(1 / 3)),
    ),
}  # fmt: skip

PRESETS: dict[str, tuple[Operation, ...]] = {name: d.operations for name, d in DOMAINS.items()}


def check_allowed(operations: Sequence[Operation], domain: str) -> None:
    """Raise ParameterError for an operation that a domain forbids, or too large a rotation."""
    rules = DOMAINS[domain]
    for operation in flattened(operations):
        if operation.name in rules.forbids:
            raise ParameterError(
                f"the policy has {operation.name!r}, which the domain classic.image={domain!r} forbids: it may change "
                "what an image shows. Leave it out, or name another domain ('safe' forbids nothing).",
                operation=operation.name,
            )
        degrees = _degrees(operation)
        if degrees > rules.most_degrees:
            raise ParameterError(
                f"{operation.name!r} turns images by up to {degrees:g} degrees; the domain classic.image={domain!r} "
                f"allows {rules.most_degrees:g}.",
                operation=operation.name,
            )


# The argument that rotates, and albumentations' default.
_ROTATIONS = {
    "Affine": ("rotate", 0.0),
    "Rotate": ("limit", 90.0),
    "SafeRotate": ("limit", 90.0),
    "ShiftScaleRotate": ("rotate_limit", 0.0),
}


def _degrees(operation: Operation) -> float:
    """Return the largest rotation of an operation, as far as its arguments tell."""
    limit = operation.arguments.get(*_ROTATIONS.get(operation.name, ("", 0.0)))
    values = limit if isinstance(limit, tuple | list) else (limit,)
    return max((abs(v) for v in values if isinstance(v, int | float)), default=0.0)


MAX_RELATIVE = 0.95  # keeps a range around 1 away from 0


def _around_zero(value: Any, times: float) -> Any:
    """Scale a limit, a range around 0, or one of these per axis."""
    if isinstance(value, dict):
        return {axis: _around_zero(one, times) for axis, one in value.items()}
    if isinstance(value, tuple | list):
        return tuple(times * one for one in value)
    return times * value


def _around_one(value: Any, times: float) -> Any:
    """Scale a range of factors; size and brightness stay above 0."""
    if isinstance(value, dict):
        return {axis: _around_one(one, times) for axis, one in value.items()}
    if isinstance(value, tuple | list):
        return tuple(1 + max(-MAX_RELATIVE, times * (one - 1)) for one in value)
    return value  # one number is a limit to some operations and a factor to others


# Operation -> its arguments of strength, and how they scale. Anything else stays as it is, such as flips and blurs.
SCALED: dict[str, dict[str, Callable[[Any, float], Any]]] = {
    "Affine": {
        **dict.fromkeys(("rotate", "shear", "translate_percent"), _around_zero),
        "scale": _around_one,
    },
    "Rotate": {"limit": _around_zero},
    "RandomBrightnessContrast": {"brightness_limit": _around_zero, "contrast_limit": _around_zero},
    "RandomResizedCrop": {"scale": _around_one},
    "ColorJitter": {
        **dict.fromkeys(("brightness", "contrast", "saturation"), _around_one),
        "hue": _around_zero,
    },
}


def stronger(operation: Operation, times: float) -> Operation:
    """Return an operation with ranges ``times`` as wide, inner ones included; see :data:`SCALED`."""
    rules = SCALED.get(operation.name, {})
    arguments = {
        name: rules[name](value, times) if name in rules else value
        for name, value in operation.arguments.items()
    }
    inner = tuple(stronger(op, times) for op in operation.inner)
    return Operation(operation.name, arguments, inner)
