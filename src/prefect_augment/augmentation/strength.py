"""How far an operation changes an image, as one number: ranges made wider or narrower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect_augment.augmentation.operations import Operation

__all__ = ["SCALED", "stronger"]

MOST_RATIO = 0.95  # a range around 1 keeps off 0


def _around_zero(value: Any, times: float) -> Any:
    """A limit, a range around 0, or one of these per axis."""
    if isinstance(value, dict):
        return {axis: _around_zero(one, times) for axis, one in value.items()}
    if isinstance(value, tuple | list):
        return tuple(times * one for one in value)
    return times * value


def _around_one(value: Any, times: float) -> Any:
    """A range of factors; those of size and light stay above 0."""
    if isinstance(value, dict):
        return {axis: _around_one(one, times) for axis, one in value.items()}
    if isinstance(value, tuple | list):
        return tuple(1 + max(-MOST_RATIO, times * (one - 1)) for one in value)
    return value  # one number is a limit to some operations and a factor to others


# Operation -> its arguments that say how far, and how they grow. Anything else is left as it is: flips are
# there or not, and a blur is drawn by its own probability.
SCALED: dict[str, dict[str, Callable[[Any, float], Any]]] = {
    "Affine": {
        "rotate": _around_zero,
        "shear": _around_zero,
        "translate_percent": _around_zero,
        "scale": _around_one,
    },
    "Rotate": {"limit": _around_zero},
    "RandomBrightnessContrast": {
        "brightness_limit": _around_zero,
        "contrast_limit": _around_zero,
    },
    "RandomResizedCrop": {"scale": _around_one},
    "ColorJitter": {
        "brightness": _around_one,
        "contrast": _around_one,
        "saturation": _around_one,
        "hue": _around_zero,
    },
}


def stronger(operation: Operation, times: float) -> Operation:
    """Return an operation with ranges ``times`` as wide.

    Parameters
    ----------
    operation : Operation
        One that is not in :data:`SCALED` stays as it is; of a container, so do those in it that are not.
    times : float
        1 changes nothing.
    """
    rules = SCALED.get(operation.name, {})
    arguments = {
        name: rules[name](value, times) if name in rules else value
        for name, value in operation.arguments.items()
    }
    inner = tuple(stronger(op, times) for op in operation.inner)
    return Operation(operation.name, arguments, inner)
