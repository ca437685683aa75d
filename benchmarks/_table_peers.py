"""CTGAN and TVAE of the `ctgan` package, at their own defaults, for `tables.py`.

Runs in the peers' environment: `python _table_peers.py TASK.json`. The task names a folder with
`training.parquet`, the label, the method, the seed and the rows wanted per class; `all.parquet` (drawn as
the model likes), `balance.parquet` (what the smaller classes lack) and `drawn.json` (what it cost)
are written beside it. Numbers that are null become the column's median, since neither takes them;
a null category is a level of its own.

CTGAN is asked for a class by its condition and what comes back of other classes is thrown away;
TVAE has no conditions, so that all of a class are found among rows of any. Both are stopped after so
many rounds, with what there is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from _table_cost import cost
from ctgan import CTGAN, TVAE

PEERS = {"CTGAN": CTGAN, "TVAE": TVAE}
NULL = "(null)"
MOST_ROUNDS = 40
LEAST_DRAWN = 1000  # rows of a round


def impute(frame: pd.DataFrame) -> pd.DataFrame:
    """Return rows without nulls."""
    filled = {}
    for name, column in frame.items():
        if pd.api.types.is_numeric_dtype(column):
            filled[name] = column.fillna(column.median())
        else:
            filled[name] = column.astype(object).where(column.notna(), NULL).astype(str)
    return pd.DataFrame(filled)


def balanced(model: Any, method: str, label: str, lacking: dict[str, int]) -> pd.DataFrame:
    """Return what each class lacks, as far as the model makes it."""
    kept: dict[str, list[pd.DataFrame]] = {name: [] for name in lacking}
    for name, n in lacking.items():
        for _ in range(MOST_ROUNDS):
            left = n - sum(map(len, kept[name]))
            if left <= 0:
                break
            asked = max(left, LEAST_DRAWN)
            if method == "CTGAN":
                drawn = model.sample(asked, condition_column=label, condition_value=name)
            else:
                drawn = model.sample(asked)
            kept[name].append(drawn[drawn[label] == name].head(left))
    return pd.concat([part for parts in kept.values() for part in parts], ignore_index=True)


def main() -> None:
    """Fit, draw, write."""
    task = json.loads(Path(sys.argv[1]).read_text())
    folder, label, method = Path(task["folder"]), task["label"], task["method"]
    torch.set_num_threads(1)
    training = impute(pd.read_parquet(folder / "training.parquet"))
    discrete = [c for c in training.columns if not pd.api.types.is_numeric_dtype(training[c])]
    options = {"epochs": task["epochs"]} if "epochs" in task else {}
    model = PEERS[method](enable_gpu=False, **options)
    model.set_random_state(task["seed"])
    with cost() as fitting:
        model.fit(training, discrete)
    with cost() as drawing:
        free = model.sample(len(training))
    with cost() as balancing:
        balance = balanced(model, method, label, task["lacking"])
    for name, drawn in (("all", free), ("balance", balance)):
        drawn.replace(NULL, None).to_parquet(folder / f"{name}.parquet")
    figures = {
        "fit_cpu": fitting["cpu"],
        "peak_mib": fitting["mib"] + drawing["mib"],
        "rows_per_s": len(free) / drawing["cpu"],
        "balance_rows_per_s": len(balance) / balancing["cpu"],
        "n_balance": len(balance),
    }
    (folder / "drawn.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
