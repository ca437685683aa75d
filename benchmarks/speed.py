"""CPU seconds of a default comparison, in all and per fit, beside a script written by hand.

`python benchmarks/speed.py [--quick] [--sets …] [--json FILE]`

Ours is plan, model and comparison of a default run, without imports, Prefect and the report. The script is what
somebody would write with scikit-learn and imbalanced-learn: five folds, our boosting's settings and logistic
regression, eight treatments (as is, class weights, random oversampling and SMOTE by three amounts each), balanced
accuracy: 80 fits.
Each is a process of its own with one thread. The seconds until the first comparison are by the clock, from its start.
Other processes make CPU seconds longer, so the best of `--repeats` counts.

Of images, `rebalance --quick` as somebody types it, over 4,000 records: CPU and wall seconds of the whole command,
which promises a first answer in about two minutes.

The data are read from ../shared/data beside the repository. --quick: german_credit alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _goals import Goal, print_goals

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "tabular"
IMAGES, N_IMAGES = ("fashion_lt", "cifar10lt"), 4_000
MOST_QUICK = 120.0  # seconds of `rebalance --quick`
# Label and most CPU seconds.
SETS = {
    "german_credit": ("credit_risk", 25.0),
    "mammography": ("calcification", 40.0),
    "adult_income": ("income", 150.0),
}
MOST_WAIT = 15.0  # seconds until the first comparison
AMOUNTS = (0.25, 0.5, 1.0)


def ours(path: str, label: str, started: float) -> dict[str, float]:
    """Compare a set by default; every classifier of the comparison and of its ensembles counts as a fit."""
    from prefect_augment.evaluation.classifiers import base, soft_label_ensemble, tree_ensembles
    from prefect_augment.flows._compare import compare, compare_first, synthesize
    from prefect_augment.flows.rebalance import _plan
    from prefect_augment.params import Destination, RunParams, Source

    n_fits = 0

    def counted(fit: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal n_fits
            n_fits += 1
            return fit(*args, **kwargs)

        return call

    base.fit_on_matrix = tree_ensembles.fit_on_matrix = counted(base.fit_on_matrix)  # type: ignore[attr-defined]
    forest = soft_label_ensemble._Forest
    forest.of = counted(forest.of)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        before = time.process_time()
        to = Destination(uri=f"{folder}/out")
        experiment = _plan(Source(uri=path, label=label), to, RunParams())
        first = compare_first(experiment)
        waited = time.time() - started
        compare(synthesize(experiment, workers=1), first, workers=1)
        return {"cpu": time.process_time() - before, "fits": n_fits, "waited": waited}


def by_hand(path: str, label: str) -> dict[str, float]:
    """What a script without this package does."""
    import numpy as np
    import pandas as pd
    from imblearn.over_sampling import SMOTE, SMOTENC, RandomOverSampler
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

    frame = pd.read_parquet(path)
    before = time.process_time()
    y = pd.factorize(frame.pop(label))[0]
    words = [c for c in frame if not pd.api.types.is_numeric_dtype(frame[c])]
    frame[words] = (
        OrdinalEncoder().fit_transform(frame[words].astype(str)) if words else frame[words]
    )
    X, is_word = frame.to_numpy(float), np.array([c in words for c in frame])
    X = np.where(np.isnan(X), np.nanmedian(X, axis=0), X)
    smote = SMOTENC if words else SMOTE
    given = {"categorical_features": np.flatnonzero(is_word).tolist()} if words else {}
    counts = np.bincount(y)
    ways: list[tuple[str, float]] = [("", 0.0), ("weights", 0.0)]
    ways += [(way, amount) for way in ("copies", "smote") for amount in AMOUNTS]
    scores, n_fits = [], 0
    for way, amount in ways:
        for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(X, y):
            of_fold = np.bincount(y[train])
            target = {
                k: int(n * (counts.max() / counts[k]) ** amount) for k, n in enumerate(of_fold)
            }
            A, b = X[train], y[train]
            if way == "copies":
                A, b = RandomOverSampler(sampling_strategy=target, random_state=0).fit_resample(
                    A, b
                )
            if way == "smote":
                sampler = smote(sampling_strategy=target, random_state=0, **given)
                A, b = sampler.fit_resample(A, b)
            weight = "balanced" if way == "weights" else None
            boosting = HistGradientBoostingClassifier(
                max_iter=45, max_leaf_nodes=10, learning_rate=0.2, class_weight=weight,
                categorical_features=is_word if words else None, early_stopping=False,
            )  # fmt: skip
            design = make_column_transformer(
                (OneHotEncoder(handle_unknown="ignore"), is_word), (StandardScaler(), ~is_word)
            )
            logistic = LogisticRegression(max_iter=1000, class_weight=weight)
            for model in (boosting, make_pipeline(design, logistic)):
                fitted, n_fits = model.fit(A, b), n_fits + 1
                scores.append(balanced_accuracy_score(y[test], fitted.predict(X[test])))
    return {"cpu": time.process_time() - before, "fits": n_fits, "mean": float(np.mean(scores))}


def quick_images(name: str) -> tuple[float, float]:
    """CPU and wall seconds of `rebalance --quick` over a part of a set of images, the same in every run."""
    import numpy as np
    import pyarrow.parquet as pq

    table = pq.read_table(DATA.parent / "images" / f"{name}.parquet")
    rows = np.sort(np.random.default_rng(0).permutation(len(table))[:N_IMAGES])
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(table.take(rows), f"{folder}/in.parquet")
        command = ["rebalance", f"{folder}/in.parquet", f"{folder}/out", "--label", "label"]
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "prefect_augment.cli.app", *command, "--quick", "--json"],
            check=True,
            capture_output=True,
        )
        after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - started
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{name}, rebalance --quick: {cpu:.1f} CPU s, {wall:.1f} s by the clock", flush=True)
    return cpu, wall


def measure(kind: str, name: str, repeats: int) -> dict[str, float]:
    """Run one of the two in processes of its own; the one with the least CPU time counts."""
    path, label = str(DATA / f"{name}.parquet"), SETS[name][0]
    found = []
    for _ in range(repeats):
        started = time.time()
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, "--child", kind, path, label, str(started)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PREFECT_LOGGING_LEVEL": "ERROR"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(
                f"{kind} on {name} ended with {done.returncode}:\n{done.stderr[-3000:]}"
            )
        found.append(json.loads(done.stdout.strip().splitlines()[-1]))
        one = found[-1]
        print(f"{name}, {kind}: {one['cpu']:.1f} CPU s, {one['fits']} fits", flush=True)
    return min(found, key=lambda one: float(one["cpu"]))  # type: ignore[no-any-return]


def main() -> None:
    """Measure the sets asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="german_credit alone")
    every = [*SETS, *IMAGES]
    parser.add_argument("--sets", nargs="+", choices=every, default=every)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, path, label, started = args.child
        done = ours(path, label, float(started)) if kind == "ours" else by_hand(path, label)
        print(json.dumps(done))
        return
    if not DATA.is_dir():
        raise SystemExit(
            f"no data at {DATA}; this benchmark reads the datasets that lie beside the repository."
        )
    goals: list[Goal] = []
    for name in args.sets[:1] if args.quick else args.sets:
        if name in IMAGES:
            both = zip(("CPU time", "wall time"), quick_images(name), strict=True)
            goals += [
                Goal(f"{name}: {what} of rebalance --quick", "s", seconds, float("nan"), "",
                     f"<= {MOST_QUICK:g}", seconds <= MOST_QUICK)
                for what, seconds in both
            ]  # fmt: skip
            continue
        mine, script = (measure(kind, name, args.repeats) for kind in ("ours", "by hand"))
        most, peer = SETS[name][1], script["cpu"] / script["fits"]
        each = mine["cpu"] / mine["fits"]
        goals += [
            Goal(f"{name}: CPU time", "s", mine["cpu"], script["cpu"], f"script of {script['fits']} fits",
                 f"<= {most:g}", mine["cpu"] <= most),
            Goal(f"{name}: CPU time per fit", "s", each, peer, "script", "<= script", each <= peer),
            Goal(f"{name}: until the first comparison", "s", mine["waited"], float("nan"), "",
                 f"<= {MOST_WAIT:g}", mine["waited"] <= MOST_WAIT),
        ]  # fmt: skip
    print_goals(goals)
    if args.json:
        args.json.write_text(json.dumps([goal.row() for goal in goals], indent=1))


if __name__ == "__main__":
    main()
