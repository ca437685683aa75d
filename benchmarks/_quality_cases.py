"""Known answers for the filter: data whose source is known, generators whose fault is known.

A *world* is a classified data set under a seed, in three parts: *training*, which a generator would have
learnt from; *validation*; and *fresh*, further real records that nobody has seen. Drawn worlds come from a
distribution of their own (new for every seed); the others are real sets, split anew. A *fault* makes
candidates from a world; `none` hands out the fresh records themselves, as the true distribution would.
The filter is the product's own; of a world all faults share its classifiers, which are trained once.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_augment.encoding.arrays import FilterOutcome, FilterRequest, Labelled
from prefect_augment.evaluation.quality.near_copies import Measures
from prefect_augment.evaluation.quality.record_filter import filter_records, table_measures

__all__ = [
    "DRAWN",
    "FAULTS",
    "REAL_IMAGES",
    "REAL_TABLES",
    "Answer",
    "World",
    "answer",
    "dosed",
    "filtered",
    "world",
]

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
DRAWN = {"table": "drawn rows", "image": "drawn pictures"}
REAL_TABLES = (
    "ecoli",
    "german_credit",
    "hypothyroid",
    "mammography",
    "predictive_maintenance",
    "adult_income",
)
REAL_IMAGES = ("mnist10k_train", "fashion_test", "bccd_cells_train", "pneumonia_train")
SIDE = 10  # of pictures
STEPS = 20  # of each classifier of pictures
MOST_TRAINING, MOST_VALIDATION, MOST_FRESH = 300, 100, 200  # of a class
MOST_CLASSES = {"table": 4, "image": 2}  # of a real set, chosen anew for every seed
FEWEST = 70  # records of a class of a real set that takes part
BLUR = 0.005  # of a column's range, or of 255, for copies that are not exact

Rng = np.random.Generator


@dataclass(frozen=True)
class World:
    """Records in three parts; ``is_category`` and ``n_levels`` are of tables alone."""

    kind: str
    name: str
    seed: int
    training: Labelled
    validation: Labelled
    fresh: Labelled
    is_category: NDArray[np.bool_]
    n_levels: NDArray[np.int64]

    @property
    def n_classes(self) -> int:
        """Classes, all of which have records in each part."""
        return int(self.training.stratum.max()) + 1

    def rng(self, *words: int) -> Rng:
        """A generator of this world's own."""
        return np.random.default_rng([self.seed, *map(ord, self.name), *words])

    @functools.cached_property
    def measures(self) -> Measures:
        """The product's, with classifiers that are trained once; C2ST, which no verdict asks, is left out."""
        classes = np.arange(self.n_classes)
        if self.kind == "table":
            made = table_measures(
                self.training,
                is_category=self.is_category,
                n_levels=self.n_levels,
                stratum_class=classes,
                seed=self.seed,
            )
        else:
            from prefect_augment.evaluation.quality.image_filter import image_measures

            made = image_measures(self.training, stratum_class=classes, steps=STEPS, seed=self.seed)
        trained: dict[bytes, Any] = {}

        def train(X: NDArray[Any], y: NDArray[np.int64]) -> Any:
            key = X.tobytes()
            if key not in trained:
                trained[key] = made.train(X, y)
            return trained[key]

        return replace(made, train=train, two_sample=None)


def world(kind: str, name: str, seed: int, *, n_fresh: int = MOST_FRESH) -> World:
    """A world under a seed; drawn ones have ``n_fresh`` records of each class in *fresh*."""
    if name == DRAWN[kind]:
        return _drawn_table(seed, n_fresh) if kind == "table" else _drawn_images(seed, n_fresh)
    X, y, is_category, n_levels = _table(name) if kind == "table" else _images(name)
    rng = np.random.default_rng([seed, *map(ord, name)])
    parts: list[list[NDArray[np.int64]]] = [[], [], []]
    codes = np.flatnonzero(np.bincount(y) >= FEWEST)
    codes = np.sort(rng.permutation(codes)[: MOST_CLASSES[kind]])
    for k in codes:
        rows = rng.permutation(np.flatnonzero(y == k))
        n_training, n_validation = (
            min(MOST_TRAINING, len(rows) // 2),
            min(MOST_VALIDATION, len(rows) // 5),
        )
        ends = (
            n_training,
            n_training + n_validation,
            min(len(rows), n_training + n_validation + MOST_FRESH),
        )
        for part, found in zip(parts, np.split(rows[: ends[2]], ends[:2]), strict=True):
            part.append(found)
    place = np.full(int(y.max()) + 1, -1)
    place[codes] = np.arange(len(codes))
    made = [Labelled(X[r], place[y[r]]) for r in map(np.concatenate, parts)]
    return World(kind, name, seed, made[0], made[1], made[2], is_category, n_levels)


# --- worlds -----------------------------------------------------------------------------------


def _drawn_table(seed: int, n_fresh: int) -> World:
    """Two to four classes on curved sheets some way apart, with nulls and a category."""
    rng = np.random.default_rng([seed, 1])
    n_classes = int(rng.integers(2, 5))
    centres = rng.normal(size=(n_classes, 5))
    centres *= rng.uniform(2.5, 4.0) / np.linalg.norm(centres, axis=1, keepdims=True)
    bends, levels = rng.normal(size=(n_classes, 2, 5)), rng.dirichlet(np.ones(4), n_classes)

    def draw(n_k: NDArray[np.int64]) -> Labelled:
        y = np.repeat(np.arange(n_classes), n_k)
        t = rng.normal(size=(len(y), 2))
        X = centres[y] + np.einsum("ij,ijk->ik", np.column_stack([t[:, 0], t[:, 1] ** 2]), bends[y])
        X += 0.3 * rng.normal(size=X.shape)
        X[rng.random(len(y)) < 0.05, 1] = np.nan
        level = (rng.random(len(y))[:, None] > levels[y].cumsum(axis=1)).sum(axis=1)
        return Labelled(np.column_stack([X, np.minimum(level, 3)]), y)

    # The head is large; tails go down to where validation alone is too small to compare with.
    n_training = np.concatenate([[MOST_TRAINING], rng.integers(40, 200, n_classes - 1)])
    parts = (
        draw(n_training),
        draw(np.maximum(12, n_training // 3)),
        draw(np.full(n_classes, n_fresh)),
    )
    is_category = np.arange(6) == 5
    return World("table", DRAWN["table"], seed, *parts, is_category, np.where(is_category, 4, 0))


def _drawn_images(seed: int, n_fresh: int) -> World:
    """Two classes of pictures: a blob of any place and width, or a stripe of any slope."""
    rng, side = np.random.default_rng([seed, 2]), SIDE
    across, down = np.meshgrid(np.arange(side), np.arange(side))
    bright, grain = rng.uniform(120, 220), rng.uniform(4, 12)

    def draw(n_k: NDArray[np.int64]) -> Labelled:
        y = np.repeat([0, 1], n_k)
        cx, cy, width, slope = rng.uniform([2, 2, 1, -1], [7, 7, 2.5, 1], (len(y), 4)).T[
            ..., None, None
        ]
        blob = (across - cx) ** 2 + (down - cy) ** 2
        stripe = (down - cy - slope * (across - side / 2)) ** 2
        square = np.where((y == 0)[:, None, None], blob, stripe)
        X = bright * np.exp(-square / width**2) + rng.normal(0, grain, square.shape)
        return Labelled(X.clip(0, 255).astype(np.uint8)[..., None], y)

    n_training = np.array([MOST_TRAINING, int(rng.integers(60, 200))])
    parts = draw(n_training), draw(np.maximum(12, n_training // 3)), draw(np.full(2, n_fresh))
    return World("image", DRAWN["image"], seed, *parts, np.zeros(0, bool), np.zeros(0, int))


@functools.cache
def _table(name: str) -> tuple[Any, Any, Any, Any]:
    """A real table in the matrix form: numbers, and codes of categories."""
    from _table_data import LABELS, load

    frame = load(name)
    _, y = np.unique(frame.pop(LABELS[name]), return_inverse=True)
    is_number = np.array([d.kind in "fiub" for d in frame.dtypes])
    columns, n_levels = [], []
    for column, number in zip(frame.columns, is_number, strict=True):
        if number:
            columns.append(frame[column].to_numpy(dtype=np.float64, na_value=np.nan))
            n_levels.append(0)
        else:
            codes, levels = frame[column].factorize(sort=True)
            columns.append(np.where(codes < 0, np.nan, codes.astype(np.float64)))
            n_levels.append(len(levels))
    return np.column_stack(columns), y, ~is_number, np.array(n_levels)


@functools.cache
def _images(name: str) -> tuple[Any, Any, Any, Any]:
    """Real pictures, gray, at a small size."""
    import pyarrow.parquet as pq
    from PIL import Image

    table = pq.read_table(DATA / "images" / f"{name}.parquet")
    small = [
        Image.open(io.BytesIO(r["bytes"])).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
        for r in table["image"].to_pylist()
    ]
    _, y = np.unique(table["label"].to_pylist(), return_inverse=True)
    return np.stack([np.array(i) for i in small])[..., None], y, np.zeros(0, bool), np.zeros(0, int)


# --- generators with a known fault ------------------------------------------------------------


def _none(w: World) -> Labelled:
    return w.fresh


def _copies(w: World) -> Labelled:
    """Training rows, drawn with replacement."""
    rng = w.rng(1)
    rows = [
        rng.choice(np.flatnonzero(w.training.stratum == k), int((w.fresh.stratum == k).sum()))
        for k in range(w.n_classes)
    ]
    found = np.concatenate(rows)
    return Labelled(w.training.X[found], w.training.stratum[found])


def _blurred(w: World) -> Labelled:
    """Copies with a little noise: what a model that has learnt by heart gives."""
    copies, rng = _copies(w), w.rng(2)
    if w.kind == "image":
        X = copies.X + rng.normal(0, 255 * BLUR, copies.X.shape)
        return Labelled(X.clip(0, 255).astype(np.uint8), copies.stratum)
    wide = np.nanquantile(w.training.X, 0.95, axis=0) - np.nanquantile(w.training.X, 0.05, axis=0)
    X = copies.X + BLUR * wide * rng.normal(size=copies.X.shape) * ~w.is_category
    return Labelled(X, copies.stratum)


def _moved(w: World) -> Labelled:
    """Copies of pictures, shifted by one pixel; what leaves on one side is repeated from the edge."""
    copies, rng = _copies(w), w.rng(3)
    shifts = np.array([(1, 0), (-1, 0), (0, 1), (0, -1)])[rng.integers(0, 4, len(copies))]
    wide = np.pad(copies.X, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    height, width = copies.X.shape[1:3]
    rows = np.arange(height)[None, :, None] + 1 + shifts[:, 0, None, None]
    columns = np.arange(width)[None, None, :] + 1 + shifts[:, 1, None, None]
    moved = wide[np.arange(len(copies))[:, None, None], rows, columns]
    return Labelled(moved, copies.stratum)


def _swapped(w: World) -> Labelled:
    """The first two classes under one another's label."""
    y = w.fresh.stratum
    return Labelled(w.fresh.X, np.where(y < 2, 1 - y, y))


def _collapsed(w: World) -> Labelled:
    """One record per class, a fresh one, again and again."""
    first = np.array([np.flatnonzero(w.fresh.stratum == k)[0] for k in range(w.n_classes)])
    return Labelled(w.fresh.X[first[w.fresh.stratum]], w.fresh.stratum)


def _noise(w: World) -> Labelled:
    """Any value of each column's range, or any pixel."""
    rng = w.rng(4)
    if w.kind == "image":
        return Labelled(rng.integers(0, 256, w.fresh.X.shape, dtype=np.uint8), w.fresh.stratum)
    low, high = np.nanmin(w.training.X, axis=0), np.nanmax(w.training.X, axis=0)
    X = rng.uniform(low, high, w.fresh.X.shape)
    X[:, w.is_category] = np.floor(
        rng.random(X[:, w.is_category].shape) * w.n_levels[w.is_category]
    )
    return Labelled(X, w.fresh.stratum)


FAULTS: dict[str, Callable[[World], Labelled]] = {
    "none": _none,
    "copies": _copies,
    "blurred copies": _blurred,
    "moved copies": _moved,
    "swapped labels": _swapped,
    "one record per class": _collapsed,
    "noise": _noise,
}


def dosed(w: World, fault: str, n_copies: int) -> Labelled:
    """Fresh records of the first class, of which so many are replaced by copies."""
    fresh = w.fresh.X[w.fresh.stratum == 0].copy()
    copies = FAULTS[fault](w)
    fresh[:n_copies] = copies.X[copies.stratum == 0][:n_copies]
    return Labelled(fresh, np.zeros(len(fresh), dtype=np.int64))


# --- what the filter answers ------------------------------------------------------------------


def filtered(w: World, candidates: Labelled) -> FilterOutcome:
    """What the product's filter says of candidates."""
    return filter_records(
        w.training,
        w.validation,
        candidates,
        FilterRequest(
            strata=[f"class {k}" for k in range(w.n_classes)],
            stratum_class=np.arange(w.n_classes),
            wanted=np.full(w.n_classes, len(candidates)),
            ordinals=np.arange(len(candidates)),
            training_keys=[f"{i:06d}" for i in range(len(w.training))],
            purpose="faithful",
            seed=w.seed,
        ),
        measures=w.measures,
    )


@dataclass(frozen=True)
class Answer:
    """What the filter said of a case.

    Attributes
    ----------
    unsafe : tuple of int
        Classes that it calls unsafe.
    faulty : tuple of int
        Classes that are.
    failed : dict of str to int
        In how many classes each check failed.
    n_compared : int
        Classes with a verdict.
    dropped : float
        Share of the candidates of the faulty classes (of all, where none is) that were dropped.
    """

    unsafe: tuple[int, ...]
    faulty: tuple[int, ...]
    failed: dict[str, int]
    n_compared: int
    dropped: float

    @property
    def caught(self) -> bool:
        """Every faulty class is called unsafe."""
        return set(self.faulty) <= set(self.unsafe)

    @property
    def is_false_alarm(self) -> bool:
        """Some sound class is called unsafe."""
        return not set(self.unsafe) <= set(self.faulty)


def answer(w: World, fault: str) -> Answer:
    """Make the candidates of a fault and ask the filter."""
    candidates = FAULTS[fault](w)
    outcome = filtered(w, candidates)
    faulty = {"none": (), "swapped labels": (0, 1)}.get(fault, tuple(range(w.n_classes)))
    of = np.isin(candidates.stratum, faulty) if faulty else np.ones(len(candidates), dtype=bool)
    failed: dict[str, int] = {}
    for stratum in outcome.strata:
        for check in stratum.checks:
            failed[check.name] = failed.get(check.name, 0) + (not check.passed)
    return Answer(
        unsafe=tuple(k for k, c in enumerate(outcome.strata) if c.verdict == "unsafe"),
        faulty=faulty,
        failed={name: n for name, n in failed.items() if n},
        n_compared=sum(c.verdict != "not tested" for c in outcome.strata),
        dropped=float((~outcome.passed[of]).mean()),
    )
