"""Does a change of images keep their label? What a classifier of real images says of changed ones.

A probe learns the real fit images, half of them mildly changed (turned, scaled, shifted, lit), so that
what is merely unusual does not fool it. Of validation images that it is right about, those are counted that it
takes for another class once they are changed. Needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["Flips", "label_flips"]

Images = NDArray[np.uint8]
Int = NDArray[np.int64]
Change = Callable[[Images, Int], Images]  # images and a seed for each


@dataclass(frozen=True)
class Flips:
    """Images of one class that a change made another class's, in the probe's eyes.

    Attributes
    ----------
    n : int
        Images of the class that the probe was right about.
    n_flipped : int
    to : int
        The class that most of these became; -1 where none did.
    """

    n: int
    n_flipped: int
    to: int

    @property
    def rate(self) -> float:
        """Share of the images, 0 where there is none."""
        return self.n_flipped / self.n if self.n else 0.0

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval.

        References
        ----------
        Clopper & Pearson 1934; one-sided, as it is a rate too high that is looked for.
        """
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
    device: str = "cpu",
) -> tuple[float, dict[str, list[Flips]]]:
    """Return how often each change makes an image another class's.

    Parameters
    ----------
    training, validation : tuple of ndarray of uint8, shape (n, height, width, channels), and of int64, shape (n,)
        Images and classes: the probe learns the first, and is asked about the second.
    changes : mapping of str to callable
        What is judged, each from images and seeds to images of the same shape.
    n_classes : int
    steps : int
        Of the probe.
    seed : int
    device : str

    Returns
    -------
    float
        Share of validation records that the probe is right about, unchanged.
    dict of str to list of Flips
        Per change, a :class:`Flips` for each class.
    """
    # Imported here: flows know this module, and have to load without torch.
    from prefect_augment.evaluation.classifiers.convnet import balanced_draws, fit_image_classifier

    probe = fit_image_classifier(
        *training,
        n_classes=n_classes,
        steps=steps,
        seed=seed,
        weights=balanced_draws(training[1]),
        augment_prob=0.5,
        device=device,
    )
    X, y = validation
    right = probe.predict_proba(X).argmax(axis=1) == y
    X, y = X[right], y[right]
    seeds = np.random.default_rng(seed).integers(0, 2**62, len(X))
    found = {}
    for name, change in changes.items():
        said = probe.predict_proba(change(X, seeds)).argmax(axis=1) if len(X) else y
        found[name] = [_flips(said[y == k], k) for k in range(n_classes)]
    return float(right.mean()) if len(right) else 0.0, found


def _flips(said: Int, k: int) -> Flips:
    others = said[said != k]
    return Flips(len(said), len(others), int(np.bincount(others).argmax()) if len(others) else -1)
