"""Encode a table's matrix as choices and scores, which networks learn, and decode it.

The matrix form (:mod:`.base`) is float64 with NaN for null and level codes in category columns.
Every column becomes a *choice* among codes, a *score*, or both:

- a category is a choice among the levels seen, null being one of them; beyond a number of levels
  the rarest share one code and are drawn by the class's own frequencies;
- a number's atoms (values that a fair share of a class has: zero, a code, a price) and its null are
  codes of a choice, whose last code stands for any other value; those others are a score;
- a score is the normal quantile of the value's rank; a value that several records share owns an
  interval of ranks, over which records are spread at random, so there are no steps to learn;
- a constant column is no choice.

Decoding a score returns shared values exactly and interpolates between unique ones, as in
:mod:`.trees`.

Gorishniy et al. 2021, "Revisiting Deep Learning Models for Tabular Data" (normal scores);
``research/tabular.md``, section 4.1, on atoms and dequantised ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from torch import Tensor, nn

from prefect_augment.array_types import Bool, Float, Int, Uint64
from prefect_augment.genmodels.base import Arrays, Config, TableData, TableSpec
from prefect_augment.genmodels.counter_rng import uniform

# An atom has this share of a class's records and this multiple of its neighbours' records: a capital
# gain of 15024 is an atom, an age of 37 is not.
ATOM_SHARE, ATOM_EXCESS = 0.01, 3.0
HEAVY_SHARE = 0.1  # an atom whatever its neighbours are
N_NEIGHBOURS = 4  # distinct values on each side
MIN_ATOM_RECORDS = 5  # in that class
FEW_VALUES = 32  # a number with no more distinct values than this is all atoms
MAX_ATOMS = 96
MAX_LEVELS = 256  # codes of a category; rarer levels are folded
MAX_CODES = 16_384  # of all columns together, which set the size of the first layer
MIN_CODES = 8  # of a category, however many columns there are
EDGE = 1e-6  # ranks stay this far from 0 and 1, whose normal quantiles are infinite


ROUNDS = 32  # of drawing; with more choices several are drawn at once
MAX_LOGIT = 20.0  # so that sums over codes need no log-sum-exp shift

# As they are stored, and as attributes.
CHOICE_ARRAYS = {"values": "values", "folded": "rare_levels", "shares": "shares"}
SCORE_ARRAYS = ("grid", "edges", "shared")


@dataclass(frozen=True)
class Choice:
    """A choice: code ``c`` is ``values[c]``, NaN for null; a last code may be any other value."""

    column: int
    values: Float
    has_other: bool  # the code after the last value: a score, or one of the rare levels
    rare_levels: Float = field(default_factory=lambda: np.empty(0))  # most frequent first
    shares: Float = field(default_factory=lambda: np.empty((0, 0)))  # cumulative, by class

    @property
    def n_codes(self) -> int:
        """Number of codes."""
        return len(self.values) + self.has_other


@dataclass(frozen=True)
class Score:
    """A number's values that are no atoms, and their ranks."""

    column: int
    choice: int  # index of the choice whose last code it belongs to, -1 where there is none
    grid: Float  # distinct, sorted
    edges: Float  # (n_grid + 1,) from 0 to 1; value m owns the ranks edges[m] to edges[m + 1]
    shared: Bool  # whether several records have the value

    def values_at(self, rank: Float) -> Float:
        """Values at ranks in [0, 1]."""
        grid, edges, shared = self.grid, self.edges, self.shared
        own = np.searchsorted(edges, rank, "right").clip(1, len(grid)) - 1
        middle = (edges[:-1] + edges[1:]) / 2
        # Beyond the middle of the first and last value, back inwards: never onto a single record's value.
        inwards = np.where(rank < middle[0], 2 * middle[0] - rank, 2 * middle[-1] - rank)
        rank = np.where((rank < middle[0]) | (rank > middle[-1]), inwards, rank)
        low = np.where(rank < middle[own], np.maximum(own - 1, 0), own)
        high = np.minimum(low + 1, len(grid) - 1)
        gap = middle[high] - middle[low]
        share = np.clip((rank - middle[low]) / np.where(gap > 0, gap, 1.0), 0.0, 1.0)
        # Weigh both ends: high - low can overflow.
        between = grid[low] * (1.0 - share) + grid[high] * share
        return np.where(shared[own], grid[own], between)


@dataclass(frozen=True)
class Places:
    """Where one value lies: a code by choice, an interval of ranks by score."""

    codes: dict[int, int] = field(default_factory=dict)
    ranks: dict[int, tuple[float, float]] = field(default_factory=dict)


class MixedSpace:
    """Choices and scores of a table; made by :meth:`fit` or :meth:`from_state`."""

    def __init__(
        self, spec: TableSpec, choices: list[Choice], scores: list[Score], fixed: dict[int, float]
    ) -> None:
        self.spec = spec
        self.choices = choices
        self.scores = scores
        self._fixed = fixed  # the only value of a column

    @classmethod
    def fit(cls, data: TableData, spec: TableSpec) -> Self:
        """Fit the space to at least one record."""
        max_levels = max(MIN_CODES, min(MAX_LEVELS, MAX_CODES // max(1, spec.n_columns)))
        choices: list[Choice] = []
        scores: list[Score] = []
        fixed: dict[int, float] = {}
        for j in range(spec.n_columns):
            x = data.X[:, j]
            grid, counts = np.unique(x[~np.isnan(x)], return_counts=True)
            missing = bool(np.isnan(x).any())
            null = np.full(int(missing), np.nan)
            if len(grid) + missing == 1:
                fixed[j] = float(grid[0]) if len(grid) else np.nan
            elif spec.is_category[j]:
                choices.append(
                    _category(j, data, np.concatenate([grid, null]), max_levels, spec.n_classes)
                )
            else:
                atom = _atoms(x, data.y, grid, counts, min(MAX_ATOMS, max_levels))
                values = np.concatenate([grid[atom], null])
                if len(values):
                    choices.append(Choice(j, values, has_other=not atom.all()))
                if not atom.all():
                    below = np.concatenate([[0], np.cumsum(counts[~atom])])
                    scores.append(
                        Score(
                            column=j,
                            choice=len(choices) - 1 if len(values) else -1,
                            grid=grid[~atom],
                            edges=below / below[-1],
                            shared=counts[~atom] >= 2,
                        )
                    )
        return cls(spec, choices, scores, fixed)

    @property
    def n_varying(self) -> int:
        """Number of columns with more than one value."""
        return self.spec.n_columns - len(self._fixed)

    @property
    def n_codes(self) -> tuple[int, ...]:
        """Codes of each choice, at least 2."""
        return tuple(choice.n_codes for choice in self.choices)

    @property
    def n_scores(self) -> int:
        """Number of columns with scores."""
        return len(self.scores)

    def codes(self, X: Float) -> Int:
        """Each record's code in every choice, (n, n_choices).

        An unseen value gets the code of other values where there is one, else the nearest value
        (the first level for a category or a null).
        """
        codes = np.empty((len(X), len(self.choices)), dtype=np.int64)
        for i, choice in enumerate(self.choices):
            x = X[:, choice.column]
            # Sorted, or by frequency with rare levels.
            values = choice.values[~np.isnan(choice.values)]
            order = np.argsort(values, kind="stable")
            codes[:, i] = len(choice.values) if choice.has_other else 0
            if len(values):
                place = np.searchsorted(values[order], x).clip(0, len(values) - 1)
                before = np.maximum(place - 1, 0)
                # Halves: a difference of large numbers can overflow.
                below, above = values[order][before] / 2, values[order][place] / 2
                nearer = np.abs(x / 2 - below) < np.abs(above - x / 2)
                nearest = order[np.where(nearer, before, place)]
                takes_nearest = not (choice.has_other or self.spec.is_category[choice.column])
                known = (values[nearest] == x) | (~np.isnan(x) & takes_nearest)
                codes[known, i] = nearest[known]
            if len(values) < len(choice.values):
                codes[np.isnan(x), i] = len(choice.values) - 1
        return codes

    def ranks(self, X: Float) -> tuple[Float, Float, Bool]:
        """Interval of ranks of each record in every score: low and high (n, n_scores), and has_score.

        Without a score (null or atom) the interval is 0 to 1 and has_score is False.
        """
        shape = (len(X), len(self.scores))
        low, high, has_score = np.zeros(shape), np.ones(shape), self.has_score(self.codes(X))
        for i, score in enumerate(self.scores):
            has_score[:, i] &= ~np.isnan(X[:, score.column])
            rows = has_score[:, i]
            x = X[rows, score.column]
            low[rows, i] = score.edges[np.searchsorted(score.grid, x, "left")]
            high[rows, i] = score.edges[np.searchsorted(score.grid, x, "right")]
        return low, high, has_score

    def places_of(self, column: int, value: float) -> Places | None:
        """Codes and ranks of a column's value (NaN for null); None if it has neither.

        A number between the values seen lies between their ranks.
        """
        if column in self._fixed:
            return Places() if np.array_equal(self._fixed[column], value, equal_nan=True) else None
        codes: dict[int, int] = {}
        for i, choice in enumerate(self.choices):
            if choice.column == column:
                same = (choice.values == value) | (np.isnan(choice.values) & np.isnan(value))
                if same.any():
                    return Places({i: int(np.argmax(same))})
                if not choice.has_other or np.isnan(value):
                    return None
                codes[i] = len(choice.values)
                if len(choice.rare_levels):
                    return Places(codes) if value in choice.rare_levels else None
        for i, score in enumerate(self.scores):
            if score.column == column and score.grid[0] <= value <= score.grid[-1]:
                low, high = (score.edges[np.searchsorted(score.grid, value, side)]
                             for side in ("left", "right"))  # fmt: skip
                return Places(codes, {i: (float(low), float(high))})
        return None

    def has_score(self, codes: Int) -> Bool:
        """Scores that a record of these codes has, shape (n, n_scores)."""
        present = np.ones((len(codes), len(self.scores)), dtype=bool)
        for i, score in enumerate(self.scores):
            if score.choice >= 0:
                n_values = len(self.choices[score.choice].values)
                present[:, i] = codes[:, score.choice] == n_values
        return present

    def decode(
        self, codes: Int, scores: NDArray[np.floating], *, y: Int, keys: Uint64,
        counter: int,
    ) -> Float:  # fmt: skip
        """Decode codes (n, n_choices) and normal scores (n, n_scores) to the matrix form (n, n_columns).

        Rare levels are drawn by class ``y`` with random numbers from ``counter`` on, one per
        choice; ``keys`` come from :func:`.counter_rng.record_keys`.
        """
        X = np.empty((len(codes), self.spec.n_columns))
        for j, value in self._fixed.items():
            X[:, j] = value
        for score, z in zip(self.scores, scores.T, strict=True):
            X[:, score.column] = score.values_at(ndtr(z.astype(np.float64)))
        for i, choice in enumerate(self.choices):
            known = codes[:, i] < len(choice.values)
            X[known, choice.column] = choice.values[codes[known, i]]
            if len(choice.rare_levels):
                rest = np.flatnonzero(~known)
                drawn = uniform(keys[rest], counter + i)
                place = (choice.shares[y[rest]] <= drawn[:, None]).sum(axis=1)
                X[rest, choice.column] = choice.rare_levels[
                    np.minimum(place, len(choice.rare_levels) - 1)
                ]
        return X

    def normal_scores(self, ranks: Float) -> Float:
        """Normal quantiles of ranks, finite at 0 and 1 too."""
        return ndtri(np.clip(ranks, EDGE, 1 - EDGE))

    def state(self) -> tuple[Config, Arrays]:
        """Layout as JSON, and grids and shares as arrays."""
        config: Config = {
            "choices": [[c.column, c.has_other] for c in self.choices],
            "scores": [[s.column, s.choice] for s in self.scores],
            "fixed": list(self._fixed),
        }
        arrays: Arrays = {"fixed": np.array(list(self._fixed.values()), dtype=np.float64)}
        for i, choice in enumerate(self.choices):
            for name, attribute in CHOICE_ARRAYS.items():
                arrays[f"choice.{i:05d}.{name}"] = getattr(choice, attribute)
        for i, score in enumerate(self.scores):
            for name in SCORE_ARRAYS:
                arrays[f"score.{i:05d}.{name}"] = getattr(score, name)
        return config, arrays

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays, spec: TableSpec) -> Self:
        """Inverse of :meth:`state`."""
        choices, scores = [], []
        for i, (column, has_other) in enumerate(config["choices"]):
            own = {a: arrays[f"choice.{i:05d}.{name}"] for name, a in CHOICE_ARRAYS.items()}
            choices.append(Choice(column=column, has_other=has_other, **own))
        for i, (column, choice) in enumerate(config["scores"]):
            own = {name: arrays[f"score.{i:05d}.{name}"] for name in SCORE_ARRAYS}
            scores.append(Score(column=column, choice=choice, **own))
        fixed = dict(zip(config["fixed"], arrays["fixed"].tolist(), strict=True))
        return cls(spec, choices, scores, fixed)


def _atoms(x: Float, y: Int, grid: Float, counts: Int, most: int) -> Bool:
    """Tell which values of a number are atoms."""
    if len(grid) <= FEW_VALUES:
        heavy = counts >= 2
    else:
        seen = ~np.isnan(x)
        place = np.searchsorted(grid, x[seen])
        padded = np.pad(counts, N_NEIGHBOURS, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * N_NEIGHBOURS + 1)
        stands_out = counts >= ATOM_EXCESS * np.median(windows, axis=1)
        heavy = np.zeros(len(grid), dtype=bool)
        for k in np.unique(y):
            in_class = np.bincount(place[y[seen] == k], minlength=len(grid))
            share = in_class / np.sum(y == k)
            atom_here = (share >= HEAVY_SHARE) | ((share >= ATOM_SHARE) & stands_out)
            heavy |= atom_here & (in_class >= MIN_ATOM_RECORDS)
    kept = np.argsort(-counts * heavy, kind="stable")[:most]
    atom = np.zeros(len(grid), dtype=bool)
    atom[kept] = heavy[kept]
    return atom


def _category(j: int, data: TableData, values: Float, most: int, n_classes: int) -> Choice:
    """The choice of a category, its rarest levels merged where there are too many."""
    if len(values) <= most:
        return Choice(j, values, has_other=False)
    seen = ~np.isnan(data.X[:, j])
    levels, null = values[~np.isnan(values)], values[np.isnan(values)]
    by_class = np.zeros((n_classes, len(levels)))
    np.add.at(by_class, (data.y[seen], np.searchsorted(levels, data.X[seen, j])), 1.0)
    order = np.argsort(-by_class.sum(axis=0), kind="stable")
    n_kept = most - 1 - len(null)
    kept, rare = order[:n_kept], order[n_kept:]
    # Add one record distributed as in all classes: a class without a rare level has some too.
    rest = by_class[:, rare]
    rest = rest + rest.sum(axis=0) / rest.sum()
    return Choice(
        column=j,
        values=np.concatenate([levels[kept], null]),
        has_other=True,
        rare_levels=levels[rare],
        shares=np.cumsum(rest, axis=1) / rest.sum(axis=1, keepdims=True),
    )


class CodeLayout(nn.Module):
    """Positions of each choice's codes among all codes. Holds no weights."""

    offsets: Tensor
    owner: Tensor

    def __init__(self, n_codes: tuple[int, ...]) -> None:
        super().__init__()
        self.n_codes = n_codes
        self.total = sum(n_codes)
        self.starts = np.concatenate([[0], np.cumsum(n_codes)]).astype(np.int64)
        self.register_buffer("offsets", torch.from_numpy(self.starts[:-1].copy()), persistent=False)
        owner = torch.zeros(self.total, len(n_codes))
        owner[torch.arange(self.total), torch.repeat_interleave(torch.tensor(n_codes).long())] = 1.0
        self.register_buffer("owner", owner, persistent=False)

    def __len__(self) -> int:
        return len(self.n_codes)

    def columns(self, i: int) -> slice:
        """Slice of a choice's codes."""
        return slice(int(self.starts[i]), int(self.starts[i + 1]))

    def one_hot(self, codes: Tensor, shown: Tensor | None = None) -> Tensor:
        """One-hot codes, (n, total); zeros where ``shown`` (n, n_choices) is False."""
        ones = torch.ones(codes.shape, device=codes.device) if shown is None else shown.float()
        known = torch.zeros(len(codes), self.total, device=codes.device)
        return known.scatter_(1, codes + self.offsets, ones)

    def cross_entropy(self, logits: Tensor, codes: Tensor) -> Tensor:
        """-log p of each choice's code, in nats, (n, n_choices), from :func:`bounded` logits."""
        logits = logits.float()
        total: Tensor = logits.exp() @ self.owner
        return total.log() - logits.gather(1, codes + self.offsets)

    def draw(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Draw a code per choice from :func:`bounded` logits (n, total), (n, n_choices) of int64."""
        return self._codes(logits, lambda i, own: drawn_code(own, uniforms[:, i : i + 1]))

    def likeliest(self, logits: Tensor) -> Tensor:
        """Each choice's most likely code, (n, n_choices) of int64."""
        return self._codes(logits, lambda i, own: own.argmax(1))

    def _codes(self, logits: Tensor, code_of: Callable[[int, Tensor], Tensor]) -> Tensor:
        codes = [code_of(i, logits[:, self.columns(i)])[:, None] for i in range(len(self))]
        return torch.cat([*codes, logits.new_zeros(len(logits), 0, dtype=torch.int64)], dim=1)


def bounded(logits: Tensor) -> Tensor:
    """Logits, bounded smoothly so that their exponential is finite."""
    return MAX_LOGIT * torch.tanh(logits / MAX_LOGIT)


def normal_scores(ranks: Tensor) -> Tensor:
    """Normal quantiles of ranks in [0, 1], float32 and finite."""
    return torch.special.ndtri(ranks.clamp(1e-6, 1 - 1e-6)).float()


def drawn_code(logits: Tensor, uniforms: Tensor) -> Tensor:
    """The code of one choice that each random number selects, (n,); uniforms are (n, 1)."""
    mass = logits.double().exp().cumsum(dim=1)
    return (mass <= uniforms * mass[:, -1:]).sum(dim=1).clamp_(max=logits.shape[1] - 1)


def drawn_together(n: int) -> list[list[int]]:
    """Choices (or scores) drawn at once, first to last; neighbouring columns, often related, are separated."""
    n_rounds = min(ROUNDS, n)
    return [list(range(start, n, n_rounds)) for start in range(n_rounds)]
