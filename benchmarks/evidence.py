"""How far the intervals of the hold-out are right: coverage, width, false and missed gains where the truth is known.

Two strategies are compared on simulated hold-outs. Whether a strategy is right about a record depends on the
record, on the training seed, and on both, as in runs. Each line repeats one setting and prints

- the share of 95 % intervals that hold the true difference (92 to 98 % is right),
- their half-width over 1.96 times the true standard deviation of the estimate (1 is as narrow as may be),
- how often a gain is shown where there is none (2.5 % is right) and where there are 4 points (power).

Then twenty versions are compared on one hold-out, with new strategies each time and no true effect: how often any of
them is falsely proven, with and without the rule of `evaluation/verdict/alpha_spending.py`.

    python benchmarks/evidence.py [--quick] [--json FILE]
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _evidence_looks import looks
from numpy.typing import NDArray
from scipy.special import ndtri

from prefect_augment.evaluation.metrics.bootstrap import paired_bootstrap

GAIN = 0.04


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
    def counts(self) -> NDArray[np.int64]:
        """Records per class: one large class, the others share a tenth and are never below five."""
        rare = max(5, self.n // 10 // (self.n_classes - 1))
        return np.array([self.n - rare * (self.n_classes - 1), *[rare] * (self.n_classes - 1)])


SETTINGS = [
    *(Setting(n, s, 0.0, "none") for n in (60, 300, 1000, 3000) for s in (1, 3)),
    *(
        Setting(n, s, 0.02, d)
        for n in (60, 300, 1000, 3000)
        for s in (2, 3, 5)
        for d in ("one", "both")
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


def measure(w: Setting, n_repeats: int, seed: int) -> dict[str, float]:
    """Coverage, width, and the shares of shown gains of one setting."""
    rows = []
    for gain in (0.0, GAIN):
        for r in range(n_repeats):
            rng = np.random.default_rng([seed, r, int(1000 * gain)])
            y, hits, groups = hold_out(w, gain, rng)
            boot = paired_bootstrap(
                y,
                hits,
                compared=np.ones(w.n_classes, dtype=bool),
                groups=groups,
                n_bootstrap=400,
                seed=r,
            )
            i = boot.difference("a", "b")
            rows.append((gain, i.estimate, i.low, i.high))
    gains, estimates, low, high = np.array(rows).T
    none, some = gains == 0, gains > 0
    spread = np.sqrt(np.mean([estimates[none].var(ddof=1), estimates[some].var(ddof=1)]))
    # Recalls are clipped and skewed, so the truth of a gain is what many repeats give.
    truth = np.where(none, 0.0, estimates[some].mean())
    return {
        "coverage": float(np.mean((low <= truth) & (truth <= high))),
        "width": float(np.mean(high - low) / 2 / (1.96 * spread)),
        "false": float(np.mean(low[none] > 0)),
        "power": float(np.mean(low[some] > 0)),
    }


def main() -> None:
    """Print a line per setting."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="five settings, 60 repeats")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--repeats", type=int, default=400)
    args = parser.parse_args()
    settings = SETTINGS[::9] if args.quick else SETTINGS
    found = []
    print("records seeds seed-sd draws classes groups  coverage  width  false  power at +4 points")
    for w in settings:
        m = measure(w, 60 if args.quick else args.repeats, seed=0)
        found.append({**asdict(w), **m})
        print(
            f"{w.n:7} {w.n_seeds:5} {w.seed_sd:7.2f} {w.draws:5} {w.n_classes:7} {w.group_size:6}"
            f"  {m['coverage']:8.1%} {m['width']:6.2f} {m['false']:6.1%} {m['power']:6.1%}",
            flush=True,
        )
    looked = looks(repetitions=10 if args.quick else 200)
    print(f"twenty looks at one hold-out, no true effect: {json.dumps(looked, indent=1)}")
    if args.json:
        measured = {"intervals": found, "looks": looked}
        args.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
