"""Whether transforms of images keep their labels, by a probe trained on real images.

The probe learns the training images, half of them mildly changed (turned, scaled, shifted, lit), so
that unusual images alone do not fool it. Of the validation images that it classifies correctly,
those that it takes for another class after a transform count as flipped. Needs torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from prefect_augment.array_types import Images, Int

Change = Callable[[Images, Int], Images]  # images and a seed for each


@dataclass(frozen=True)
class Flips:
    """Images of one class that the probe takes for another class after a transform."""

    n: int  # images of the class that the probe classifies correctly
    n_flipped: int
    to: int  # the most frequent other class; -1 where there is none

    @property
    def rate(self) -> float:
        """Share of flipped images, 0 where there is no image."""
        return self.n_flipped / self.n if self.n else 0.0

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval, one-sided since only a high rate matters (Clopper & Pearson 1934)."""
        if not self.n_flipped:
            return 0.0
        return float(stats.beta.ppf(0.05, self.n_flipped, self.n - self.n_flipped + 1))


def label_flips(
    training: tuple[Images, Int],
    validation: tuple[Images, Int],
    changes: Mapping[str, Change],
    *,
    n_classes: int,
    steps: int,
    seed: int,
) -> tuple[float, dict[str, list[Flips]]]:
    """The probe's accuracy on unchanged validation images, and for each transform the flips per class.

    ``training`` and ``validation`` are images, uint8 of shape (n, height, width, channels), and classes (n,).
    """
    # Imported here: flows know this module, and have to load without torch.
    from prefect_augment.evaluation.classifiers.base import balanced_weights
    from prefect_augment.evaluation.classifiers.convnet import fit_image_classifier

    probe = fit_image_classifier(
        *training,
        n_classes=n_classes,
        steps=steps,
        seed=seed,
        weights=balanced_weights(training[1]),
        augment_prob=0.5,
    )
    X, y = validation
    correct = probe.predict_proba(X).argmax(axis=1) == y
    X, y = X[correct], y[correct]
    seeds = np.random.default_rng(seed).integers(0, 2**62, len(X))
    flips = {}
    for name, change in changes.items():
        predicted = probe.predict_proba(change(X, seeds)).argmax(axis=1) if len(X) else y
        flips[name] = [_flips(predicted[y == k], k) for k in range(n_classes)]
    return float(correct.mean()) if len(correct) else 0.0, flips


def _flips(predicted: Int, k: int) -> Flips:
    others = predicted[predicted != k]
    return Flips(
        len(predicted), len(others), int(np.bincount(others).argmax()) if len(others) else -1
    )
