"""Rows of our own models, of the SMOTE family and of random oversampling, for `tables.py`.

`python _table_draw.py TASK.json` writes what `_table_peers.py` writes for the peers: `balance.parquet`
(what the smaller classes lack; of weighted rows all that were drawn, and `weights.npy`, those of the
training rows first), `all.parquet` (as many rows of each class as there are training rows) where
the method can make all classes, and `drawn.json`. The models are used as a user does, by
:class:`prefect_augment.GenerativeSampler`, at their defaults.

A task of `rows` instead of a split's folder measures speed alone: fit seconds on so many rows and rows
drawn per second.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from _table_cost import cost
from imblearn.over_sampling import SMOTE, SMOTEN, SMOTENC, RandomOverSampler

from prefect_augment import GenerativeSampler
from prefect_augment.registry import load_model_class

UTILITY, WEIGHTED, NOT_NEAR = ", utility", ", weighted", ", not near"
MAX_NEAR = 0.05  # as many rows near to a real one as there are among real rows
SPEED_ROWS = 20_000
NULL = "(null)"
NEIGHBOURS = 5
# The models' own limits end their training, not the load of the machine: what is drawn is the same again.
BUDGET = {"minutes": 600.0, "device": "cpu"}


def oversampler(method: str, X: pd.DataFrame, y: pd.Series, seed: int) -> Any:
    """Return random oversampling, or the member of the SMOTE family that takes these columns."""
    if method == "oversampling":
        return RandomOverSampler(random_state=seed)
    texts = [c for c in X.columns if not pd.api.types.is_numeric_dtype(X[c])]
    options = {
        "k_neighbors": min(NEIGHBOURS, int(y.value_counts().min()) - 1),
        "random_state": seed,
    }
    if not texts:
        return SMOTE(**options)
    if len(texts) == X.shape[1]:
        return SMOTEN(**options)
    return SMOTENC(texts, **options)


def imputed(X: pd.DataFrame) -> pd.DataFrame:
    """Return rows without nulls: the median of numbers, a level of its own for categories."""
    return pd.DataFrame(
        {
            name: column.fillna(column.median() if pd.api.types.is_numeric_dtype(column) else NULL)
            for name, column in X.items()
        }
    )


def draw(task: dict[str, Any], folder: Path) -> dict[str, float]:
    """Fit, draw and write; returns what it cost."""
    label, method, seed = task["label"], task["method"], task["seed"]
    training = pd.read_parquet(folder / "training.parquet")
    X, y = training.drop(columns=label), training[label]
    if method.endswith(WEIGHTED):
        return draw_weighted(method.removesuffix(WEIGHTED), X, y, seed, folder)
    n_balance = sum(task["lacking"].values())
    if method.endswith(UTILITY) or method in ("oversampling", "SMOTE"):
        if method.endswith(UTILITY):
            kind = method.removesuffix(UTILITY)
            load_model_class(kind)  # imports are not what is measured
            sampler = GenerativeSampler(kind, purpose="utility", random_state=seed, budget=BUDGET)
        else:
            sampler = oversampler(method, X, y, seed)
            X = imputed(X) if method == "SMOTE" else X
        with cost() as used:
            X_out, y_out = sampler.fit_resample(X, y)
        balance = X_out.iloc[len(X) :].assign(**{label: y_out.iloc[len(X) :]})
        balance = balance.replace(NULL, None)
        figures = {"fit_cpu": used["cpu"], "peak_mib": used["mib"]}
        if method in ("oversampling", "SMOTE"):
            figures["rows_per_s"] = len(balance) / used["cpu"]
    else:
        kind = method.removesuffix(NOT_NEAR)
        load_model_class(kind)
        sampler = GenerativeSampler(
            kind,
            purpose="faithful",
            random_state=seed,
            budget=BUDGET,
        )
        if method.endswith(NOT_NEAR):
            sampler.set_params(max_near=MAX_NEAR)
        with cost() as fitting:
            sampler.fit(X, y)
        counts = y.value_counts().to_dict()
        with cost() as drawing:
            write(sampler.sample(counts, random_state=seed), label, folder / "all.parquet")
        drawn, drawn_y = sampler.sample(task["lacking"], random_state=seed + 1)
        balance = drawn.assign(**{label: drawn_y})
        figures = {
            "fit_cpu": fitting["cpu"],
            "peak_mib": fitting["mib"] + drawing["mib"],
            "rows_per_s": rows_per_second(sampler, counts),
        }
    if len(balance) != n_balance:
        raise SystemExit(f"{method}: expected {n_balance} rows, found {len(balance)}")
    balance.to_parquet(folder / "balance.parquet")
    return figures | {"n_balance": len(balance)}


def draw_weighted(
    kind: str, X: pd.DataFrame, y: pd.Series, seed: int, folder: Path
) -> dict[str, float]:
    """Draw rows with soft labels, and write them with all weights; returns what it cost."""
    load_model_class(kind)
    sampler = GenerativeSampler(kind, random_state=seed, budget=BUDGET)
    with cost() as used:
        X_out, y_out, weights = sampler.fit_weighted(X, y)
    drawn = X_out.iloc[len(X) :].assign(**{y.name: y_out.iloc[len(X) :]})
    drawn.to_parquet(folder / "balance.parquet")
    np.save(folder / "weights.npy", weights)
    return {"fit_cpu": used["cpu"], "peak_mib": used["mib"], "n_balance": len(drawn)}


def write(drawn: tuple[pd.DataFrame, Any], label: str, path: Path) -> None:
    """Write rows with their label."""
    drawn[0].assign(**{label: drawn[1]}).to_parquet(path)


def rows_per_second(sampler: GenerativeSampler, counts: dict[str, int]) -> float:
    """Return rows drawn per CPU second, classes as in the training rows."""
    total = sum(counts.values())
    asked = {name: -(-n * SPEED_ROWS // total) for name, n in counts.items()}
    with cost() as used:
        sampler.sample(asked, random_state=7)
    return sum(asked.values()) / used["cpu"]


def speed(task: dict[str, Any], folder: Path) -> dict[str, float]:
    """Return fit seconds on so many rows, and rows drawn per second."""
    frame = pd.read_parquet(folder / "training.parquet").head(task["rows"])
    load_model_class(task["method"])
    X, y = frame.drop(columns=task["label"]), frame[task["label"]]
    sampler = GenerativeSampler(task["method"], purpose="faithful", random_state=0, budget=BUDGET)
    with cost() as fitting:
        sampler.fit(X, y)
    counts = y.value_counts().to_dict()
    sampler.sample({name: min(n, 100) for name, n in counts.items()})  # what is loaded only once
    return {"fit_cpu": fitting["cpu"], "rows_per_s": rows_per_second(sampler, counts)}


def main() -> None:
    """Do what the task says, and name the modules of ours that took part."""
    task = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(task["folder"])
    np.seterr(all="warn")
    figures = speed(task, folder) if "rows" in task else draw(task, folder)
    (folder / "drawn.json").write_text(json.dumps(figures | {"modules": modules_of_ours()}))


def modules_of_ours() -> list[str]:
    """Return the files of the package that this process has loaded, and this one."""
    loaded = [
        name.split(".")[1:]
        for name, module in sys.modules.items()
        if name.startswith("prefect_augment.") and not hasattr(module, "__path__")
    ]
    return ["_table_draw.py", *sorted("/" + "/".join(parts) + ".py" for parts in loaded)]


if __name__ == "__main__":
    main()
