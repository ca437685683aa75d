"""Latent spaces of images: what embeddings hold, and what lies on the way from one image to another."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from _image_scores import coded, read
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from prefect_augment.evaluation.classifiers.base import balanced_weights
from prefect_augment.evaluation.classifiers.convnet import fit_image_classifier
from prefect_augment.genmodels.base import ImageData, ImageSpec
from prefect_augment.latents.interpolate import way
from prefect_augment.params import Budget, ModelParams
from prefect_augment.synthesis.train import fit_model

__all__ = ["Ends", "ImageParts", "Strips", "along", "changes_once", "classifier", "strips_of"]

Codes = NDArray[np.int64]
BATCH = 64  # on a CPU twice the steps of half the records learn more in the same time
Classify = Callable[[NDArray[np.uint8]], Codes]


@dataclass(frozen=True)
class ImageParts:
    """Images of a training and of a test file, the first divided into training and validation.

    Attributes
    ----------
    images : ndarray of uint8, shape (n, size, size, 1)
        Of both files.
    y : ndarray of int64, shape (n,)
    classes : tuple of str
    training, validation, test : ndarray of int64
        Places of records.
    """

    images: NDArray[np.uint8]
    y: Codes
    classes: tuple[str, ...]
    training: Codes
    validation: Codes
    test: Codes

    @classmethod
    def of(cls, train: str, test: str, *, seed: int, most: int = 0) -> ImageParts:
        """Read both files, at most so many records of each; a fifth of the first is validation."""
        rng = np.random.default_rng(seed)
        images, labels = [], []
        for name in (train, test):
            X, names = read(name)
            rows = np.sort(rng.permutation(len(X))[: most or len(X)])
            images.append(X[rows])
            labels.append([names[i] for i in rows])
        classes = sorted({name for names in labels for name in names})
        y = [coded(names, classes) for names in labels]
        n = len(images[0])
        training, validation = train_test_split(
            np.arange(n), test_size=0.2, stratify=y[0], random_state=seed
        )
        test_rows = n + np.arange(len(images[1]))
        return cls(
            np.concatenate(images),
            np.concatenate(y),
            tuple(classes),
            training,
            validation,
            test_rows,
        )

    @property
    def flat(self) -> NDArray[np.float64]:
        """All images as vectors, white being 1."""
        return self.images.reshape(len(self.images), -1) / 255.0

    def train(self, params: ModelParams, *, steps: int, seed: int) -> tuple[Any, float]:
        """Return a model fitted on the training records, and its CPU seconds."""
        X, y = self.images[self.training], self.y[self.training]
        counts = np.bincount(y, minlength=len(self.classes))
        _, size, _, channels = X.shape
        spec = ImageSpec(size, channels, self.classes, tuple(counts.tolist()))
        started = time.process_time()
        budget = Budget(steps=steps, device="cpu", batch_size=BATCH)
        model = fit_model(ImageData(X, y), spec, params, seed, budget=budget)
        return model, time.process_time() - started


def classifier(parts: ImageParts, *, steps: int, seed: int) -> tuple[Classify, float]:
    """Return a classifier trained on the real training images, and its accuracy on the test images."""
    estimator = fit_image_classifier(
        parts.images[parts.training],
        parts.y[parts.training],
        n_classes=len(parts.classes),
        steps=steps,
        seed=seed,
        weights=balanced_weights(parts.y[parts.training]),
        augment_prob=0.5,
    )

    def said(images: NDArray[np.uint8]) -> Codes:
        found: Codes = estimator.predict_proba(images).argmax(axis=1)
        return found

    accuracy = np.mean(said(parts.images[parts.test]) == parts.y[parts.test])
    return said, float(accuracy)


# --- strips ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ends:
    """The records that strips go between, as places in :class:`ImageParts`.

    Attributes
    ----------
    within, between : ndarray of int64, shape (n_strips, 2)
        Of one class, and of two.
    """

    within: Codes
    between: Codes

    @classmethod
    def drawn(cls, parts: ImageParts, rows: Codes, *, per_class: int, seed: int) -> Ends:
        """Draw ``per_class`` strips in every class, and half as many between any two."""
        rng = np.random.default_rng(seed)
        own = [rows[parts.y[rows] == k] for k in range(len(parts.classes))]
        within = [rng.choice(of, 2, replace=False) for of in own for _ in range(per_class)]
        between = [
            (rng.choice(a), rng.choice(b))
            for a, b in combinations(own, 2)
            for _ in range(-(-per_class // 2))
        ]
        return cls(np.array(within), np.array(between))


@dataclass(frozen=True)
class Strips:
    """What a classifier sees along strips.

    Attributes
    ----------
    kept : float
        Share of strips within a class of which every image is of that class.
    once : float
        Share of strips between two records of two classes that begin as the one, end as the other, and
        change once.
    medoids : float
        The same between the most typical records of two classes.
    once_straight, medoids_straight : float
        Both along straight lines, where the class does not change as a whole in the middle.
    ends_within, ends_between : float
        Shares of strips whose first and last image, which are reconstructions, are of their classes.
    """

    kept: float
    once: float
    medoids: float
    once_straight: float
    medoids_straight: float
    ends_within: float
    ends_between: float


def strips_of(
    model: Any, parts: ImageParts, ends: Ends, classify: Classify, *, n_steps: int
) -> Strips:
    """Return what becomes of classes along strips of so many images."""
    Z = model.embed(parts.images).astype(np.float64)
    centres = _centres(Z, parts)

    def seen(pairs: Codes, *, straight: bool = False) -> Codes:
        y = parts.y[pairs]
        images = along(model, Z[pairs], y, None if straight else centres[y], n_steps=n_steps)
        return classify(images).reshape(len(pairs), n_steps)

    def once(pairs: Codes, seen: Codes) -> float:
        return float(changes_once(seen, parts.y[pairs]).mean())

    within, between = seen(ends.within), seen(ends.between)
    typical = np.array(list(combinations(_medoids(Z, parts, centres), 2)))
    own = parts.y[ends.within]
    return Strips(
        kept=float((within == own[:, :1]).all(axis=1).mean()),
        once=once(ends.between, between),
        medoids=once(typical, seen(typical)),
        once_straight=once(ends.between, seen(ends.between, straight=True)),
        medoids_straight=once(typical, seen(typical, straight=True)),
        ends_within=float((within[:, [0, -1]] == own).all(axis=1).mean()),
        ends_between=float((between[:, [0, -1]] == parts.y[ends.between]).all(axis=1).mean()),
    )


def along(
    model: Any,
    Z: NDArray[np.float64],
    y: Codes,
    centres: NDArray[np.float64] | None,
    *,
    n_steps: int,
) -> NDArray[np.uint8]:
    """Return the images of strips, one strip after the other, as :mod:`prefect_augment.latents.interpolate` makes them.

    Parameters
    ----------
    model : Encodes
    Z : ndarray of float64, shape (n_strips, 2, n_latent)
        Vectors of both ends.
    y : ndarray of int64, shape (n_strips, 2)
        Their classes.
    centres : ndarray of float64, shape (n_strips, 2, n_latent), or None
        Mean vectors of these; None goes straight.
    n_steps : int
        Images of a strip, both ends included.
    """
    places = np.linspace(0.0, 1.0, n_steps)
    between = [None] * len(Z) if centres is None else np.diff(centres, axis=1)[:, 0]
    ways = [way(*ends, places, other) for ends, other in zip(Z, between, strict=True)]
    codes = np.where(places < 0.5, y[:, :1], y[:, 1:])
    images: NDArray[np.uint8] = model.decode_latents(
        np.concatenate(ways).astype(np.float32), codes.ravel()
    )
    return images


def changes_once(seen: Codes, wanted: Codes) -> NDArray[np.bool_]:
    """Return which strips begin and end as wanted and change once.

    Parameters
    ----------
    seen : ndarray of int64, shape (n_strips, n_steps)
        Classes along each strip.
    wanted : ndarray of int64, shape (n_strips, 2)
        Classes of its ends.
    """
    n_changes = (seen[:, 1:] != seen[:, :-1]).sum(axis=1)
    found: NDArray[np.bool_] = (n_changes == 1) & (seen[:, [0, -1]] == wanted).all(axis=1)
    return found


def _centres(Z: NDArray[np.float64], parts: ImageParts) -> NDArray[np.float64]:
    """Return the mean vector of each class's training records, shape (n_classes, n_latent)."""
    training, y = Z[parts.training], parts.y[parts.training]
    return np.stack([training[y == k].mean(axis=0) for k in range(len(parts.classes))])


def _medoids(Z: NDArray[np.float64], parts: ImageParts, centres: NDArray[np.float64]) -> list[int]:
    """Return of each class the training record whose vector is nearest to their mean."""
    found = []
    for k, centre in enumerate(centres):
        own = parts.training[parts.y[parts.training] == k]
        found.append(int(own[np.linalg.norm(Z[own] - centre, axis=1).argmin()]))
    return found
