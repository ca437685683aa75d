"""Operations on images as data: names and arguments that a manifest can hold, and pipelines written as YAML.

Two ways of writing are read. A list of names with their arguments::

    - HorizontalFlip: {p: 0.5}
    - OneOf:
        p: 0.3
        transforms:
          - GaussianBlur: {blur_limit: [3, 5]}
          - GaussNoise
    - Affine: {rotate: [-10, 10], border_mode: 4, p: 1.0}

and what albumentations itself writes (``albumentations.save(pipeline, "policy.yaml", data_format="yaml")``).
Whether there are such operations is asked when a pipeline is built (:mod:`.pipeline`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from prefect_augment.errors import ParameterError

__all__ = ["CONTAINERS", "Operation", "flattened", "read_operations", "read_pipeline"]

# Operations made of others.
CONTAINERS = ("OneOf", "RandomOrder", "Sequential", "SomeOf")
_CLASS = "__class_fullname__"  # albumentations' key for an operation's name
_OF_COMPOSE = ("p", "transforms")
_REFUSED = (
    "additional_targets",
    "bbox_params",
    "keypoint_params",
    "seed",
)  # which are this package's to say


@dataclass(frozen=True)
class Operation:
    """One operation of a policy.

    Attributes
    ----------
    name : str
        A class of albumentations.
    arguments : mapping of str to JSON value
        Of its constructor, without those of ``inner``.
    inner : tuple of Operation
        What one of :data:`CONTAINERS` is made of.
    """

    name: str
    arguments: Mapping[str, Any]
    inner: tuple[Operation, ...] = ()

    @property
    def config(self) -> list[Any]:
        """Name, arguments and inner operations as JSON; :func:`read_operations` takes it back."""
        return [
            self.name,
            dict(self.arguments),
            *([[op.config for op in self.inner]] * bool(self.inner)),
        ]


def flattened(operations: Sequence[Operation]) -> Iterator[Operation]:
    """Yield operations and, after each, those that it is made of."""
    for operation in operations:
        yield operation
        yield from flattened(operation.inner)


def read_operations(config: Sequence[Any]) -> tuple[Operation, ...]:
    """Return operations from their :attr:`Operation.config`."""
    return tuple(
        Operation(name, _as_tuples(arguments), read_operations(inner[0]) if inner else ())
        for name, arguments, *inner in config
    )


def read_pipeline(text: str) -> tuple[Operation, ...]:
    """Return the operations of a pipeline written as YAML.

    Parameters
    ----------
    text : str
        See the module.

    Raises
    ------
    ParameterError
        If the text is no YAML, or no pipeline; says which entry, and how it should look.
    """
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        problem = " ".join(str(exc).split())
        raise ParameterError(f"classic.policy is no YAML: {problem}.") from exc
    if isinstance(value, dict) and "transform" in value:  # as albumentations writes it
        value = [value["transform"]]
    if not isinstance(value, list) or not value:
        raise ParameterError(
            f"classic.policy is {type(value).__name__}; expected a list of operations, one per line: "
            "'- HorizontalFlip: {p: 0.5}'."
        )
    return _operations(value, "classic.policy")


def _operations(entries: Sequence[Any], where: str) -> tuple[Operation, ...]:
    return tuple(_operation(entry, f"{where}[{i}]") for i, entry in enumerate(entries))


def _operation(entry: Any, where: str) -> Operation:
    name, arguments = _named(entry, where)
    if name == "Compose":
        other = [key for key in arguments if key in _REFUSED and arguments[key]]
        if other:
            raise ParameterError(
                f"{where}: Compose has {', '.join(map(repr, sorted(map(str, other))))}; leave it out: seeds, boxes and "
                "keypoints are this package's own."
            )
        name = "Sequential"
        arguments = {key: arguments[key] for key in _OF_COMPOSE if key in arguments}
        arguments.setdefault("p", 1.0)
    inner = arguments.pop("transforms", None)
    if (name in CONTAINERS) != bool(inner) or not isinstance(inner, list | None):
        wanted = "a list of operations as 'transforms'" if name in CONTAINERS else "no 'transforms'"
        raise ParameterError(f"{where}: {name} takes {wanted}; found {inner!r}.")
    return Operation(
        name, _as_tuples(arguments), _operations(inner, f"{where}.{name}") if inner else ()
    )


def _named(entry: Any, where: str) -> tuple[str, dict[str, Any]]:
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, dict) and isinstance(entry.get(_CLASS), str):
        name = str(entry[_CLASS]).rpartition(".")[2]
        return name, {key: value for key, value in entry.items() if key != _CLASS}
    if isinstance(entry, dict) and len(entry) == 1:
        ((name, arguments),) = entry.items()
        if isinstance(name, str) and isinstance(arguments, dict | None):
            return name, dict(arguments or {})
    raise ParameterError(
        f"{where} is {entry!r}; expected an operation's name with its arguments: 'Rotate: {{limit: 10, p: 1.0}}'."
    )


def _as_tuples(value: Any) -> Any:
    """Lists as tuples, which albumentations asks for and YAML and JSON do not know."""
    if isinstance(value, dict):
        return {key: _as_tuples(v) for key, v in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value
