"""Values of single people in synthetic rows: `python benchmarks/sharing.py [--models trees,flow] [--steps N]`.

Six tables (`_table_data.py`, seed 0) and every engine of tables: as many rows as there are training rows
are drawn of each class. Counted are the training rows' numbers that one row alone has, and the levels of
fewer than five rows, that come out again; the share of training rows with such a value in the synthetic
table (members), and of test rows with a value that one test row and no training row has (others). Besides,
whether they are as good as before: balanced accuracy on test rows of boosting that has seen the synthetic
rows alone, and the C2ST AUC against the training rows (0.5 is perfect); and the AUC of telling training rows
from test rows by the nearest synthetic one, with its 95 % interval.

`mst` is differentially private at each of `--epsilon`; the bounds of its numbers are those of all rows, in the
place of public ones.

Networks train `--steps` steps (300): the question is what comes out, not how good it is. About five CPU
minutes; trees alone take ten seconds.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import _table_data
import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.preprocessing import OrdinalEncoder

from prefect_augment import GenerativeSampler
from prefect_augment.encoding.rare_values import MIN_LEVEL_RECORDS
from prefect_augment.evaluation.neighbours import FeatureSpace
from prefect_augment.evaluation.privacy.distances import Part, SideNames, privacy_side

MODELS = ("trees", "mst", "flow", "vae", "gan", "autoencoder")
ROUNDS = 60  # of boosting


def is_number(column: pd.Series) -> bool:
    """Whether a column holds numbers."""
    return bool(pd.api.types.is_numeric_dtype(column)) and column.dtype != bool


def came_out(X: pd.DataFrame, test: pd.DataFrame, new: pd.DataFrame) -> dict[str, Any]:
    """Return how many rare values came out, and whose they are."""
    n, out = {"numbers": 0, "levels": 0}, {"numbers": 0, "levels": 0}
    members, others = np.zeros(len(X), bool), np.zeros(len(test), bool)
    for name in X:
        counts, drawn = X[name].value_counts(), set(new[name].dropna())
        what, least = ("numbers", 2) if is_number(X[name]) else ("levels", MIN_LEVEL_RECORDS)
        rare = set(counts.index[counts < least])
        n[what] += len(rare)
        out[what] += len(rare & drawn)
        members |= X[name].isin(rare & drawn).to_numpy()
        elsewhere = test[name].value_counts()
        theirs = set(elsewhere.index[elsewhere < least]) - set(counts.index)
        others |= test[name].isin(theirs & drawn).to_numpy()
    shown = {what: f"{out[what]}/{n[what]}" for what in n}
    return shown | {"members": float(members.mean()), "others": float(others.mean())}


def quality(split: _table_data.Split, new: pd.DataFrame, y: pd.Series) -> dict[str, float]:
    """Return balanced accuracy on test rows, and the C2ST AUC."""
    X, test = (part.drop(columns=split.label) for part in (split.training, split.test))
    texts = [name for name in X if not is_number(X[name])]
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    if texts:
        encoder.fit(pd.concat([X, test])[texts].astype(str))

    def matrix(frame: pd.DataFrame) -> np.ndarray:
        frame = frame[X.columns].copy()
        if texts:
            frame[texts] = encoder.transform(frame[texts].astype(str))
        return frame.to_numpy(float)

    boosting = HistGradientBoostingClassifier(random_state=0, max_iter=ROUNDS)
    accuracy = balanced_accuracy_score(
        split.test[split.label], boosting.fit(matrix(new), y).predict(matrix(test))
    )
    both, is_new = np.concatenate([matrix(X), matrix(new)]), np.repeat([0, 1], [len(X), len(new)])
    half = np.random.default_rng(0).random(len(both)) < 0.5
    boosting.fit(both[half], is_new[half])
    auc = roc_auc_score(is_new[~half], boosting.predict_proba(both[~half])[:, 1])
    return {"balanced_accuracy": float(accuracy), "c2st_auc": float(auc)}


def attacked(split: _table_data.Split, new: pd.DataFrame, y: pd.Series) -> str:
    """Return the AUC of the attack by distance, with its interval."""
    X, test = (part.drop(columns=split.label) for part in (split.training, split.test))
    is_text = np.array([not is_number(X[name]) for name in X])
    both = pd.concat([X, test, new[X.columns]])
    for name in X.columns[is_text]:
        both[name] = pd.factorize(both[name].astype(str))[0]
    values = both.to_numpy(float)
    parts = np.split(values, np.cumsum([len(X), len(test)]))
    rng = np.random.default_rng(0)
    labels = [
        part[split.label].map(split.classes.index).to_numpy()
        for part in (split.training, split.test)
    ]
    labels.append(np.array([split.classes.index(name) for name in y]))
    orders = [rng.permutation(len(part)) for part in parts]
    side = privacy_side(
        "drawn",
        *(Part(X[rows], k[rows]) for X, k, rows in zip(parts, labels, orders, strict=True)),
        classes=split.classes,
        space=FeatureSpace.of(values[: len(X) + len(test)], is_text),
        max_real=2000,
        max_synthetic=20_000,
        names=SideNames("training rows", "test rows"),
    )
    assert side.attack is not None
    auc = side.attack.auc
    return f"{auc.estimate:.3f} ({auc.low:.3f} to {auc.high:.3f})"


def model_params(split: _table_data.Split, model: str, epsilon: float) -> dict[str, Any]:
    """Return what an engine needs beside its defaults."""
    if model != "mst":
        return {}
    every = pd.concat([split.training, split.validation, split.test]).drop(columns=split.label)
    bounds = [
        {"column": name, "low": float(every[name].min()), "high": float(every[name].max())}
        for name in every
        if is_number(every[name]) and every[name].nunique() > 1
    ]
    return {"epsilon": epsilon, "bounds": bounds}


def measure(name: str, model: str, steps: int, epsilon: float) -> dict[str, Any]:
    """Return the figures of one table under one engine."""
    split = _table_data.split(name, 0)
    X, y = split.training.drop(columns=split.label), split.training[split.label]
    in_steps = model not in ("trees", "mst")
    budget = {"device": "cpu", **({"steps": steps} if in_steps else {})}
    params = model_params(split, model, epsilon)
    started = time.process_time()
    sampler = GenerativeSampler(
        model, purpose="faithful", random_state=0, budget=budget, model_params=params
    ).fit(X, y)
    new, labels = sampler.sample({c: int(n) for c, n in y.value_counts().items()})
    seconds = time.process_time() - started
    test = split.test.drop(columns=split.label)
    figures = came_out(X, test, new) | quality(split, new, labels)
    figures["membership_auc"] = attacked(split, new, labels)
    shown = f"{model} {epsilon:g}" if model == "mst" else model
    return {"table": name, "model": shown, **figures, "cpu_seconds": seconds}


def main() -> None:
    """Print the table of all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--tables", default=",".join(_table_data.LABELS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--epsilon", default="1", help="of mst; several with commas")
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for model in wanted.models.split(","):
        for name in wanted.tables.split(","):
            for epsilon in map(float, wanted.epsilon.split(",") if model == "mst" else ["0"]):
                row = measure(name, model, wanted.steps, epsilon)
                rows.append(row)
                cells = (f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values())
                print(*(cell.ljust(14) for cell in cells), flush=True)
    if wanted.json:
        wanted.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
