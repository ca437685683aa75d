"""Classic augmentation of images: a policy, and a copy of an image under a seed.

A policy's operations are albumentations'. If all of them fit one warp, one colour matrix and one blur
(every preset but ``trivial`` and ``random``), :mod:`.image_fused` does them, else albumentations
(:mod:`.image_pipeline`). Either way a record's copy depends on its seed alone.
"""

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from prefect_augment.array_types import Images, Int, Uint64
from prefect_augment.augmentation.image_fused import Fused, draws, fused
from prefect_augment.augmentation.image_pipeline import (
    SIZED,
    Operation,
    Pipeline,
    flattened,
    read_operations,
    read_pipeline,
)
from prefect_augment.augmentation.image_presets import DOMAINS, check_allowed, stronger
from prefect_augment.encoding.annotations import Targets
from prefect_augment.encoding.pixels import resize
from prefect_augment.errors import ParameterError
from prefect_augment.params import Classic
from prefect_augment.params.keys import canonical_json
from prefect_augment.registry import load_function
from prefect_augment.schema import software_versions

ALGORITHM_VERSION = 2
ENTRY_POINTS = "prefect_augment.policies"
LIBRARIES = ("albumentations", "opencv-python-headless", "numpy")  # that copies of images depend on
MAX_PIPELINES = 64  # per thread: operations without a size are built for each size of images
TRIAL_SIDE = 64  # pixels of the image that a policy is tried on

Callback = Callable[[Images, np.random.Generator], Images]


def record_seed(run_seed: int, record: str, copy: int) -> int:
    """Return the seed of one copy of one record, in [0, 2**63), as ``aug_seed`` holds it.

    It depends on the run's seed, the record's ``aug_id`` and the copy's number from 0 on; not on the
    order or number of records.
    """
    key = f"{run_seed}|{record}|{copy}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class ImagePolicy:
    """Operations that change an image and keep its class, and how often they are applied.

    Raises ParameterError on first use for an unknown operation, argument, value or plug-in, and
    MissingExtraError without albumentations.
    """

    operations: tuple[Operation, ...]  # applied in this order
    prob: float = 0.5  # per record, that the policy is applied at all
    rule: str = ""  # a sentence for the report
    name: str = "custom"  # or a preset, or a plug-in
    plugin: str = ""  # entry point in ENTRY_POINTS, or module:function, instead of operations

    @classmethod
    def from_params(cls, classic: Classic) -> "ImagePolicy":
        """Return the policy of the params; ParameterError if the pipeline is invalid or its domain forbids it."""
        prob = classic.image_prob
        how_often = f" Applied to {100 * prob:g} % of the records that are drawn."
        if classic.plugin:
            rule = f"Classic augmentation (plug-in {classic.plugin})." + how_often
            return cls((), prob, rule, name=classic.plugin, plugin=classic.plugin)
        if classic.policy:
            operations = read_pipeline(classic.policy)
            check_allowed(operations, classic.image)
            names = ", ".join(op.name for op in flattened(operations))
            rule = f"Classic augmentation (a pipeline of one's own: {names})." + how_often
            return cls(operations, prob, rule)
        domain = DOMAINS[classic.image]
        rule = f"Classic augmentation (preset {classic.image}): {domain.rule}." + how_often
        if not domain.operations:
            rule = domain.rule
        return cls(domain.operations, prob, rule, name=classic.image)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ImagePolicy":
        """Return a policy from its :attr:`config`, as recipes hold it."""
        return cls(
            read_operations(config["operations"]),
            float(config["prob"]),
            name=str(config["name"]),
            plugin=str(config["plugin"]),
        )

    def stronger(self, times: float) -> "ImagePolicy":
        """Return the policy with ranges ``times`` as wide; below 1 it is milder."""
        if times == 1:
            return self
        return replace(self, operations=tuple(stronger(op, times) for op in self.operations))

    @property
    def config(self) -> dict[str, Any]:
        """The policy as JSON."""
        return {
            "name": self.name,
            "plugin": self.plugin,
            "operations": [op.config for op in self.operations],
            "prob": self.prob,
        }

    @property
    def info(self) -> dict[str, Any]:
        """:attr:`config`, its digest and the libraries' versions, as manifests hold them."""
        installed = software_versions()
        libraries = {name: installed.get(name, "") for name in LIBRARIES}
        return {**self.config, "digest": self.digest, "libraries": libraries}

    @cached_property
    def digest(self) -> str:
        """sha256 of :attr:`config`, 64 hexadecimal digits; library versions are not in it."""
        parts: list[Any] = [[op.config for op in self.operations], self.prob]
        if self.plugin:
            parts += [self.plugin, str(getattr(self._callback, "version", ""))]
        return hashlib.sha256(canonical_json([ALGORITHM_VERSION, *parts])).hexdigest()

    @property
    def is_none(self) -> bool:
        """Whether nothing is ever changed."""
        return not self.operations and not self.plugin

    def check(self) -> None:
        """Try the policy once, so that a mistake shows before any work is done."""
        if not self.is_none:
            side = np.arange(TRIAL_SIDE, dtype=np.uint8)
            image = np.stack(
                [side[:, None] + side, side[:, None] * 2 + side, 255 - side + side[:, None]], axis=2
            )
            try:
                self.apply(image, seed=0, prob=1.0)
            except ParameterError:
                raise
            except Exception as exc:  # a library or a user's callable may raise anything
                raise ParameterError(
                    f"the policy {self.name!r} fails on an image of {TRIAL_SIDE}×{TRIAL_SIDE} pixels: "
                    f"{type(exc).__name__}: {exc}."
                ) from exc

    def apply(self, image: Images, *, seed: int, prob: float | None = None) -> Images:
        """Return one uint8 image (height, width, 1 or 3) under this seed; itself where the policy is not applied.

        ``prob`` replaces the policy's own probability, and does not influence how a changed image looks.
        The size changes only if an operation sets one.
        """
        return self._apply(image, None, seed, prob)[0]

    def apply_targets(
        self, image: Images, targets: Targets, *, seed: int, prob: float | None = None
    ) -> tuple[Images, Targets]:
        """Return one image with its boxes, masks and keypoints, all moved alike.

        The area outside a moved image is gray, not reflected: a reflection would show objects without a box.
        ``places`` of the returned targets names the boxes that stay. Raises ParameterError for a plug-in, which
        does not handle boxes.
        """
        if self.plugin:
            raise ParameterError(
                f"the plug-in {self.plugin!r} changes images without their boxes, masks or keypoints; "
                "take a preset or a pipeline (classic.policy)."
            )
        height, width = image.shape[:2]
        changed, moved = self._apply(image, targets.started(width, height), seed, prob)
        assert moved is not None
        return changed, moved

    def batch(
        self,
        images: Sequence[Images] | Images,
        seeds: Sequence[int],
        probs: Sequence[float] | None = None,
    ) -> list[Images]:
        """Return each image as :meth:`apply` does under its own seed, faster for small images.

        Images may differ in size; ``probs`` replace the policy's own probability.
        """
        chances = [self.prob] * len(images) if probs is None else probs
        numbers = [draws(int(seed)) for seed in seeds]
        drawn = [i for i, prob in enumerate(chances) if numbers[i]() < prob]
        by_size: dict[tuple[int, int], list[int]] = {}
        for i in [] if self.is_none else drawn:
            _check_image(images[i])
            by_size.setdefault(self._size_for(images[i]), []).append(i)
        results = list(images)
        for size, places in by_size.items():
            chosen = [images[i] for i in places]
            fast = None if self.plugin else self._built(size)[1]
            if fast is None:
                changed = [
                    self.apply(image, seed=int(seeds[i]), prob=1.0)
                    for image, i in zip(chosen, places, strict=True)
                ]
            else:
                changed = fast.batch(chosen, [numbers[i] for i in places])
            for i, image in zip(places, changed, strict=True):
                results[i] = image
        return results

    def always(self, images: Images, seeds: Int) -> Images:
        """Return every image (n, height, width, channels) changed under its seed, in the size that it has."""
        height, width = images.shape[1:3]
        changed = self.batch(images, seeds.tolist(), [1.0] * len(images))
        return np.stack([resize(image, width, height) for image in changed])

    def _apply(
        self, image: Images, targets: Targets | None, seed: int, prob: float | None
    ) -> tuple[Images, Targets | None]:
        _check_image(image)
        # Draw the first number always, so that a changed image does not depend on ``prob``.
        draw = draws(seed)
        if self.is_none or draw() >= (self.prob if prob is None else prob):
            return image, targets
        if self.plugin:
            rng = np.random.Generator(np.random.PCG64(seed))
            return self._checked(self._callback(image.copy(), rng), image), None
        least = None if targets is None else targets.min_visibility
        pipeline, fast = self._built(self._size_for(image), least)
        if fast is not None:
            changed, moved = fast.apply(image, draw, targets)
        else:
            words: Uint64 = np.random.SeedSequence(seed).generate_state(pipeline.n_words, np.uint64)  # type: ignore[assignment]  # the stub ignores the dtype argument
            changed, moved = pipeline.apply(image, words, targets)
        return self._checked(changed, image), moved

    def _checked(self, changed: Any, image: Images) -> Images:
        """Return a changed image with its channels; ParameterError if it is no image."""
        is_array = isinstance(changed, np.ndarray)
        if is_array and changed.ndim == 2 and image.shape[2] == 1:
            changed = changed[:, :, None]
        fits = is_array and changed.ndim == 3 and changed.shape[2] == image.shape[2]
        if not fits or changed.dtype != np.uint8:
            kind = f"{changed.dtype} of shape {changed.shape}" if is_array else type(changed)
            raise ParameterError(
                f"the policy {self.name!r} makes {kind} of an image; expected uint8 of shape (height, width, "
                f"{image.shape[2]}). Leave out what converts or normalises."
            )
        return changed  # type: ignore[no-any-return]

    def _size_for(self, image: Images) -> tuple[int, int]:
        return (image.shape[0], image.shape[1]) if self._needs_size else (0, 0)

    @cached_property
    def _needs_size(self) -> bool:
        return any(
            op.name in SIZED and "size" not in op.arguments for op in flattened(self.operations)
        )

    @cached_property
    def _callback(self) -> Callback:
        return load_function(self.plugin, group=ENTRY_POINTS, field="classic.plugin")

    def _built(
        self, size: tuple[int, int], min_visibility: float | None = None
    ) -> tuple[Pipeline, Fused | None]:
        """Return this thread's pipeline: nodes carry generators, so threads may not share them."""
        pipelines: dict[Any, tuple[Pipeline, Fused | None]]
        pipelines = _built.__dict__.setdefault("pipelines", {})
        key = (self.digest, size, min_visibility)
        if key not in pipelines:
            if len(pipelines) >= MAX_PIPELINES:
                pipelines.clear()
            # The fast path reads operations without targets, whose border it sets itself.
            pipeline = Pipeline(self.operations, size=size)
            fast = fused(pipeline.nodes)
            if min_visibility is not None and fast is None:
                pipeline = Pipeline(self.operations, size=size, min_visibility=min_visibility)
            pipelines[key] = pipeline, fast
        return pipelines[key]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out built pipelines: each process makes its own."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


_built = threading.local()


def _check_image(image: Images) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ParameterError(
            f"image is {image.dtype} of shape {image.shape}; expected uint8 of shape "
            "(height, width, 1 or 3)."
        )
