"""The goals that `tables.py` holds the models to."""

from __future__ import annotations

import math
from collections.abc import Iterator

from _table_downstream import ESTIMATORS
from _table_report import Goal, Results, best_of, differences
from _table_score import NOTHING, WEIGHTS

__all__ = ["MOST_FIT_CPU", "all_goals"]

MOST_C2ST = {"mammography": 0.56, "adult_income": 0.60}
MOST_C2ST_MINORITY = {"adult_income": 0.62}
SHAPES_WITHIN, PAIRS_WITHIN = 0.01, 0.02
MOST_MEMO = 0.08
MOST_FIT_CPU = {"trees": 2.0, "flow": 30.0}
LEAST_ROWS_PER_S = {"trees": 100_000, "flow": 5_000}
# Ours against the peer that it is like.
PAIRS = {"vae": "TVAE", "gan": "CTGAN"}
PEERS = ("CTGAN", "TVAE")
NOT_NEAR = "trees, not near"
LEAST_GAIN, MOST_LOSS = 0.005, 0.02
BASELINES = (WEIGHTS, "oversampling", "SMOTE")


def all_goals(results: Results) -> list[Goal]:
    """Return the goals of everything that was measured."""
    found: list[Goal] = []
    for kind in MOST_FIT_CPU:
        if kind in results.methods:
            found += [*_likeness(results, kind), *_memory(results, kind)]
        found += _speed(results, kind)
    if NOT_NEAR in results.methods:
        found += _memory(results, NOT_NEAR)
    for ours, peer in PAIRS.items():
        if ours in results.methods and peer in results.methods:
            found += _against(results, ours, peer)
    return [*found, *_downstream(results)]


def _likeness(results: Results, kind: str) -> Iterator[Goal]:
    for part, limits, others in (
        ("all", MOST_C2ST, PEERS),
        ("minority", MOST_C2ST_MINORITY, (*PEERS, "SMOTE")),
    ):
        for of_set, most in limits.items():
            ours = results.mean(of_set, kind, part, "c2st")
            if not math.isnan(ours):
                peer = best_of(((results.mean(of_set, p, part, "c2st"), p) for p in others), min)
                name = f"{kind}: C2ST, {of_set}, {part}"
                yield Goal(name, "AUC", ours, *peer, f"at most {most}", ours <= most)
    for figure, within in (("shapes", SHAPES_WITHIN), ("pairs", PAIRS_WITHIN)):
        for of_set in results.sets:
            ours = results.mean(of_set, kind, "all", figure)
            real = results.mean(of_set, NOTHING, "all", figure)
            if not math.isnan(ours + real):
                name = f"{kind}: {figure}, {of_set}"
                goal = f"at least {real - within:.4f}, {within} below real against real"
                yield Goal(
                    name, "similarity", ours, real, "real against real", goal, ours >= real - within
                )


def _memory(results: Results, kind: str) -> Iterator[Goal]:
    for of_set in results.sets:
        memo = results.mean(of_set, kind, "minority", "memo")
        peer = results.mean(of_set, "SMOTE", "minority", "memo")
        if math.isnan(memo):
            continue
        name = f"{kind}: minority rows too near to a training row, {of_set}"
        yield Goal(name, "share", memo, peer, "SMOTE", f"at most {MOST_MEMO}", memo <= MOST_MEMO)
        for part in ("all", "minority"):
            copies = results.mean(of_set, kind, part, "copies")
            own = results.mean(of_set, kind, part, "own_copies")
            # Two standard errors of test's own share, one copy more supposed: it is a draw too.
            n = sum(results.values(of_set, kind, (part, "n_own")))
            supposed = (own * n + 1) / (n + 2)
            most = own + 2 * math.sqrt(supposed * (1 - supposed) / n)
            name = f"{kind}: exact copies, {of_set}, {part}"
            goal = f"no more than test rows and chance, {most:.4f}"
            yield Goal(name, "share", copies, own, "test rows", goal, copies <= most)


def _speed(results: Results, kind: str) -> Iterator[Goal]:
    for (of_set, method), found in results.speed.items():
        if method != kind:
            continue
        cpu, rate = found["fit_cpu"], found["rows_per_s"]
        peer = best_of(((results.mean(of_set, p, "cost", "fit_cpu"), p) for p in PEERS), min)
        most, least = MOST_FIT_CPU[kind], LEAST_ROWS_PER_S[kind]
        name = f"{kind}: fit on 8,000 rows, {of_set}"
        yield Goal(name, "CPU s", cpu, *peer, f"at most {most:g}", cpu <= most)
        peer = best_of(((results.mean(of_set, p, "cost", "rows_per_s"), p) for p in PEERS), max)
        name = f"{kind}: rows drawn, {of_set}"
        yield Goal(name, "rows/s", rate, *peer, f"at least {least:,}", rate >= least)


def _against(results: Results, ours: str, peer: str) -> Iterator[Goal]:
    """Rows as the class is beside the peer's; and what they are for training, in the way that is for it."""
    weighted = f"{ours}, weighted"
    figures = [
        ("C2ST", ours, ("all", "c2st"), "AUC", -1),
        ("shapes", ours, ("all", "shapes"), "similarity", 1),
        *(
            (f"AUPRC of {estimator}", method, ("downstream", estimator, "auprc"), "AUPRC", 1)
            for method in (ours, weighted)
            for estimator in ESTIMATORS
        ),
        ("training", ours, ("cost", "fit_cpu"), "CPU s", -1),
    ]
    for of_set in results.sets:
        for name, method, where, unit, sign in figures:
            a, b = results.mean(of_set, method, *where), results.mean(of_set, peer, *where)
            if not math.isnan(a + b):
                goal = f"better than {peer}" if name != "training" else f"no more than {peer}"
                met = sign * a > sign * b if name != "training" else a <= b
                yield Goal(f"{method}: {name}, {of_set}", unit, a, b, peer, goal, met)


def _downstream(results: Results) -> Iterator[Goal]:
    """Balancing for use, against nothing with a tuned threshold."""
    found = differences(results, results.sets)
    by_set = {s: differences(results, [s]) for s in results.sets}
    for estimator in ESTIMATORS:
        for method, ours in found[estimator].items():
            if not method.endswith((", utility", ", weighted")):
                continue
            gain, f1 = ours["auprc"][0], ours["f1_tuned"][0]
            others = [
                (found[estimator][b]["auprc"][0], b) for b in BASELINES if b in found[estimator]
            ]
            peer, of = best_of(others, max)
            name = (
                f"{method}: {estimator}'s AUPRC against nothing, mean of {len(results.sets)} sets"
            )
            yield Goal(name, "AUPRC", gain, peer, of, f"at least +{LEAST_GAIN}", gain >= LEAST_GAIN)
            if others:
                yield Goal(f"{name}, beside others", "AUPRC", gain, peer, of, "ahead", gain > peer)
            name = f"{method}: {estimator}'s macro-F1 against nothing, both tuned"
            yield Goal(name, "macro-F1", f1, 0.0, NOTHING, "not lower", f1 >= 0)
            worst, where = min((by_set[s][estimator][method]["auprc"][0], s) for s in results.sets)
            name = f"{method}: {estimator}'s AUPRC against nothing, worst set ({where})"
            goal = f"at least -{MOST_LOSS}"
            yield Goal(name, "AUPRC", worst, 0.0, NOTHING, goal, worst >= -MOST_LOSS)
