"""Policies as albumentations pipelines: written as YAML, held as JSON, and seeded per operation and record.

albumentations 2.0.8, the last release under a free licence, gives every operation of a pipeline the same random numbers
when it gets one seed (of the 8 patterns of three flips 2 occur), repeats itself in every worker that a pipeline is
pickled to, and drops unknown arguments with a warning. Here each operation gets its own generators for each record, so
a copy depends on its seed alone, and an unknown name is an error.

YAML is a list of names with their arguments, or what ``albumentations.save`` writes::

    - HorizontalFlip: {p: 0.5}
    - OneOf:
        p: 0.3
        transforms:
          - GaussianBlur: {blur_limit: [3, 5]}
          - GaussNoise
    - Affine: {rotate: [-10, 10], border_mode: 4, p: 1.0}
"""

import importlib
import inspect
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prefect_augment.array_types import Pixels, Uint64
from prefect_augment.augmentation.image_fused import CONSTANT, FILL
from prefect_augment.encoding.annotations import Targets
from prefect_augment.errors import MissingExtraError, ParameterError
from prefect_augment.text import load_yaml, suggestion

# Operations with an output size; without one they keep the image's.
SIZED = ("RandomResizedCrop", "Resize", "RandomSizedCrop")


class Pipeline:
    """Operations, built once. Not thread-safe, as its nodes carry generators.

    ``size`` is (height, width) for operations that need one. With ``min_visibility``, that of the targets, boxes,
    masks and keypoints move along, with gray around a moved image. Raises ParameterError for an unknown
    operation, argument or value, and MissingExtraError without albumentations.
    """

    def __init__(
        self,
        operations: "Sequence[Operation]",
        *,
        size: tuple[int, int],
        min_visibility: float | None = None,
    ) -> None:
        library, with_targets = _albumentations(), min_visibility is not None
        self.nodes = [
            _node(library, operation, size, with_targets=with_targets) for operation in operations
        ]
        extra: dict[str, Any] = {}
        if with_targets:
            extra["bbox_params"] = library.BboxParams(
                "coco", label_fields=["places"], min_visibility=min_visibility, clip=True
            )
            extra["keypoint_params"] = library.KeypointParams("xy", remove_invisible=False)
        self._compose = library.Compose(self.nodes, p=1.0, **extra)
        self._all = list(_descend(self._compose))

    @property
    def n_words(self) -> int:
        """Random 64-bit words that one call takes."""
        return 2 * len(self._all)

    def apply(
        self, image: Pixels, words: Uint64, targets: Targets | None = None
    ) -> tuple[Pixels, Targets | None]:
        """Return a changed image and its targets, seeded by ``n_words`` random words."""
        for node, for_numpy, for_python in zip(
            self._all, words[::2].tolist(), words[1::2].tolist(), strict=True
        ):
            node.random_generator = np.random.Generator(np.random.PCG64(for_numpy))
            node.py_random = random.Random(for_python)  # noqa: S311 - no secret
        if targets is None:
            return self._compose(image=image)["image"], None
        result = self._compose(
            image=image,
            masks=list(targets.masks),
            bboxes=targets.boxes,
            places=targets.places,
            keypoints=targets.keypoints,
        )
        height, width = result["image"].shape[:2]
        points = np.asarray(result["keypoints"], np.float32).reshape(-1, 2)
        inside = ((points > -0.5) & (points < np.array([width, height]) - 0.5)).all(axis=1)
        return result["image"], replace(
            targets,
            boxes=np.asarray(result["bboxes"], np.float32).reshape(-1, 4),
            places=np.asarray(result["places"], np.int64).reshape(-1),
            keypoints=points,
            inside=targets.inside & inside,
            masks=tuple(np.asarray(mask) for mask in result["masks"]),
        )


def _descend(node: Any) -> Iterator[Any]:
    """Yield a node and everything in it: each has its own generators."""
    yield node
    for child in getattr(node, "transforms", ()):
        # ColorJitter's transforms are functions, not nodes.
        if hasattr(child, "py_random"):
            yield from _descend(child)


def _albumentations() -> Any:
    # Else the import queries the package index for a newer release.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        with _without_torch():
            return importlib.import_module("albumentations")
    except ModuleNotFoundError as exc:
        raise MissingExtraError(
            f"classic augmentation of images needs {exc.name}: "
            "pip install 'prefect-augment[images]', or choose classic.image='none'.",
            extra="images",
        ) from exc


@contextmanager
def _without_torch() -> Iterator[None]:
    """Import albumentations without torch, which it loads for tensors: 165 MB that are never used."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # makes the import fail
    try:
        yield
    finally:
        sys.modules.pop("torch", None)


def _node(
    library: Any, operation: "Operation", size: tuple[int, int], *, with_targets: bool
) -> Any:
    """Build one operation with every name checked: albumentations only warns, and then guesses."""
    cls = _class(library, operation)
    allowed = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
    for name in operation.arguments:
        if name not in allowed:
            raise ParameterError(
                f"operation {operation.name!r} has no argument {name!r}; {suggestion(name, allowed)}.",
                operation=operation.name,
                argument=name,
            )
    arguments = dict(operation.arguments)
    if operation.inner:
        arguments["transforms"] = [
            _node(library, inner, size, with_targets=with_targets) for inner in operation.inner
        ]
    if "size" in allowed and operation.name in SIZED:
        arguments.setdefault("size", size)
    if with_targets and "border_mode" in allowed:
        arguments |= {"border_mode": CONSTANT} | ({"fill": FILL} if "fill" in allowed else {})
    if operation.name == "Affine":
        # albumentations truncates shifts to whole pixels, so an 8-pixel image would never move.
        cls = type("Affine", (cls,), {"_get_translate_params": _shift})
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as exc:
        problem = str(exc).strip().replace("\n", " ")
        raise ParameterError(
            f"operation {operation.name!r} does not take {dict(operation.arguments)}: {problem}.",
            operation=operation.name,
        ) from exc


def _class(library: Any, operation: "Operation") -> type[Any]:
    cls: Any = getattr(library, operation.name, None)
    if operation.name in CONTAINERS or (
        inspect.isclass(cls) and issubclass(cls, library.BasicTransform)
    ):
        return cls  # type: ignore[no-any-return]
    known = [
        name
        for name, value in vars(library).items()
        if inspect.isclass(value) and issubclass(value, library.BasicTransform)
    ]
    raise ParameterError(
        f"albumentations has no operation {operation.name!r}; "
        f"{suggestion(operation.name, [*known, *CONTAINERS])}.",
        operation=operation.name,
    )


def _shift(affine: Any, shape: tuple[int, int]) -> dict[str, float]:
    """Shift in fractions of a pixel, in place of ``Affine._get_translate_params``."""
    if affine.translate_percent is None:
        pixels = affine.translate_px or {"x": (0, 0), "y": (0, 0)}
        # albumentations.save writes them as floats.
        return {axis: affine.py_random.randint(*map(int, pixels[axis])) for axis in ("x", "y")}
    height, width = shape[:2]
    sides = {"x": width, "y": height}
    return {
        axis: affine.py_random.uniform(*affine.translate_percent[axis]) * side
        for axis, side in sides.items()
    }


# Operations that contain others.
CONTAINERS = ("OneOf", "RandomOrder", "Sequential", "SomeOf")
_CLASS = "__class_fullname__"  # albumentations' key for an operation's name
_OF_COMPOSE = ("p", "transforms")
# This package sets these itself.
_REFUSED = ("additional_targets", "bbox_params", "keypoint_params", "seed")


@dataclass(frozen=True)
class Operation:
    """One operation of a policy: a class of albumentations with its arguments."""

    name: str
    arguments: Mapping[str, Any]  # JSON values, without those of ``inner``
    inner: "tuple[Operation, ...]" = ()  # the operations of one of CONTAINERS

    @property
    def config(self) -> list[Any]:
        """Name, arguments and inner operations as JSON; inverse of :func:`read_operations`."""
        return [
            self.name,
            dict(self.arguments),
            *([[op.config for op in self.inner]] * bool(self.inner)),
        ]


def flattened(operations: Sequence[Operation]) -> Iterator[Operation]:
    """Yield operations, each followed by its inner ones."""
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
    """Return the operations of a pipeline written as YAML (see the module).

    Raises ParameterError if the text is no YAML or no pipeline; the message names the entry.
    """
    try:
        value = load_yaml(text)
    except ValueError as exc:
        raise ParameterError(f"classic.policy is no YAML: {exc}.") from exc
    if isinstance(value, dict) and "transform" in value:  # written by albumentations.save
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
        expected = (
            "a list of operations as 'transforms'" if name in CONTAINERS else "no 'transforms'"
        )
        raise ParameterError(f"{where}: {name} takes {expected}; found {inner!r}.")
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
    """Return lists as tuples, which albumentations needs and YAML and JSON lack."""
    if isinstance(value, dict):
        return {key: _as_tuples(v) for key, v in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value
