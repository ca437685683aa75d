"""Margins of a flow's draws, brought to those that the training records have, class by class.

Choices are drawn one given the others, so that a small error of one moves all that follow, and a
column's shares end a percent or two beside the class's own. Once the networks are trained, records
are drawn and compared with the training records: logits get the logarithm of what a code's share lacks,
in a few rounds, since every change moves the choices that follow; scores are shifted from their own
quantiles to the real ones. What goes with what stays the networks' business.

A small class is compared as far as its few records can tell; for the rest, all classes together are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefect_augment.genmodels.base import Arrays
from prefect_augment.genmodels.tables.mixed_encoding import CodeLayout

__all__ = ["N_ROUNDS", "Compared", "Margins", "classes_to_draw", "lacking_bias", "score_shifts"]

N_ROUNDS = 3
# Records drawn: four for each training record, but no more than this many, nor more than so many values.
MAX_COMPARED, MIN_COMPARED, MAX_VALUES = 8192, 1024, 2**18
N_KNOTS = 32  # quantiles of a score
# Records at which a class counts as much as all together: shares are known sooner than quantiles.
ENOUGH_FOR_SHARES, ENOUGH_FOR_QUANTILES = 50, 100
MAX_STEP = 1.0  # of a round: what was not drawn at all may have been so by chance

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Margins:
    """What drawing adds.

    Attributes
    ----------
    bias : Tensor of float32, shape (n_classes, n_codes)
        Added to logits.
    knots, shifts : Tensor of float32, shape (n_classes, n_scores, N_KNOTS)
        Scores, ascending, and what is added to them; interpolated between two knots, the same
        beyond the last.
    """

    bias: Tensor
    knots: Tensor
    shifts: Tensor

    @classmethod
    def none(cls, n_classes: int, n_codes: int, n_scores: int, device: torch.device) -> Self:
        """Return what changes nothing."""
        knots = torch.linspace(-3.0, 3.0, N_KNOTS, device=device).repeat(n_classes, n_scores, 1)
        bias = torch.zeros(n_classes, n_codes, device=device)
        return cls(bias, knots, torch.zeros_like(knots))

    def shifted(self, scores: Tensor, y: Tensor) -> Tensor:
        """Return the scores of records of classes ``y``, shifted, (n, n_scores) of float32."""
        knots, shifts = self.knots[y], self.shifts[y]
        x = scores.float()[:, :, None]
        above = torch.searchsorted(knots, x).clamp_(1, N_KNOTS - 1)
        left, right = knots.gather(2, above - 1), knots.gather(2, above)
        place = ((x - left) / (right - left).clamp_min(1e-6)).clamp(0.0, 1.0)
        added = torch.lerp(shifts.gather(2, above - 1), shifts.gather(2, above), place)
        return (x + added)[:, :, 0]

    def state(self) -> Arrays:
        """Return arrays by name."""
        return {f"margins.{name}": value.cpu().numpy() for name, value in vars(self).items()}

    @classmethod
    def from_state(cls, arrays: Arrays, device: torch.device) -> Self:
        """Return the margins that :meth:`state` wrote down."""
        names = ("bias", "knots", "shifts")
        return cls(*(torch.from_numpy(arrays[f"margins.{name}"]).to(device) for name in names))


@dataclass(frozen=True)
class Compared:
    """Records, fit or drawn.

    Attributes
    ----------
    codes : ndarray of int64, shape (n, n_choices)
    scores : ndarray of float64, shape (n, n_scores)
        Normal scores.
    has_score : ndarray of bool, shape (n, n_scores)
    y : ndarray of int64, shape (n,)
    """

    codes: Ints
    scores: Floats
    has_score: NDArray[np.bool_]
    y: Ints


def classes_to_draw(counts: Ints, n_columns: int, seed: int) -> Ints:
    """Return the classes of the records to be drawn, in random order; rare ones more often than they are.

    Parameters
    ----------
    counts : ndarray of int64, shape (n_classes,)
        Fit records by class.
    n_columns : int
        Of the table: wide records take long to draw.
    seed : int
    """
    most = min(MAX_COMPARED, 4 * int(counts.sum()), MAX_VALUES // n_columns)
    weights = np.sqrt(counts)
    n_of = np.ceil(max(MIN_COMPARED, most) * weights / weights.sum()).astype(np.int64)
    rng = np.random.default_rng([seed & 0xFFFFFFFF, 2])
    return rng.permutation(np.repeat(np.arange(len(counts)), n_of))


def lacking_bias(layout: CodeLayout, real: Compared, made: Compared, n_classes: int) -> Tensor:
    """Return the logarithm of what each code's share lacks, (n_classes, n_codes) of float32."""
    counts = np.bincount(real.y, minlength=n_classes)
    lacking = np.log(_shares(layout, real, counts)) - np.log(_shares(layout, made, counts))
    return torch.from_numpy(lacking.clip(-MAX_STEP, MAX_STEP)).float()


def _shares(layout: CodeLayout, records: Compared, counts: Ints) -> Floats:
    """Return each code's share of its choice by class, pulled towards that of all classes.

    ``counts`` are training records by class: shares of both sides are pulled by as much, so that they
    are alike where the class's own are.
    """
    found = np.zeros((len(counts), layout.total))
    np.add.at(found, (records.y[:, None], records.codes + layout.starts[:-1]), 1.0)
    found /= np.maximum(1, np.bincount(records.y, minlength=len(counts)))[:, None]
    # Half a record of every code: what was not drawn is not impossible.
    n_codes = np.repeat(layout.n_codes, layout.n_codes)
    of_all = (counts @ found + 0.5) / (counts.sum() + 0.5 * n_codes)
    own = (counts / (counts + ENOUGH_FOR_SHARES))[:, None]
    shares: Floats = own * found + (1.0 - own) * of_all
    return shares


def score_shifts(real: Compared, made: Compared, n_classes: int) -> tuple[Tensor, Tensor]:
    """Return knots and shifts by which drawn scores get the quantiles of real ones.

    Returns
    -------
    knots, shifts : Tensor of float32, shape (n_classes, n_scores, N_KNOTS)
        As :class:`Margins` has them.
    """
    n_scores = real.scores.shape[1]
    knots = np.tile(np.linspace(-3.0, 3.0, N_KNOTS), (n_classes, n_scores, 1))
    shifts = np.zeros_like(knots)
    places = (np.arange(N_KNOTS) + 0.5) / N_KNOTS
    drawn = np.maximum(1, np.bincount(made.y, minlength=n_classes))
    weights = np.bincount(real.y, minlength=n_classes) / drawn  # as if drawn as often as they are
    for i in range(n_scores):
        a, b = real.has_score[:, i], made.has_score[:, i]
        if not (a.any() and b.any()):
            continue
        all_knots = _quantiles(made.scores[b, i], weights[made.y[b]], places)
        all_shifts = np.quantile(real.scores[a, i], places) - all_knots
        for k in range(n_classes):
            theirs, ours = real.scores[a & (real.y == k), i], made.scores[b & (made.y == k), i]
            n = min(len(theirs), len(ours))
            if not n:
                knots[k, i], shifts[k, i] = all_knots, all_shifts
                continue
            own = n / (n + ENOUGH_FOR_QUANTILES)
            knots[k, i] = np.quantile(ours, places)
            shifts[k, i] = own * (np.quantile(theirs, places) - knots[k, i])
            shifts[k, i] += (1.0 - own) * np.interp(knots[k, i], all_knots, all_shifts)
    return torch.from_numpy(knots).float(), torch.from_numpy(shifts).float()


def _quantiles(x: Floats, weights: Floats, places: Floats) -> Floats:
    """Return the quantiles of weighted numbers."""
    order = np.argsort(x)
    below = np.cumsum(weights[order]) - weights[order] / 2
    found: Floats = np.interp(places, below / weights.sum(), x[order])
    return found
