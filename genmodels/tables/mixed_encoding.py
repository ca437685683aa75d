"""A table's matrix as choices and scores: what networks learn, and back.

The matrix form (:mod:`.base`) is float64 with NaN for null and level codes in category columns.
Networks want small numbers of one scale. Here every column becomes a *choice* among codes, a
*score*, or both:

- a category is a choice among the levels that were seen, null being one of them; past a number of
  levels the rarest are folded into one code and drawn by the class's own shares;
- a number's atoms (zero, a code, a price: values that a fair share of a class has) and its null are
  codes of a choice, whose last code says that the value is any other; those others are a score;
- a score is the normal quantile of the value's rank; a value that several records share owns an
  interval of ranks, and records are spread over it at random, so that there are no steps to learn;
- a column with one value is no choice at all.

Back from a score, a shared value is returned as it is, one that a single record has is not: between
two of those lies what interpolates them (as in :mod:`.table_trees`).

All networks of tables stand on it (:mod:`.table_network`). Numpy and scipy only.

References
----------
Gorishniy et al. 2021, "Revisiting Deep Learning Models for Tabular Data" (normal scores); the tips
of ``research/tabular.md``, section 4.1, on atoms and dequantised ranks.

Choices among codes as networks see them: zeros and ones in, logits out, draws from those.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from torch import Tensor, nn

from prefect_augment.genmodels.base import Arrays, Config, TableData, TableSpec
from prefect_augment.genmodels.counter_rng import uniform

__all__ = ["CodeLayout", "MixedSpace", "Places", "bounded", "drawn_code", "normal_scores"]

# An atom has this share of a class's records, and so many times its neighbours' records: a capital
# gain of 15024 is an atom, an age of 37 has its place between 36 and 38.
ATOM_SHARE, ATOM_EXCESS = 0.01, 3.0
HEAVY_SHARE = 0.1  # an atom whatever its neighbours are
N_NEIGHBOURS = 4  # distinct values on each side
MIN_ATOM_RECORDS = 5  # in that class: what fewer records share is no thing of its own
FEW_VALUES = 32  # a number with no more distinct values than this is all atoms
MAX_ATOMS = 96
MAX_LEVELS = 256  # codes of a category; rarer levels are folded
MAX_CODES = 16_384  # of all columns together: a network's first layer grows with them
MIN_CODES = 8  # of a category, however many columns there are
EDGE = 1e-6  # ranks stay this far from 0 and 1, whose normal quantiles are infinite

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Choice:
    """A choice among codes: code ``c`` is ``values[c]``, NaN for null; then perhaps any other."""

    column: int
    values: Floats
    has_other: bool  # the code after the last value: a score, or one of the folded levels
    folded: Floats = field(default_factory=lambda: np.empty(0))  # levels, most frequent first
    shares: Floats = field(default_factory=lambda: np.empty((0, 0)))  # cumulative, by class

    @property
    def n_codes(self) -> int:
        return len(self.values) + self.has_other


@dataclass(frozen=True)
class _Score:
    """A number's values that are no atoms, and the share of records below each of them."""

    column: int
    choice: int  # index of the choice whose last code it belongs to, -1 where there is none
    grid: Floats  # distinct, sorted
    edges: Floats  # (n_grid + 1,) from 0 to 1; value m owns the ranks edges[m] to edges[m + 1]
    shared: NDArray[np.bool_]  # whether several records have the value


@dataclass(frozen=True)
class Places:
    """Where one value stands: a code by choice, an interval of ranks by score."""

    codes: dict[int, int] = field(default_factory=dict)
    ranks: dict[int, tuple[float, float]] = field(default_factory=dict)


class MixedSpace:
    """Choices and scores of a table, fitted on some records.

    Made by :meth:`fit` or :meth:`from_state`.
    """

    def __init__(
        self, spec: TableSpec, choices: list[_Choice], scores: list[_Score], fixed: dict[int, float]
    ) -> None:
        self.spec = spec
        self._choices = choices
        self._scores = scores
        self._fixed = fixed  # the only value of a column

    @classmethod
    def fit(cls, data: TableData, spec: TableSpec) -> Self:
        """Return the space of these records.

        Parameters
        ----------
        data : TableData
            At least one record.
        spec : TableSpec
            Columns and classes.
        """
        max_levels = max(MIN_CODES, min(MAX_LEVELS, MAX_CODES // max(1, spec.n_columns)))
        choices: list[_Choice] = []
        scores: list[_Score] = []
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
                    choices.append(_Choice(j, values, has_other=not atom.all()))
                if not atom.all():
                    below = np.concatenate([[0], np.cumsum(counts[~atom])])
                    scores.append(
                        _Score(
                            column=j,
                            choice=len(choices) - 1 if len(values) else -1,
                            grid=grid[~atom],
                            edges=below / below[-1],
                            shared=counts[~atom] >= 2,
                        )
                    )
        return cls(spec, choices, scores, fixed)

    @property
    def n_codes(self) -> tuple[int, ...]:
        """Codes of each choice, at least 2."""
        return tuple(choice.n_codes for choice in self._choices)

    @property
    def n_scores(self) -> int:
        """Columns that have scores."""
        return len(self._scores)

    @property
    def choice_columns(self) -> tuple[int, ...]:
        """Column of each choice."""
        return tuple(choice.column for choice in self._choices)

    @property
    def score_columns(self) -> tuple[int, ...]:
        """Column of each score."""
        return tuple(score.column for score in self._scores)

    @property
    def score_choices(self) -> tuple[int, ...]:
        """Choice whose last code says that a score has a value, -1 where it always has."""
        return tuple(score.choice for score in self._scores)

    # --- records to codes and ranks ---

    def codes(self, X: Floats) -> Ints:
        """Return each record's code in every choice.

        Parameters
        ----------
        X : ndarray of float64, shape (n, n_columns)
            The matrix form. What was not seen is the code for others where there is one, else the
            nearest value (the first level for a category or a null).

        Returns
        -------
        ndarray of int64, shape (n, n_choices)
        """
        codes = np.empty((len(X), len(self._choices)), dtype=np.int64)
        for i, choice in enumerate(self._choices):
            x = X[:, choice.column]
            values = choice.values[~np.isnan(choice.values)]  # sorted, or by frequency if folded
            order = np.argsort(values, kind="stable")
            codes[:, i] = len(choice.values) if choice.has_other else 0
            if len(values):
                place = np.searchsorted(values[order], x).clip(0, len(values) - 1)
                before = np.maximum(place - 1, 0)
                # Halves: the difference of two large numbers can overflow.
                below, above = values[order][before] / 2, values[order][place] / 2
                nearer = np.abs(x / 2 - below) < np.abs(above - x / 2)
                nearest = order[np.where(nearer, before, place)]
                is_near = ~np.isnan(x) & (
                    not (choice.has_other or self.spec.is_category[choice.column])
                )
                known = (values[nearest] == x) | is_near
                codes[known, i] = nearest[known]
            if len(values) < len(choice.values):
                codes[np.isnan(x), i] = len(choice.values) - 1
        return codes

    def ranks(self, X: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """Return the interval of ranks that each record may have in every score.

        Parameters
        ----------
        X : ndarray of float64, shape (n, n_columns)
            The matrix form.

        Returns
        -------
        low, high : ndarray of float64, shape (n, n_scores)
            In [0, 1]; 0 and 1 where the record has no score there.
        has_score : ndarray of bool, shape (n, n_scores)
            False where the value is null or an atom.
        """
        shape = (len(X), len(self._scores))
        low, high, has_score = np.zeros(shape), np.ones(shape), self.has_score(self.codes(X))
        for i, score in enumerate(self._scores):
            has_score[:, i] &= ~np.isnan(X[:, score.column])
            rows = has_score[:, i]
            x = X[rows, score.column]
            low[rows, i] = score.edges[np.searchsorted(score.grid, x, "left")]
            high[rows, i] = score.edges[np.searchsorted(score.grid, x, "right")]
        return low, high, has_score

    def places_of(self, column: int, value: float) -> Places | None:
        """Return where a column's value stands among choices and scores; None if nowhere.

        Parameters
        ----------
        column : int
            Of the matrix form.
        value : float
            NaN for null. A number between those that were seen has its place between theirs.
        """
        if column in self._fixed:
            is_it = np.array_equal(self._fixed[column], value, equal_nan=True)
            return Places() if is_it else None
        codes: dict[int, int] = {}
        for i, choice in enumerate(self._choices):
            if choice.column == column:
                same = (choice.values == value) | (np.isnan(choice.values) & np.isnan(value))
                if same.any():
                    return Places({i: int(np.argmax(same))})
                if not choice.has_other or np.isnan(value):
                    return None
                codes[i] = len(choice.values)
                if len(choice.folded):
                    return Places(codes) if value in choice.folded else None
        for i, score in enumerate(self._scores):
            if score.column == column and score.grid[0] <= value <= score.grid[-1]:
                low, high = (score.edges[np.searchsorted(score.grid, value, side)]
                             for side in ("left", "right"))  # fmt: skip
                return Places(codes, {i: (float(low), float(high))})
        return None

    def has_score(self, codes: Ints) -> NDArray[np.bool_]:
        """Return in which scores a record of these codes has a value, shape (n, n_scores)."""
        found = np.ones((len(codes), len(self._scores)), dtype=bool)
        for i, score in enumerate(self._scores):
            if score.choice >= 0:
                n_values = len(self._choices[score.choice].values)
                found[:, i] = codes[:, score.choice] == n_values
        return found

    # --- and back ---

    def decode(
        self, codes: Ints, scores: NDArray[np.floating], *, y: Ints, keys: NDArray[np.uint64],
        counter: int,
    ) -> Floats:  # fmt: skip
        """Return the matrix form.

        Parameters
        ----------
        codes : ndarray of int64, shape (n, n_choices)
            One code per choice.
        scores : ndarray of float, shape (n, n_scores)
            Normal scores; read where the code says that the value is any other.
        y : ndarray of int64, shape (n,)
            Class of each record, by which folded levels are drawn.
        keys : ndarray of uint64, shape (n,)
            From :func:`.counter_random.record_keys`.
        counter : int
            First of the records' random numbers that may be used, one per choice.

        Returns
        -------
        ndarray of float64, shape (n, n_columns)
        """
        X = np.empty((len(codes), self.spec.n_columns))
        for j, value in self._fixed.items():
            X[:, j] = value
        for score, z in zip(self._scores, scores.T, strict=True):
            X[:, score.column] = _value_at(score, ndtr(z.astype(np.float64)))
        for i, choice in enumerate(self._choices):
            known = codes[:, i] < len(choice.values)
            X[known, choice.column] = choice.values[codes[known, i]]
            if len(choice.folded):
                rest = np.flatnonzero(~known)
                drawn = uniform(keys[rest], counter + i)
                place = (choice.shares[y[rest]] <= drawn[:, None]).sum(axis=1)
                X[rest, choice.column] = choice.folded[np.minimum(place, len(choice.folded) - 1)]
        return X

    def values_at(self, score: int, ranks: Floats) -> Floats:
        """Return a score's values at ranks in [0, 1]."""
        return _value_at(self._scores[score], ranks)

    def normal_scores(self, ranks: Floats) -> Floats:
        """Return the normal quantiles of ranks, finite at 0 and 1 too."""
        scores: Floats = ndtri(np.clip(ranks, EDGE, 1 - EDGE))
        return scores

    # --- to storage and back ---

    def state(self) -> tuple[Config, Arrays]:
        """Return the layout as JSON, and grids and shares as arrays."""
        config: Config = {
            "choices": [[c.column, c.has_other] for c in self._choices],
            "scores": [[s.column, s.choice] for s in self._scores],
            "fixed": list(self._fixed),
        }
        arrays: Arrays = {"fixed": np.array(list(self._fixed.values()), dtype=np.float64)}
        for i, choice in enumerate(self._choices):
            arrays[f"choice.{i:05d}.values"] = choice.values
            arrays[f"choice.{i:05d}.folded"] = choice.folded
            arrays[f"choice.{i:05d}.shares"] = choice.shares
        for i, score in enumerate(self._scores):
            arrays[f"score.{i:05d}.grid"] = score.grid
            arrays[f"score.{i:05d}.edges"] = score.edges
            arrays[f"score.{i:05d}.shared"] = score.shared
        return config, arrays

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays, spec: TableSpec) -> Self:
        """Return the space that :meth:`state` wrote down."""
        choices = [
            _Choice(
                column=column,
                has_other=has_other,
                **{n: arrays[f"choice.{i:05d}.{n}"] for n in ("values", "folded", "shares")},
            )
            for i, (column, has_other) in enumerate(config["choices"])
        ]
        scores = [
            _Score(
                column=column,
                choice=choice,
                **{n: arrays[f"score.{i:05d}.{n}"] for n in ("grid", "edges", "shared")},
            )
            for i, (column, choice) in enumerate(config["scores"])
        ]
        fixed = dict(zip(config["fixed"], arrays["fixed"].tolist(), strict=True))
        return cls(spec, choices, scores, fixed)


def _atoms(x: Floats, y: Ints, grid: Floats, counts: Ints, most: int) -> NDArray[np.bool_]:
    """Return which values of a number are things of their own."""
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


def _category(j: int, data: TableData, values: Floats, most: int, n_classes: int) -> _Choice:
    """Return the choice of a category, its rarest levels folded where there are too many."""
    if len(values) <= most:
        return _Choice(j, values, has_other=False)
    seen = ~np.isnan(data.X[:, j])
    levels, null = values[~np.isnan(values)], values[np.isnan(values)]
    by_class = np.zeros((n_classes, len(levels)))
    np.add.at(by_class, (data.y[seen], np.searchsorted(levels, data.X[seen, j])), 1.0)
    order = np.argsort(-by_class.sum(axis=0), kind="stable")
    n_kept = most - 1 - len(null)
    kept, folded = order[:n_kept], order[n_kept:]
    # One record's worth of all classes' shares on top: a class without a folded level has some too.
    rest = by_class[:, folded]
    rest = rest + rest.sum(axis=0) / rest.sum()
    return _Choice(
        column=j,
        values=np.concatenate([levels[kept], null]),
        has_other=True,
        folded=levels[folded],
        shares=np.cumsum(rest, axis=1) / rest.sum(axis=1, keepdims=True),
    )


def _value_at(score: _Score, rank: Floats) -> Floats:
    """Return the values at ranks in [0, 1]."""
    grid, edges, shared = score.grid, score.edges, score.shared
    own = np.searchsorted(edges, rank, "right").clip(1, len(grid)) - 1
    middle = (edges[:-1] + edges[1:]) / 2
    low = np.where(rank < middle[own], np.maximum(own - 1, 0), own)
    high = np.minimum(low + 1, len(grid) - 1)
    gap = middle[high] - middle[low]
    share = np.clip((rank - middle[low]) / np.where(gap > 0, gap, 1.0), 0.0, 1.0)
    # Weights on both ends: high - low alone can overflow.
    between = grid[low] * (1.0 - share) + grid[high] * share
    return np.where(shared[low] | shared[high], grid[own], between)


MAX_LOGIT = 20.0  # softly: sums over the codes of a choice then need no maximum taken out


class CodeLayout(nn.Module):
    """Where each choice's codes stand among all of them. Holds no weights.

    Parameters
    ----------
    n_codes : tuple of int
        Codes of each choice.

    Attributes
    ----------
    starts : ndarray of int64, shape (n_choices + 1,)
        First code of each choice, and the number of codes.
    offsets : Tensor of int64, shape (n_choices,)
        The same without the last, on the network's device.
    owner : Tensor of float32, shape (total, n_choices)
        Which choice a code belongs to: sums over codes are products with it, the same every time.
    """

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
        """Return the number of choices."""
        return len(self.n_codes)

    def columns(self, i: int) -> slice:
        """Return where the codes of a choice stand."""
        return slice(int(self.starts[i]), int(self.starts[i + 1]))

    def one_hot(self, codes: Tensor, shown: Tensor | None = None) -> Tensor:
        """Return codes as zeros and ones, (n, total); those that are not shown are zeros.

        Parameters
        ----------
        codes : Tensor of int64, shape (n, n_choices)
        shown : Tensor of bool, shape (n, n_choices), optional
        """
        ones = torch.ones(codes.shape, device=codes.device) if shown is None else shown.float()
        known = torch.zeros(len(codes), self.total, device=codes.device)
        return known.scatter_(1, codes + self.offsets, ones)

    def cross_entropy(self, logits: Tensor, codes: Tensor) -> Tensor:
        """Return -log p of each choice's code, in nats, (n, n_choices), from :func:`bounded` logits."""
        logits = logits.float()
        total: Tensor = logits.exp() @ self.owner
        return total.log() - logits.gather(1, codes + self.offsets)

    def draw(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Return a code per choice, each drawn from its own posterior.

        Parameters
        ----------
        logits : Tensor, shape (n, total)
            :func:`bounded`.
        uniforms : Tensor of float64, shape (n, n_choices)
            Random numbers in [0, 1).

        Returns
        -------
        Tensor of int64, shape (n, n_choices)
        """
        drawn = [
            drawn_code(logits[:, self.columns(i)], uniforms[:, i : i + 1]) for i in range(len(self))
        ]
        return torch.stack(drawn, 1) if drawn else _none(logits)

    def likeliest(self, logits: Tensor) -> Tensor:
        """Return each choice's most likely code, (n, n_choices) of int64."""
        found = [logits[:, self.columns(i)].argmax(1) for i in range(len(self))]
        return torch.stack(found, 1) if found else _none(logits)


def bounded(logits: Tensor) -> Tensor:
    """Return logits pressed softly into what an exponential can bear."""
    return MAX_LOGIT * torch.tanh(logits / MAX_LOGIT)


def normal_scores(ranks: Tensor) -> Tensor:
    """Return the normal quantiles of ranks in [0, 1], float32 and finite."""
    return torch.special.ndtri(ranks.clamp(1e-6, 1 - 1e-6)).float()


def drawn_code(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Return the code of one choice that each random number falls on, (n,); uniforms are (n, 1)."""
    mass = logits.double().exp().cumsum(dim=1)
    return (mass <= uniforms * mass[:, -1:]).sum(dim=1).clamp_(max=logits.shape[1] - 1)


def _none(logits: Tensor) -> Tensor:
    return torch.zeros(len(logits), 0, dtype=torch.int64, device=logits.device)
