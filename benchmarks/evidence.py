"""How far the intervals of the hold-out are right: coverage, width, false and missed gains where the truth is known.

Two strategies are compared on simulated hold-outs. Whether a strategy is right about a record depends on the
record, on the training seed, and on both, as in runs. Each line repeats one setting and prints

- the share of 95 % intervals that hold the true difference (92 to 98 % is right),
- their half-width over 1.96 times the true standard deviation of the estimate (1 is as narrow as may be),
- how often a gain is proven where there is none (2.5 % is right), with its exact 95 % interval,
- and how often where there are 4 points (power).

Strategies that draw prove nothing with fewer than three seeds, by rule. One seed's intervals are of the records alone.

Then twenty versions are compared on one hold-out, with new strategies each time and no true effect: how often any of
them is falsely proven, with and without the rule of `experiment/looks.py`.

Last, for true gains from -2 to +2 points and five seeds: how often an interval of the hold-out is `preferred`, and how
often `proven`.

    python benchmarks/evidence.py [--quick] [--json FILE]
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from _evidence_looks import looks
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import binomtest

from prefect_augment.evaluation.metrics.bootstrap import paired_bootstrap
from prefect_augment.evaluation.verdict.decision import LEAST_SEEDS, is_preferred

GAIN, MOST_FALSE = 0.04, 0.025


@dataclass(frozen=True)
class Setting:
    """A hold-out and how strategies are trained."""

    n: int  # records
    n_seeds: int
    seed_sd: float  # standard deviation of a seed's recall
    draws: str  # which strategies depend on the seed: none, one, both
    n_classes: int = 2
    group_size: int = 1

    @property
    def may_prove(self) -> bool:
        """Whether a gain may be called proven with so many seeds."""
        return self.n_seeds >= LEAST_SEEDS or self.draws == "none"

    @property
    def counts(self) -> NDArray[np.int64]:
        """Records per class: one large class, the others share a tenth and are never below five."""
        rare = max(5, self.n // 10 // (self.n_classes - 1))
        return np.array([self.n - rare * (self.n_classes - 1), *[rare] * (self.n_classes - 1)])


SETTINGS = [
    *(Setting(n, s, 0.0, "none") for n in (60, 300, 1000, 3000) for s in (1, 3)),
    *(
        Setting(n, s, 0.02, d)
        for n in (60, 300, 1000, 3000)
        for s, d in [(1, "both"), *product((2, 3, 5), ("one", "both")), (4, "both")]
    ),
    *(
        Setting(n, 3, 0.02, "both", n_classes=k)
        for n in (1000, 3000)
        for k in (10, 60)
        if n >= 6 * k
    ),
    *(Setting(n, 3, 0.02, "both", group_size=5) for n in (300, 1000, 3000)),
]


def hold_out(w: Setting, gain: float, rng: np.random.Generator) -> tuple[Any, dict[str, Any], Any]:
    """Classes, hits of strategies "a" and "b" (n_seeds, n_records), and groups of one hold-out."""
    y = np.repeat(np.arange(w.n_classes), w.counts)
    groups = np.arange(len(y)) // w.group_size if w.group_size > 1 else None
    n_groups = len(y) // w.group_size + 1
    hard = np.repeat(rng.normal(size=n_groups), w.group_size)[: len(y)]
    if w.group_size > 1:
        hard = np.sqrt(0.5) * (hard + rng.normal(size=len(y)))
    recall = np.where(np.arange(w.n_classes) == 0, 0.93, 0.70)
    hits = {}
    for name, plus in (("a", gain), ("b", 0.0)):
        draws = w.draws == "both" or (w.draws == "one" and name == "a")
        own = rng.normal(size=len(y))  # of the strategy and record, the same for every seed
        chance = rng.normal(size=(w.n_seeds, len(y))) if draws else np.zeros((1, len(y)))
        z = np.sqrt(0.7) * hard + np.sqrt(0.15) * own + np.sqrt(0.15) * chance
        if not draws:
            z = (np.sqrt(0.7) * hard + np.sqrt(0.3) * own)[None]
        shift = w.seed_sd * rng.normal(size=(w.n_seeds, 1, w.n_classes)) if draws else 0.0
        level = np.clip(recall + plus + shift, 0.001, 0.999)  # (n_seeds, 1, n_classes)
        threshold = np.broadcast_to(ndtri(level), (w.n_seeds, 1, w.n_classes))[:, 0, y]
        hits[name] = (np.broadcast_to(z, (w.n_seeds, len(y))) < threshold).astype(float)
    return y, hits, groups


def measure(w: Setting, n_repeats: int, seed: int) -> dict[str, Any]:
    """Coverage, width, and the shares of proven gains of one setting; a third of the repeats has a gain."""
    rows = []
    for gain, n in ((0.0, n_repeats), (GAIN, n_repeats // 3)):
        for r in range(n):
            rng = np.random.default_rng(
                [seed, r, w.n, w.n_seeds, w.n_classes, w.group_size, len(w.draws), int(1000 * gain)]
            )
            y, hits, groups = hold_out(w, gain, rng)
            boot = paired_bootstrap(
                y,
                hits,
                compared=np.ones(w.n_classes, dtype=bool),
                groups=groups,
                n_bootstrap=500,
                seed=r,
            )
            i = boot.difference("a", "b")
            rows.append((gain, i.estimate, i.low, i.high))
    gains, estimates, low, high = np.array(rows).T
    none, some = gains == 0, gains > 0
    # Recalls are clipped and skewed, so the truth of a gain is what many repeats give.
    truth = np.where(none, 0.0, estimates[some].mean())
    spread = np.sqrt(np.mean((estimates - truth) ** 2))
    proven = (low > 0) & w.may_prove
    false = binomtest(int(proven[none].sum()), n_repeats).proportion_ci()
    return {
        "may_prove": w.may_prove,
        "coverage": float(np.mean((low <= truth) & (truth <= high))),
        "width": float(np.mean(high - low) / 2 / (1.96 * spread)),
        "false": float(np.mean(proven[none])),
        "false_interval": (float(false.low), float(false.high)),
        "power": float(np.mean(proven[some])),
    }


def answers(w: Setting, gain: float, n_repeats: int) -> dict[str, Any]:
    """Shares of hold-outs on which a true gain is preferred, or proven."""
    preferred, proven = 0, 0
    for r in range(n_repeats):
        y, hits, _ = hold_out(w, gain, np.random.default_rng([r, w.n, round(1000 * (1 + gain))]))
        compared = np.ones(w.n_classes, dtype=bool)
        boot = paired_bootstrap(y, hits, compared=compared, n_bootstrap=500, seed=r)
        interval = boot.difference("a", "b")
        preferred += is_preferred(interval, 1.0)
        proven += interval.low > 0
    return {
        "n": w.n,
        "gain": gain,
        "preferred": preferred / n_repeats,
        "proven": proven / n_repeats,
    }


def summary(found: Sequence[dict[str, Any]], n_repeats: int) -> list[str]:
    """How many settings are within the goals, and means over those that may prove something."""
    found = [f for f in found if f["may_prove"]]
    n, false = len(found), np.array([f["false"] for f in found])
    ci = binomtest(round(float(false.sum()) * n_repeats), n * n_repeats).proportion_ci()
    both = [f for f in found if (f["n"], f["draws"], f["n_classes"]) == (1000, "both", 2)]
    shown = [f for f in found if f["false_interval"][0] > MOST_FALSE]
    within = sum(0.92 <= f["coverage"] <= 0.98 for f in found)
    lower = sum(f["coverage"] < 0.92 for f in found)
    narrow = sum(f["width"] <= 1.15 for f in found)
    power = [f"{f['power']:.0%} with {f['n_seeds']}" for f in both if f["group_size"] == 1]
    return [
        f"coverage: mean {np.mean([f['coverage'] for f in found]):.1%}; 92 to 98 % in {within} of {n}, less in {lower}",
        f"width: mean {np.mean([f['width'] for f in found]):.2f}; at most 1.15 in {narrow} of {n}",
        f"false: mean {false.mean():.2%} ({ci.low:.2%} to {ci.high:.2%}), most {false.max():.1%}",
        f"false is shown to be above 2.5 % in {len(shown)} of {n}",
        f"power at 1,000 records, two classes, both draw: {', '.join(power)} seeds",
    ]


def main() -> None:
    """Print a line per setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="every ninth setting, 60 repeats")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    settings = SETTINGS[::9] if args.quick else SETTINGS
    n_repeats, found = 60 if args.quick else args.repeats, []
    print("records seeds seed-sd draws classes groups  coverage  width  false  power at +4 points")
    for w in settings:
        m = measure(w, n_repeats, seed=args.seed)
        found.append({**asdict(w), **m})
        low, high = m["false_interval"]
        print(
            f"{w.n:7} {w.n_seeds:5} {w.seed_sd:7.2f} {w.draws:5} {w.n_classes:7} {w.group_size:6}"
            f"  {m['coverage']:8.1%} {m['width']:6.2f} {m['false']:6.1%} [{low:.1%}, {high:.1%}] {m['power']:6.1%}",
            flush=True,
        )
    print(*summary(found, n_repeats), sep="\n")
    looked = looks(repetitions=10 if args.quick else 200)
    print(f"twenty looks at one hold-out, no true effect: {json.dumps(looked, indent=1)}")
    print("records  true gain  preferred  proven")
    by_gain = [
        answers(Setting(n, 5, 0.01, "both"), points / 100, n_repeats)
        for n in (300, 1000, 3000)
        for points in (-2, -1, 0, 1, 2)
    ]
    for a in by_gain:
        print(f"{a['n']:7} {a['gain']:+10.0%} {a['preferred']:10.0%} {a['proven']:7.0%}")
    if args.json:
        measured = {"intervals": found, "looks": looked, "answers": by_gain}
        args.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
