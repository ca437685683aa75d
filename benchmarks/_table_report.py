"""What `tables.py` prints: tables of means over seeds, differences with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from _goals import Goal, print_goals, print_heading, print_row
from _table_data import LABELS
from _table_downstream import ESTIMATORS, FIGURES, Outcome, bootstrap_differences
from _table_score import NOTHING

__all__ = [
    "Goal",
    "Results",
    "best_of",
    "print_differences",
    "print_downstream",
    "print_goals",
    "print_likeness",
    "print_speed",
]

# Student's t for a 95 % interval by degrees of freedom: a few seeds.
_T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}

# Title, where the figure is, digits.
Column = tuple[str, tuple[str, ...], int]
LIKENESS: tuple[Column, ...] = (
    ("C2ST", ("all", "c2st"), 3),
    ("shapes", ("all", "shapes"), 3),
    ("pairs", ("all", "pairs"), 3),
    ("C2ST min", ("minority", "c2st"), 3),
    ("shapes min", ("minority", "shapes"), 3),
    ("pairs min", ("minority", "pairs"), 3),
    ("near", ("all", "near_train"), 2),
    ("memo", ("all", "memo"), 3),
    ("memo min", ("minority", "memo"), 3),
    ("copies", ("all", "copies"), 3),
    ("own", ("all", "own_copies"), 3),
    ("copies min", ("minority", "copies"), 3),
    ("own min", ("minority", "own_copies"), 3),
    ("valid", ("valid",), 3),
    ("fit CPU s", ("cost", "fit_cpu"), 2),
    ("rows/s", ("cost", "rows_per_s"), 0),
    ("MiB", ("cost", "peak_mib"), 0),
)


@dataclass(frozen=True)
class Results:
    """All cells that were made: their figures and what estimators say of test.

    Attributes
    ----------
    figures : mapping of (set, seed, method) to dict
    outcomes : mapping of (set, seed, method) to mapping of estimator to Outcome
    speed : mapping of (set, method) to dict
        On a fixed number of rows.
    """

    figures: Mapping[tuple[str, int, str], Mapping[str, Any]]
    outcomes: Mapping[tuple[str, int, str], Mapping[str, Outcome]]
    speed: Mapping[tuple[str, str], Mapping[str, float]]

    @property
    def sets(self) -> list[str]:
        """Sets that were measured, in their order."""
        return [name for name in LABELS if any(key[0] == name for key in self.figures)]

    @property
    def methods(self) -> list[str]:
        """Methods that were measured, in the order of the cells."""
        return list(dict.fromkeys(key[2] for key in self.figures))

    def values(self, of_set: str, method: str, where: Sequence[str]) -> list[float]:
        """Return a figure of each seed, those that there are."""
        found = []
        for (name, _, by), figures in self.figures.items():
            value: Any = figures if (name, by) == (of_set, method) else None
            for part in where:
                value = value.get(part) if isinstance(value, Mapping) else None
            if value is not None:
                found.append(float(value))
        return found

    def mean(self, of_set: str, method: str, *where: str) -> float:
        """Return the mean over the seeds; NaN where there is none."""
        found = self.values(of_set, method, where)
        return float(np.mean(found)) if found else math.nan


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of a mean over seeds; NaN for one seed."""
    n = len(values)
    if n < 2:
        return math.nan
    return _T95.get(n - 1, 2.0) * float(np.std(values, ddof=1)) / math.sqrt(n)


def print_likeness(results: Results) -> None:
    """Print likeness, memory and cost of every method that draws rows."""
    for of_set in results.sets:
        print(
            f"\n### {of_set}: rows as the classes are (mean over seeds ± half of a 95 % interval)\n"
        )
        print_heading(["method", *(title for title, _, _ in LIKENESS)])
        for method in results.methods:
            cells = []
            for _, where, digits in LIKENESS:
                found = results.values(of_set, method, where)
                wide = half_width(found) if where[-1] == "c2st" else math.nan
                text = f"{np.mean(found):,.{digits}f}" if found else ""
                cells.append(text + (f" ±{wide:.3f}" if not math.isnan(wide) else ""))
            if any(cells):
                print_row([method if method != NOTHING else "(real training rows)", *cells])


def print_downstream(results: Results) -> None:
    """Print what both estimators reach after balancing."""
    titles = {
        "auprc": "AUPRC", "f1": "macro-F1", "f1_tuned": "macro-F1 tuned", "balanced": "balanced accuracy",
        "balanced_tuned": "balanced accuracy tuned",
    }  # fmt: skip
    for of_set in results.sets:
        print(
            f"\n### {of_set}: downstream after balancing (mean over seeds ± half of a 95 % interval)\n"
        )
        print_heading(
            ["method", *(f"{estimator} {titles[f]}" for estimator in ESTIMATORS for f in FIGURES)]
        )
        for method in results.methods:
            cells = []
            for estimator in ESTIMATORS:
                for figure in FIGURES:
                    found = results.values(of_set, method, ("downstream", estimator, figure))
                    wide = half_width(found)
                    text = f"{np.mean(found):.3f}" if found else ""
                    cells.append(text + (f" ±{wide:.3f}" if not math.isnan(wide) else ""))
            if any(cells):
                print_row([method, *cells])


def differences(results: Results, sets: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return by estimator and method the differences to doing nothing, over the sets that all have."""
    wanted = set(sets)
    by_place: dict[tuple[str, int], dict[str, Mapping[str, Outcome]]] = {}
    for (of_set, seed, method), outcome in results.outcomes.items():
        if of_set in wanted:
            by_place.setdefault((of_set, seed), {})[method] = outcome
    places = [p for p in by_place.values() if NOTHING in p]
    shared = [m for m in results.methods if places and all(m in p for p in places)]
    return {
        estimator: bootstrap_differences(
            {m: [p[m][estimator] for p in places] for m in shared}, NOTHING
        )
        if len(shared) > 1
        else {}
        for estimator in ESTIMATORS
    }


def print_differences(results: Results) -> None:
    """Print differences to doing nothing: means over sets and seeds, bootstrap of test's rows."""
    sets = results.sets
    print(
        f"\n### against nothing with a tuned threshold: mean of {len(sets)} sets [95 % interval]\n"
    )
    print_heading(
        ["method", *(f"{estimator} {f}" for estimator in ESTIMATORS for f in ("AUPRC", "macro-F1"))]
    )
    found = differences(results, sets)
    for method in found[ESTIMATORS[0]]:
        cells = []
        for estimator in ESTIMATORS:
            for figure in ("auprc", "f1_tuned"):
                middle, low, high = found[estimator][method][figure]
                cells.append(f"{middle:+.4f} [{low:+.4f}, {high:+.4f}]")
        print_row([method, *cells])


def print_speed(results: Results) -> None:
    """Print fit seconds and rows per second on a fixed number of rows."""
    if not results.speed:
        return
    print("\n### speed on 8,000 rows, one thread\n")
    print_heading(["set", "method", "fit CPU s", "rows/s"])
    for (of_set, method), found in results.speed.items():
        print_row([of_set, method, f"{found['fit_cpu']:.2f}", f"{found['rows_per_s']:,.0f}"])


def best_of(figures: Iterable[tuple[float, str]], pick: Callable[..., Any]) -> tuple[float, str]:
    """Return the best of some peers' figures and whose it is; NaN where there is none."""
    known = [(value, name) for value, name in figures if not math.isnan(value)]
    return pick(known) if known else (math.nan, "")
