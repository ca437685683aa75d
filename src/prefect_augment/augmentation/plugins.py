"""Functions of other packages, found by the name that they are installed under."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from prefect_augment.errors import ParameterError
from prefect_augment.text import suggestion

__all__ = ["ALLOW_IMPORT_PATHS", "load_function"]

# A form must not run whatever its reader types: a worker's own environment has to say that it may.
ALLOW_IMPORT_PATHS = "PREFECT_AUGMENT_ALLOW_IMPORT_PATHS"


def load_function(name: str, *, group: str, field: str) -> Callable[..., Any]:
    """Return a user's function.

    Parameters
    ----------
    name : str
        In the entry-point group, or ``module:function`` where the environment allows it.
    group : str
        The entry-point group.
    field : str
        The parameter that named it, for messages.

    Raises
    ------
    ParameterError
        If there is none, it cannot be imported, or it is no function.
    """
    points = {point.name: point for point in entry_points(group=group)}
    try:
        if name in points:
            found = points[name].load()
        elif ":" in name and os.environ.get(ALLOW_IMPORT_PATHS):
            module, _, attribute = name.partition(":")
            found = getattr(importlib.import_module(module), attribute)
        elif ":" in name:
            raise ParameterError(
                f"{field} {name!r} is an import path, which this worker does not follow: set {ALLOW_IMPORT_PATHS}=1 in "
                f"its environment, or offer the function in the entry-point group {group!r}."
            )
        else:
            raise ParameterError(
                f"there is no {field} {name!r} in the entry-point group {group!r}; "
                f"{suggestion(name, sorted(points)) if points else 'no installed package offers any'}."
            )
    except (ImportError, AttributeError) as exc:
        raise ParameterError(
            f"{field} {name!r} cannot be imported: {exc}; mend or reinstall its package."
        ) from exc
    if not callable(found):
        raise ParameterError(f"{field} {name!r} is {type(found).__name__} and no function.")
    function: Callable[..., Any] = found
    return function
