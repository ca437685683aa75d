"""Classic augmentation of images: albumentations behind our own adapter.

The adapter exists for what albumentations 2.0.8, the last release under a free licence, does not do
by itself: one seed given to a pipeline gives every operation the same random numbers (of the 8
patterns of three flips 2 occur), a pickled pipeline repeats itself in every worker, and unknown
arguments are dropped with a warning. Here each node of a pipeline gets its own generators for each
record, so that a record's copy depends on nothing but its seed, and a name that the real signature
does not have is an error.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import random
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_augment.balancing import suggestion
from prefect_augment.errors import MissingExtraError, ParameterError
from prefect_augment.params import Classic
from prefect_augment.staging import canonical_json

__all__ = ["PRESETS", "ImagePolicy", "Operation", "record_seed"]

ALGORITHM_VERSION = 1
BORDER_REFLECT_101 = 4  # cv2's number: the border pixel is not repeated

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Operation:
    """One operation of a policy: a class of albumentations and its arguments, as JSON values."""

    name: str
    arguments: Mapping[str, Any]


# Ranges of the prototype that gained 5 points (shared/research/images.md, section 9), and mild
# brightness. No flips: they turn a 6 into nothing and a left side into a right one.
PRESETS: dict[str, tuple[Operation, ...]] = {
    "none": (),
    "safe": (
        Operation(
            "Affine",
            {
                "rotate": (-10.0, 10.0),
                "scale": (0.9, 1.1),
                "keep_ratio": True,
                "translate_percent": (-0.07, 0.07),
                "border_mode": BORDER_REFLECT_101,
                "p": 1.0,
            },
        ),
        Operation(
            "RandomBrightnessContrast",
            {"brightness_limit": (-0.1, 0.1), "contrast_limit": (-0.1, 0.1), "p": 1.0},
        ),
    ),
}

_SENTENCES = {
    "none": "Images are not augmented.",
    "safe": (
        "Classic augmentation (preset safe): turned by up to 10 degrees, scaled by 0.9 to 1.1, "
        "shifted by up to 7 %, brightness and contrast changed by up to a tenth, never flipped."
    ),
}


def record_seed(run_seed: int, record: str, copy: int) -> int:
    """Return the seed of one copy of one record.

    Parameters
    ----------
    run_seed : int
        The run's.
    record : str
        The record's ``aug_id`` (or another hexadecimal digest of its own).
    copy : int
        Number of the copy, from 0 on.

    Returns
    -------
    int
        In [0, 2**63): what ``aug_seed`` holds. It depends on nothing else: not on the order of
        records, their number, or who asks.
    """
    # SeedSequence takes no negative entropy; two's complement keeps -1 apart from 1.
    entropy = (run_seed % 2**64, int(record, 16), copy)
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class ImagePolicy:
    """Operations that change an image and keep its class, and how often they are applied.

    Parameters
    ----------
    operations : tuple of Operation
        Applied in this order.
    prob : float in [0, 1]
        Probability, per record, that the policy is applied at all; a record that it passes over is
        unchanged.
    rule : str
        What it does, in a sentence for the report.

    Raises
    ------
    ParameterError
        On first use, if albumentations has no such operation, the operation no such argument, or
        the argument no such value.
    MissingExtraError
        On first use, if albumentations is not installed.
    """

    operations: tuple[Operation, ...]
    prob: float = 0.5
    rule: str = ""

    @classmethod
    def from_params(cls, classic: Classic) -> ImagePolicy:
        """Return the policy that the params ask for."""
        rule = _SENTENCES[classic.image]
        if classic.image != "none":
            rule += f" Applied to {100 * classic.image_prob:g} % of the records that are drawn."
        return cls(PRESETS[classic.image], classic.image_prob, rule)

    @cached_property
    def digest(self) -> str:
        """sha256 of what the policy does, 64 hexadecimal digits; library versions are not in it."""
        config = [[op.name, dict(op.arguments)] for op in self.operations]
        return hashlib.sha256(canonical_json([ALGORITHM_VERSION, config, self.prob])).hexdigest()

    def check(self) -> None:
        """Build the pipeline once, so that a mistake in it shows before any work is done."""
        if self.operations:
            self._pipeline()

    def apply(self, image: Images, *, seed: int, prob: float | None = None) -> Images:
        """Return one image as the policy changes it under this seed.

        Parameters
        ----------
        image : ndarray of uint8, shape (height, width, channels)
            One channel or three, any size.
        seed : int
            Not negative; see :func:`record_seed`.
        prob : float, optional
            Instead of the policy's own probability. How a changed image looks does not depend on it.

        Returns
        -------
        ndarray of uint8, shape (height, width, channels)
            The image itself where the policy passes it over.
        """
        _check_image(image)
        if not self.operations:
            return image
        pipeline = self._pipeline()
        nodes = list(_nodes(pipeline))
        states = np.random.SeedSequence(seed).generate_state(2 * len(nodes) + 1, np.uint64)
        # Drawn here and not by the pipeline, whose own probability is 1.
        if float(states[-1]) / 2.0**64 >= (self.prob if prob is None else prob):
            return image
        for node, for_numpy, for_python in zip(nodes, states[::2], states[1::2], strict=False):
            node.random_generator = np.random.Generator(np.random.PCG64(int(for_numpy)))
            node.py_random = random.Random(int(for_python))  # noqa: S311 - no secret
        changed: Images = pipeline(image=image)["image"]
        return changed.reshape(image.shape)

    def batch(self, images: Sequence[Images] | Images, seeds: Sequence[int]) -> list[Images]:
        """Return each image as the policy changes it under its own seed.

        Parameters
        ----------
        images : sequence of ndarray of uint8, shape (height, width, channels)
            Of one size or of many.
        seeds : sequence of int
            One per image.
        """
        return [
            self.apply(image, seed=int(seed)) for image, seed in zip(images, seeds, strict=True)
        ]

    def _pipeline(self) -> Any:
        """Return this thread's pipeline: its nodes carry generators, so threads may not share them."""
        pipelines: dict[str, Any] = _built.__dict__.setdefault("pipelines", {})
        if self.digest not in pipelines:
            pipelines[self.digest] = _build(self.operations)
        return pipelines[self.digest]


_built = threading.local()


def _check_image(image: Images) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ParameterError(
            f"image is {image.dtype} of shape {image.shape}; expected uint8 of shape "
            "(height, width, 1 or 3)."
        )


# --- albumentations ---------------------------------------------------------------------------


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


def _build(operations: Sequence[Operation]) -> Any:
    library = _albumentations()
    transforms = [_transform(library, operation) for operation in operations]
    return library.Compose(transforms, p=1.0)


def _transform(library: Any, operation: Operation) -> Any:
    """Make one operation, with every name checked: albumentations only warns, and then guesses."""
    found = getattr(library, operation.name, None)
    if not (inspect.isclass(found) and issubclass(found, library.BasicTransform)):
        known = [
            name
            for name, value in vars(library).items()
            if inspect.isclass(value) and issubclass(value, library.BasicTransform)
        ]
        raise ParameterError(
            f"albumentations has no operation {operation.name!r}; {suggestion(operation.name, known)}.",
            operation=operation.name,
        )
    allowed = [name for name in inspect.signature(found.__init__).parameters if name != "self"]
    for name in operation.arguments:
        if name not in allowed:
            raise ParameterError(
                f"operation {operation.name!r} has no argument {name!r}; {suggestion(name, allowed)}.",
                operation=operation.name,
                argument=name,
            )
    if operation.name == "Affine":
        # Its shift in whole pixels, rounded towards none, would leave an 8-pixel image in its place.
        found = type("Affine", (found,), {"_get_translate_params": _shift})
    try:
        return found(**operation.arguments)
    except (TypeError, ValueError) as exc:
        problem = str(exc).strip().replace("\n", " ")
        raise ParameterError(
            f"operation {operation.name!r} does not take {dict(operation.arguments)}: {problem}.",
            operation=operation.name,
        ) from exc


def _shift(affine: Any, shape: tuple[int, int]) -> dict[str, float]:
    """Fractions of a pixel, as the warp can do them; :meth:`Affine._get_translate_params`."""
    if affine.translate_percent is None:
        pixels = affine.translate_px or {"x": (0, 0), "y": (0, 0)}
        return {axis: affine.py_random.randint(*pixels[axis]) for axis in ("x", "y")}
    height, width = shape[:2]
    sides = {"x": width, "y": height}
    return {
        axis: affine.py_random.uniform(*affine.translate_percent[axis]) * side
        for axis, side in sides.items()
    }


def _nodes(pipeline: Any) -> Iterator[Any]:
    """Yield a pipeline and everything in it: each has generators of its own."""
    yield pipeline
    for child in getattr(pipeline, "transforms", ()):
        yield from _nodes(child)
