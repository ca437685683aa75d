"""What every model refuses when it is asked for records."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prefect_augment.errors import EmptyClassError, ParameterError

__all__ = ["check_classes", "check_request"]


def check_request(
    conditions: NDArray[np.int64], seeds: NDArray[np.int64], classes: tuple[str, ...]
) -> None:
    """Refuse a request without a seed for each condition, or of classes that there are not.

    Parameters
    ----------
    conditions, seeds : ndarray of int64, shape (n,)
    classes : tuple of str
        The model's.

    Raises
    ------
    ParameterError
        If there is not one seed per condition.
    EmptyClassError
        If a condition is no index into the classes.
    """
    if conditions.shape != seeds.shape:
        raise ParameterError(
            f"{len(conditions)} conditions came with {len(seeds)} seeds; give one each."
        )
    check_classes(conditions, classes)


def check_classes(y: NDArray[np.int64], classes: tuple[str, ...]) -> None:
    """Refuse indices of classes that there are not, by EmptyClassError."""
    if y.size and not 0 <= y.min() <= y.max() < len(classes):
        raise EmptyClassError(
            f"conditions go from {y.min()} to {y.max()}, the model has "
            f"classes 0 to {len(classes) - 1}: {', '.join(classes)}."
        )
