"""Figures of reference implementations, for `references.py`: `python _reference_peers.py IN.npz OUT.json`.

Runs in an environment of its own, with nothing of this package. torch-fidelity cannot be imported
without torchvision, of which there is no build for CPUs beside this torch; its figures come from its
own functions, which need torch and numpy alone and are taken from its files as they stand.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from prdc import compute_prdc
from scipy.stats import fisher_exact
from sdmetrics.single_column import KSComplement, TVComplement
from sdmetrics.single_table import NewRowSynthesis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    recall_score,
    roc_auc_score,
)
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

K = 5


def functions_of(module: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Functions of a file of torch-fidelity, compiled from it without its imports."""
    spec = importlib.util.find_spec("torch_fidelity")
    path = Path(spec.submodule_search_locations[0]) / f"{module}.py"
    body = [
        node
        for node in ast.parse(path.read_text()).body
        if (isinstance(node, ast.FunctionDef) and node.name in names)
        or (isinstance(node, ast.Assign) and node.targets[0].id.startswith("KEY_"))
    ]
    scope: dict[str, Any] = {"torch": torch, "np": np, "vprint": lambda *words: None}
    exec(compile(ast.Module(body, []), str(path), "exec"), scope)
    return scope


def fidelity(real: np.ndarray, made: np.ndarray) -> dict[str, float]:
    """Precision, recall and the Frechet distance by torch-fidelity."""
    prc = functions_of(
        "metric_prc", ("calc_cdist_part", "calc_cdist_full", "calculate_precision_recall_full")
    )
    a, b = torch.from_numpy(made), torch.from_numpy(real)
    precision, recall = prc["calculate_precision_recall_full"](a, b, neighborhood=K)
    fid = functions_of("metric_fid", ("fid_features_to_statistics", "fid_statistics_to_metric"))
    of = [fid["fid_features_to_statistics"](torch.from_numpy(x)) for x in (made, real)]
    distance = fid["fid_statistics_to_metric"](*of, False)
    return {
        "precision/torch-fidelity": precision,
        "recall/torch-fidelity": recall,
        "frechet/torch-fidelity": next(iter(distance.values())),
    }


def two_sample(X: np.ndarray, y: np.ndarray, fold: np.ndarray) -> float:
    """AUC of scikit-learn's logistic regression over the given folds."""
    aucs = []
    for k in np.unique(fold):
        train, test = fold != k, fold == k
        counts = np.bincount(y[train])
        weights = train.sum() / (2 * counts[y[train]])
        scale = StandardScaler().fit(X[train], sample_weight=weights)
        model = LogisticRegression(C=1.0, max_iter=2000, tol=1e-8)
        model.fit(scale.transform(X[train]), y[train], sample_weight=weights)
        aucs.append(roc_auc_score(y[test], model.predict_proba(scale.transform(X[test]))[:, 1]))
    return float(np.mean(aucs))


def main() -> None:
    """Read the inputs, write the figures."""
    given = np.load(sys.argv[1], allow_pickle=False)
    found: dict[str, float] = {}
    for name in ("gauss", "pictures"):
        real, made = given[f"{name}_real"], given[f"{name}_made"]
        found |= {f"{name}/{k}/prdc": v for k, v in compute_prdc(real, made, nearest_k=K).items()}
        found |= {f"{name}/{k}": v for k, v in fidelity(real, made).items()}
    y, proba = given["y"], given["proba"]
    said = proba.argmax(axis=1)
    largest = int(np.bincount(y).argmax())
    rarer = [k for k in np.unique(y) if k != largest]
    found |= {
        "scores/balanced_accuracy/sklearn": balanced_accuracy_score(y, said),
        "scores/macro_f1/sklearn": f1_score(y, said, average="macro"),
        "scores/auprc/sklearn": np.mean(
            [average_precision_score(y == k, proba[:, k]) for k in rarer]
        ),
        "scores/worst_recall/sklearn": recall_score(y, said, average=None).min(),
        "scores/brier/sklearn": brier_score_loss(y, proba, scale_by_half=True),
    }
    found["c2st_auc/sklearn"] = two_sample(given["c2st_X"], given["c2st_y"], given["c2st_fold"])
    near = NearestNeighbors(n_neighbors=1, metric="manhattan").fit(given["placed_fit"])
    found["nearest/sklearn"] = float(near.kneighbors(given["placed_new"])[0].mean())
    columns = {side: given[f"numbers_{side}"] for side in ("real", "made")}
    codes = {side: given[f"codes_{side}"] for side in ("real", "made")}
    for j in range(columns["real"].shape[1]):
        pair = [pd.Series(columns[side][:, j]) for side in ("real", "made")]
        found[f"shape/number {j}/sdmetrics"] = 1.0 - KSComplement.compute(*pair)
    for j in range(codes["real"].shape[1]):
        pair = [pd.Series(codes[side][:, j].astype(str)) for side in ("real", "made")]
        found[f"shape/category {j}/sdmetrics"] = 1.0 - TVComplement.compute(*pair)
    frames = {s: pd.DataFrame(codes[s].astype(str)).add_prefix("c") for s in ("real", "made")}
    metadata = {"columns": {c: {"sdtype": "categorical"} for c in frames["real"]}}
    found["exact_copy_fraction/sdmetrics"] = 1.0 - NewRowSynthesis.compute(
        frames["real"], frames["made"], metadata
    )
    table = given["marked"]
    found["more_true/scipy"] = float(fisher_exact(table, alternative="greater").pvalue)
    packages = ("prdc", "sdmetrics", "scikit-learn", "scipy", "torch", "torch-fidelity")
    figures = {name: float(value) for name, value in found.items()}
    Path(sys.argv[2]).write_text(
        json.dumps({"figures": figures, "packages": {p: version(p) for p in packages}})
    )


if __name__ == "__main__":
    main()
