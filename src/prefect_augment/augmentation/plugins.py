"""Functions of other packages, found by the name that they are installed under."""

import importlib
import os
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, cast

from prefect_augment.errors import ParameterError
from prefect_augment.text import suggestion

__all__ = ["ALLOW_IMPORT_PATHS", "load_function"]

# A form must not run whatever a user types: the worker's environment has to allow it.
ALLOW_IMPORT_PATHS = "PREFECT_AUGMENT_ALLOW_IMPORT_PATHS"


def load_function(name: str, *, group: str, field: str) -> Callable[..., Any]:
    """Return a user's function: an entry point of ``group``, or ``module:function`` where that is allowed.

    ``field`` is the parameter that named it, for messages. Raises ParameterError if there is none, it
    cannot be imported, or it is no function.
    """
    points = {point.name: point for point in entry_points(group=group)}
    try:
        if name in points:
            function = points[name].load()
        elif ":" in name and os.environ.get(ALLOW_IMPORT_PATHS):
            module, _, attribute = name.partition(":")
            function = getattr(importlib.import_module(module), attribute)
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
            f"{field} {name!r} cannot be imported: {exc}; fix or reinstall its package."
        ) from exc
    if not callable(function):
        raise ParameterError(f"{field} {name!r} is {type(function).__name__} and no function.")
    return cast("Callable[..., Any]", function)
