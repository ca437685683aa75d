"""Pipelines of albumentations, with every name checked and every node seeded for itself.

albumentations 2.0.8, the last release under a free licence, gives every operation of a pipeline the same
random numbers when it gets one seed (of the 8 patterns of three flips 2 occur), repeats itself in every
worker that a pipeline is pickled to, and drops unknown arguments with a warning. Here each node gets its
own generators for each record, so that a record's copy depends on nothing but its seed, and a name that
the real signature does not have is an error.

Operations on images as data: names and arguments that a manifest can hold, and pipelines written as YAML.

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

import importlib
import inspect
import os
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from prefect_augment.encoding.annotations import Targets
from prefect_augment.errors import MissingExtraError, ParameterError
from prefect_augment.text import suggestion

__all__ = [
    "CONTAINERS",
    "SIZED",
    "Operation",
    "Pipeline",
    "flattened",
    "library_versions",
    "read_operations",
    "read_pipeline",
]

# Operations that give images of a size of their own; without one they keep the image's.
SIZED = ("RandomResizedCrop", "Resize", "RandomSizedCrop")
BORDER_CONSTANT, GROUND = (
    0,
    114,
)  # gray about images with boxes: a reflection would show objects that no box names

Pixels = NDArray[np.uint8]


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that make copies of images."""
    found = {}
    for name in ("albumentations", "opencv-python-headless", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


class Pipeline:
    """Operations, built once; not to be shared by threads, as its nodes carry generators.

    Parameters
    ----------
    operations : sequence of Operation
    size : tuple of int
        Height and width, for operations that need a size and were given none.
    with_targets : bool
        Whether boxes, masks and keypoints come along; the ground about a moved image is then gray.
    min_visibility : float in [0, 1]
        Boxes of which a smaller share of the area stays in the image are left out.

    Raises
    ------
    ParameterError
        If there is no such operation, the operation has no such argument, or the argument no such value.
    MissingExtraError
        If albumentations is not installed.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        *,
        size: tuple[int, int],
        with_targets: bool = False,
        min_visibility: float = 0.0,
    ) -> None:
        library = _albumentations()
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
        """Random words of 64 bit that one call takes."""
        return 2 * len(self._all)

    def apply(
        self, image: Pixels, words: NDArray[np.uint64], targets: Targets | None = None
    ) -> tuple[Pixels, Targets | None]:
        """Return an image, and what belongs to it, under so many random words."""
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
    """Yield a node and everything in it: each has generators of its own."""
    yield node
    for child in getattr(node, "transforms", ()):
        # ColorJitter's are functions and no nodes.
        if hasattr(child, "py_random"):
            yield from _descend(child)


def _albumentations() -> Any:
    # Its import asks the package index for a newer release unless it is told not to.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    try:
        with _torch_unseen():
            return importlib.import_module("albumentations")
    except ModuleNotFoundError as exc:
        raise MissingExtraError(
            f"classic augmentation of images needs {exc.name}: "
            "pip install 'prefect-augment[images]', or choose classic.image='none'.",
            extra="images",
        ) from exc


@contextmanager
def _torch_unseen() -> Iterator[None]:
    """Let albumentations be imported without torch, which it loads for tensors: 165 MB that we never use."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # how Python says: not to be had
    try:
        yield
    finally:
        sys.modules.pop("torch", None)


def _node(library: Any, operation: Operation, size: tuple[int, int], *, with_targets: bool) -> Any:
    """Make one operation, with every name checked: albumentations only warns, and then guesses."""
    found = _class(library, operation)
    allowed = [name for name in inspect.signature(found.__init__).parameters if name != "self"]
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
        arguments |= {"border_mode": BORDER_CONSTANT} | (
            {"fill": GROUND} if "fill" in allowed else {}
        )
    if operation.name == "Affine":
        # Its shift in whole pixels, rounded towards none, would leave an 8-pixel image in its place.
        found = type("Affine", (found,), {"_get_translate_params": _shift})
    try:
        return found(**arguments)
    except (TypeError, ValueError) as exc:
        problem = str(exc).strip().replace("\n", " ")
        raise ParameterError(
            f"operation {operation.name!r} does not take {dict(operation.arguments)}: {problem}.",
            operation=operation.name,
        ) from exc


def _class(library: Any, operation: Operation) -> type[Any]:
    found: Any = getattr(library, operation.name, None)
    if operation.name in CONTAINERS or (
        inspect.isclass(found) and issubclass(found, library.BasicTransform)
    ):
        return found  # type: ignore[no-any-return]
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
    """Fractions of a pixel, as the warp can do them; :meth:`Affine._get_translate_params`."""
    if affine.translate_percent is None:
        pixels = affine.translate_px or {"x": (0, 0), "y": (0, 0)}
        # A pipeline that albumentations has written has them as floats.
        return {axis: affine.py_random.randint(*map(int, pixels[axis])) for axis in ("x", "y")}
    height, width = shape[:2]
    sides = {"x": width, "y": height}
    return {
        axis: affine.py_random.uniform(*affine.translate_percent[axis]) * side
        for axis, side in sides.items()
    }


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
