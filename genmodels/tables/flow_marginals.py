"""Match the marginals of a flow's draws to those of the training records, class by class.

Choices are drawn one after the other, so a small error of one shifts all that follow, and a
column's shares end a percent or two off. After training, records are drawn and compared with the
training records. Each code's logit gets the log ratio of its shares, in a few rounds because every
change shifts the choices that follow. Scores are moved from their quantiles to the real ones.
Dependence stays the networks' business.

A small class is shrunk towards all classes together, as far as its few records leave it uncertain.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from prefect_augment.array_types import Bool, Float, Int
from prefect_augment.genmodels.base import Arrays
from prefect_augment.genmodels.tables.mixed_encoding import CodeLayout

N_ROUNDS = 3
# Records drawn: four per training record, within these bounds on records and on values.
MAX_COMPARED, MIN_COMPARED, MAX_VALUES = 8192, 1024, 2**18
N_KNOTS = 32  # quantiles of a score
# Records at which a class counts as much as all together; shares need fewer than quantiles.
ENOUGH_FOR_SHARES, ENOUGH_FOR_QUANTILES = 50, 100
MAX_STEP = 1.0  # of a round: a code may be missing by chance


@dataclass(frozen=True)
class Margins:
    """Corrections that drawing adds."""

    bias: Tensor  # (n_classes, n_codes) added to logits
    # Both (n_classes, n_scores, N_KNOTS): ascending scores, and what is added to them; interpolated
    # between knots, constant beyond the last.
    knots: Tensor
    shifts: Tensor

    @classmethod
    def none(cls, n_classes: int, n_codes: int, n_scores: int, device: torch.device) -> Self:
        """Corrections that change nothing."""
        knots = torch.linspace(-3.0, 3.0, N_KNOTS, device=device).repeat(n_classes, n_scores, 1)
        bias = torch.zeros(n_classes, n_codes, device=device)
        return cls(bias, knots, torch.zeros_like(knots))

    def shifted(self, scores: Tensor, y: Tensor) -> Tensor:
        """The scores of records of classes ``y``, shifted, (n, n_scores) of float32."""
        knots, shifts = self.knots[y], self.shifts[y]
        x = scores.float()[:, :, None]
        above = torch.searchsorted(knots, x).clamp_(1, N_KNOTS - 1)
        left, right = knots.gather(2, above - 1), knots.gather(2, above)
        place = ((x - left) / (right - left).clamp_min(1e-6)).clamp(0.0, 1.0)
        added = torch.lerp(shifts.gather(2, above - 1), shifts.gather(2, above), place)
        return (x + added)[:, :, 0]

    def state(self) -> Arrays:
        """The arrays by name, for storage."""
        return {f"margins.{name}": value.cpu().numpy() for name, value in vars(self).items()}

    @classmethod
    def from_state(cls, arrays: Arrays, device: torch.device) -> Self:
        """Inverse of :meth:`state`."""
        names = ("bias", "knots", "shifts")
        return cls(*(torch.from_numpy(arrays[f"margins.{name}"]).to(device) for name in names))


@dataclass(frozen=True)
class Compared:
    """Training or drawn records."""

    codes: Int  # (n, n_choices)
    scores: Float  # (n, n_scores) normal scores
    has_score: Bool  # (n, n_scores)
    y: Int  # (n,)


def classes_to_draw(counts: Int, n_columns: int, seed: int) -> Int:
    """Classes of the records to draw, shuffled; rare classes are oversampled (∝ sqrt(n_k)).

    Wide tables get fewer records, because these take long to draw.
    """
    most = min(MAX_COMPARED, 4 * int(counts.sum()), MAX_VALUES // n_columns)
    weights = np.sqrt(counts)
    n_of = np.ceil(max(MIN_COMPARED, most) * weights / weights.sum()).astype(np.int64)
    rng = np.random.default_rng([seed & 0xFFFFFFFF, 2])
    return rng.permutation(np.repeat(np.arange(len(counts)), n_of))


def share_bias(layout: CodeLayout, real: Compared, drawn: Compared, n_classes: int) -> Tensor:
    """Log ratio of each code's real and drawn share, (n_classes, n_codes) of float32."""
    counts = np.bincount(real.y, minlength=n_classes)
    log_ratio = np.log(_shares(layout, real, counts)) - np.log(_shares(layout, drawn, counts))
    return torch.from_numpy(log_ratio.clip(-MAX_STEP, MAX_STEP)).float()


def _shares(layout: CodeLayout, records: Compared, counts: Int) -> Float:
    """Each code's share of its choice by class, shrunk towards that of all classes.

    ``counts`` are training records by class; real and drawn shares are shrunk by the same amount,
    so they agree where the class's own do.
    """
    class_shares = np.zeros((len(counts), layout.total))
    np.add.at(class_shares, (records.y[:, None], records.codes + layout.starts[:-1]), 1.0)
    class_shares /= np.maximum(1, np.bincount(records.y, minlength=len(counts)))[:, None]
    # Add half a record of every code: none is impossible.
    n_codes = np.repeat(layout.n_codes, layout.n_codes)
    of_all = (counts @ class_shares + 0.5) / (counts.sum() + 0.5 * n_codes)
    own = (counts / (counts + ENOUGH_FOR_SHARES))[:, None]
    return own * class_shares + (1.0 - own) * of_all


def score_shifts(real: Compared, drawn: Compared, n_classes: int) -> tuple[Tensor, Tensor]:
    """Knots and shifts, as in :class:`Margins`, that map drawn quantiles to real ones."""
    n_scores = real.scores.shape[1]
    knots = np.tile(np.linspace(-3.0, 3.0, N_KNOTS), (n_classes, n_scores, 1))
    shifts = np.zeros_like(knots)
    places = (np.arange(N_KNOTS) + 0.5) / N_KNOTS
    n_drawn = np.maximum(1, np.bincount(drawn.y, minlength=n_classes))
    # As if drawn at their real frequency.
    weights = np.bincount(real.y, minlength=n_classes) / n_drawn
    for i in range(n_scores):
        a, b = real.has_score[:, i], drawn.has_score[:, i]
        if not (a.any() and b.any()):
            continue
        all_knots = _quantiles(drawn.scores[b, i], weights[drawn.y[b]], places)
        all_shifts = np.quantile(real.scores[a, i], places) - all_knots
        for k in range(n_classes):
            real_scores, drawn_scores = (
                real.scores[a & (real.y == k), i],
                drawn.scores[b & (drawn.y == k), i],
            )
            n = min(len(real_scores), len(drawn_scores))
            if not n:
                knots[k, i], shifts[k, i] = all_knots, all_shifts
                continue
            own = n / (n + ENOUGH_FOR_QUANTILES)
            knots[k, i] = np.quantile(drawn_scores, places)
            shifts[k, i] = own * (np.quantile(real_scores, places) - knots[k, i])
            shifts[k, i] += (1.0 - own) * np.interp(knots[k, i], all_knots, all_shifts)
    return torch.from_numpy(knots).float(), torch.from_numpy(shifts).float()


def _quantiles(x: Float, weights: Float, places: Float) -> Float:
    """Quantiles of weighted numbers."""
    order = np.argsort(x)
    below = np.cumsum(weights[order]) - weights[order] / 2
    return np.interp(places, below / weights.sum(), x[order])
