"""Known answers of the filter: `python benchmarks/quality.py [--quick] [--json FILE]`.

Generators whose fault is known meet the product's filter, on data that are drawn anew for every case and
on real sets that are split anew (`_quality_cases.py` says how): copies of training rows, exact, with a
trace of noise and, of pictures, moved by a pixel; two labels swapped; one record per class; noise; and
no fault, which are fresh real records. A case is *caught* where every faulty class is called unsafe,
and a *false alarm* where a sound one is. Shares have Clopper-Pearson intervals of 95 %. *Dropped* is
the median share of the faulty candidates that the filter drops one by one, whatever the verdict.

*Doses*: of 1,000 candidates of a class with 300 training and 100 validation records, some are copies and all
others real; how many it takes until the class is called unsafe in 95 % of the cases.

*Limits* are tried at other values on the same cases: `max_fault_share`, `min_coverage` and
`false_alarm` with all else at its default.

One process, one thread. Finished worlds are kept in --cache, so an interrupted run goes on where it
was. --quick: a tenth of the cases.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import _quality_cases
import numpy as np
from _goals import Goal, print_goals, print_heading, print_row
from _quality_cases import DRAWN, FAULTS, REAL_IMAGES, REAL_TABLES, filtered
from scipy.stats import binomtest

from prefect_augment.evaluation.quality import class_tests
from prefect_augment.evaluation.quality.class_tests import CHECKS
from prefect_augment.params import Quality
from prefect_augment.schema import ClassCheck

KINDS = ("table", "image")
FAULTY = {"table": [f for f in FAULTS if f not in ("none", "moved copies")]}
FAULTY["image"] = [f for f in FAULTS if f != "none"]
# Worlds of each set: 100 cases and more of either side, of every fault.
N_WORLDS = {
    "table": {DRAWN["table"]: 120, **dict.fromkeys(REAL_TABLES, 20)},
    "image": {DRAWN["image"]: 40, **dict.fromkeys(REAL_IMAGES, 15)},
}
MOST_WRONG = 0.05
DOSES = {"table": (1, 2, 5, 10, 15, 20, 30, 50, 100), "image": (10, 30, 50, 100)}
N_DOSED = {"table": 60, "image": 20}
N_CANDIDATES = 1000
OTHER_LIMITS = {
    "false_alarm": (0.001, 0.01, 0.05, 0.2),
    "max_fault_share": (0.0, 0.05, 0.1, 0.2, 0.4),
    "min_coverage": (0.25, 0.5, 0.75, 0.9),
}


def cases(kind: str, name: str, seed: int) -> dict[str, Any]:
    """All faults of one world: the strata's checks as JSON, and what was dropped."""
    w = _quality_cases.world(kind, name, seed)
    found: dict[str, Any] = {"n_classes": w.n_classes}
    for fault in ("none", *FAULTY[kind]):
        start = time.process_time()
        candidates = FAULTS[fault](w)
        outcome = filtered(w, candidates)
        faulty = faulty_classes(fault, w.n_classes)
        of = np.isin(candidates.stratum, faulty or range(w.n_classes))
        found[fault] = {
            "checks": [[c.model_dump() for c in s.checks] for s in outcome.strata],
            "dropped": float((~outcome.passed[of]).mean()),
            "cpu": time.process_time() - start,
        }
    return found


def doses(kind: str, seed: int) -> dict[str, Any]:
    """Of one drawn world: the verdict of its first class by fault and number of copies."""
    w = _quality_cases.world(kind, DRAWN[kind], 10_000 + seed, n_fresh=N_CANDIDATES)
    found: dict[str, Any] = {}
    for fault in [f for f in FAULTY[kind] if "copies" in f]:
        for n in DOSES[kind]:
            candidates = _quality_cases.dosed(w, fault, n)
            outcome = filtered(w, candidates)
            reason = outcome.reason[:n]
            found[f"{fault}/{n}"] = {
                "unsafe": outcome.strata[0].verdict == "unsafe",
                "dropped": float((~np.isin(reason, ("", "surplus"))).mean()),
            }
    return found


def faulty_classes(fault: str, n_classes: int) -> tuple[int, ...]:
    """Classes that a fault spoils."""
    return {"none": (), "swapped labels": (0, 1)}.get(fault, tuple(range(n_classes)))


def unsafe_classes(case: Any, limits: Quality) -> set[int]:
    """Classes that are unsafe under other limits, from the checks' figures."""
    n_strata = len(case["checks"])
    alpha = limits.false_alarm / (n_strata * len(CHECKS))
    return {
        k
        for k, checks in enumerate(case["checks"])
        if any(_fails(ClassCheck(**c), alpha, limits) for c in checks)
    }


def _fails(c: ClassCheck, alpha: float, limits: Quality) -> bool:
    by_chance = c.p_value is not None and c.p_value >= alpha
    if c.name == "copies":
        return not by_chance
    if c.name == "collapse":
        return c.observed < limits.min_coverage * c.expected
    return not by_chance and c.observed - c.expected > limits.max_fault_share


# --- what is kept -----------------------------------------------------------------------------


class Kept:
    """Finished worlds in a folder, by what they were made of."""

    def __init__(self, folder: Path) -> None:
        sources = [Path(_quality_cases.__file__), Path(__file__)]
        package = Path(class_tests.__file__).parent
        sources += [p for p in sorted(package.glob("*.py")) if "report" not in p.name]
        digest = hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:12]
        self.folder = folder / f"quality-{digest}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, make: Any, *words: Any) -> Any:
        """Return what is there, or make it."""
        path = self.folder / f"{name.replace(' ', '_')}.json"
        if not path.exists():
            path.write_text(json.dumps(make(*words)))
        return json.loads(path.read_text())


# --- tables -----------------------------------------------------------------------------------


def interval(n: int, of: int) -> str:
    """A share in percent with its Clopper-Pearson interval."""
    low, high = binomtest(n, of).proportion_ci(method="exact")
    return f"{n / of:.1%} ({low:.1%} to {high:.1%})"


def counted(
    worlds: Sequence[Any], kind: str, limits: Quality | None = None
) -> Iterator[tuple[str, int, int]]:
    """Per fault: cases with the wrong answer, and all; wrong is a miss or, of no fault, an alarm."""
    limits = limits or Quality()
    for fault in ("none", *FAULTY[kind]):
        wrong = 0
        for w in worlds:
            unsafe = unsafe_classes(w[fault], limits)
            faulty = set(faulty_classes(fault, w["n_classes"]))
            wrong += not faulty <= unsafe if faulty else bool(unsafe)
        yield fault, wrong, len(worlds)


def print_cases(kind: str, by_set: dict[str, list[Any]]) -> list[Goal]:
    """Print a kind's table; return its goals."""
    goals = []
    print(f"\n### {kind}s: wrong answers\n")
    print_heading(["fault", *by_set, "all", "95 % interval", "dropped one by one", "CPU s a case"])
    every = [w for worlds in by_set.values() for w in worlds]
    parts = {name: {f: n for f, n, _ in counted(ws, kind)} for name, ws in by_set.items()}
    for fault, wrong, n in counted(every, kind):
        row = [f"{parts[name][fault]}/{len(worlds)}" for name, worlds in by_set.items()]
        dropped = median(w[fault]["dropped"] for w in every)
        cpu = sum(w[fault]["cpu"] for w in every) / n
        print_row([fault, *row, f"{wrong}/{n}", interval(wrong, n), f"{dropped:.0%}", f"{cpu:.2f}"])
        what = "false alarms" if fault == "none" else f"misses, {fault}"
        share = wrong / n
        goals.append(
            Goal(
                f"{kind}s: {what}",
                "share",
                share,
                float("nan"),
                "",
                f"<= {MOST_WRONG}",
                share <= MOST_WRONG,
            )
        )
    return goals


def print_doses(kind: str, found: Sequence[Any]) -> None:
    """Print how many copies it takes."""
    faults = [f for f in FAULTY[kind] if "copies" in f]
    print(f"\n### {kind}s: copies among {N_CANDIDATES:,} candidates; cases called unsafe\n")
    print_heading(
        ["fault", *map(str, DOSES[kind]), "95 % from", "of the copies, dropped one by one"]
    )
    for fault in faults:
        shares = [float(np.mean([w[f"{fault}/{n}"]["unsafe"] for w in found])) for n in DOSES[kind]]
        enough = next(
            (str(n) for n, s in zip(DOSES[kind], shares, strict=True) if s >= 0.95), "more"
        )
        dropped = float(np.mean([w[f"{fault}/{DOSES[kind][-1]}"]["dropped"] for w in found]))
        print_row([fault, *(f"{s:.0%}" for s in shares), enough, f"{dropped:.0%}"])


def print_limits(kind: str, every: Sequence[Any]) -> None:
    """Print what other limits would give."""
    print(f"\n### {kind}s: wrong answers under other limits\n")
    print_heading(["limit", "value", "none", *FAULTY[kind]])
    for name, values in OTHER_LIMITS.items():
        for value in values:
            found = {f: wrong / n for f, wrong, n in counted(every, kind, Quality(**{name: value}))}
            default = " (default)" if value == getattr(Quality(), name) else ""
            print_row([name, f"{value}{default}", *(f"{found[f]:.1%}" for f in found)])


def main() -> None:
    """Make what is lacking, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the cases")
    parser.add_argument("--json", type=Path, help="write the goals to this file")
    parser.add_argument("--cache", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    args = parser.parse_args()
    kept, goals = Kept(args.cache), []
    share = 10 if args.quick else 1
    for kind in args.kinds:
        by_set = {
            name: [
                kept.get(f"{kind}-{name}-{seed}", cases, kind, name, seed)
                for seed in range(max(1, n // share))
            ]
            for name, n in N_WORLDS[kind].items()
        }
        goals += print_cases(kind, by_set)
        print_limits(kind, [w for worlds in by_set.values() for w in worlds])
        n = max(1, N_DOSED[kind] // share)
        print_doses(kind, [kept.get(f"{kind}-dose-{s}", doses, kind, s) for s in range(n)])
    print_goals(goals)
    if args.json:
        args.json.write_text(json.dumps([g.row() for g in goals], indent=1))


if __name__ == "__main__":
    main()
