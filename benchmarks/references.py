"""Our metrics beside reference implementations: `python benchmarks/references.py [--quick] [--json FILE]`.

The same inputs go through the product's functions and, in an environment of its own that is made from
pinned packages where it is not there (about 1.3 GB), through `prdc`, `sdmetrics`, `scikit-learn`,
`scipy` and `torch-fidelity`: precision, recall, density and coverage of drawn points and of pictures
in the filter's own feature space; the Frechet distance that benchmarks of images use; scores of a
classifier; the classifier two-sample test over the same folds; distances to the nearest record; shapes
of columns; exact copies; Fisher's exact test. Each pair of figures has to agree within its tolerance:
rounding alone (1e-9), but for what is optimised (2e-3) or averaged in 32 bits (1e-6).

torch-fidelity's KID and Inception scores have no counterpart here, and its networks are not asked: the
features are ours. --quick: fewer records.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import _quality_cases
import numpy as np
from _goals import Goal, print_goals

from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.metrics.column_shapes import ColumnShape, summarise_shapes
from prefect_augment.evaluation.metrics.predictions import score_predictions
from prefect_augment.evaluation.neighbours import FeatureSpace, more_true
from prefect_augment.evaluation.quality.likeness import (
    C2ST_FOLDS,
    c2st_auc,
    frechet_distance,
    likeness,
)

HERE = Path(__file__).resolve().parent
PACKAGES = (
    "prdc==0.2", "sdmetrics==0.32.0", "torch==2.13.0", "scikit-learn==1.9.1", "numpy==2.4.6",
    "pandas==2.3.3",
)  # fmt: skip
# It asks for torchvision, which is not needed for what is asked of it.
WITHOUT_NEEDS = ("torch-fidelity==0.4.0",)
ROUNDING = 1e-9
# L-BFGS of ours and of scikit-learn stop at other points; an AUC over pairs moves by whole pairs.
OPTIMISED = 2e-3
# torch-fidelity averages in 32 bits.
NARROW = 1e-6


def peer_python(cache: Path) -> Path:
    """Return the interpreter of the references' environment; end with the reason where it cannot be made."""
    words = repr((PACKAGES, WITHOUT_NEEDS, sys.version_info[:2])).encode()
    home = cache / f"references-{hashlib.sha256(words).hexdigest()[:12]}"
    python = home / "bin" / "python"
    if (home / "whole").exists():
        return python
    print(f"making the references' environment in {home}", flush=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    steps = (
        [sys.executable, "-m", "venv", "--clear", str(home)],
        [*pip, *PACKAGES],
        [*pip, "--no-deps", *WITHOUT_NEEDS],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip() or "no reason given").splitlines()[-1]
            raise SystemExit(f"the references' environment cannot be made: {said}")
    (home / "whole").touch()
    return python


def inputs(quick: bool) -> dict[str, Any]:
    """What both sides are given, under a fixed seed."""
    rng = np.random.default_rng(0)
    n = 200 if quick else 800
    world = _quality_cases.world("image", "mnist10k_train", 0)
    space = world.measures.space
    some = [space.place(p.X[p.stratum == 0]).features for p in (world.validation, world.fresh)]
    y = rng.integers(0, 4, n) * (rng.random(n) < 0.5)
    proba = rng.dirichlet(np.ones(4), n) + 0.5 * np.eye(4)[y]
    table = _quality_cases.world("table", "mammography", 0)
    place = FeatureSpace.of(table.training.X, table.is_category)
    numbers = rng.normal(size=(n, 3))
    codes = rng.integers(0, 16, (n, 3))
    X = np.vstack([numbers, rng.normal(0.3, 1.2, (n, 3))])
    real = np.repeat([0, 1], n)
    return {
        "gauss_real": rng.normal(size=(n, 8)),
        "gauss_made": rng.normal(0.2, 0.9, (n, 8)),
        "pictures_real": some[0],
        "pictures_made": some[1],
        "y": y,
        "proba": proba / proba.sum(axis=1, keepdims=True),
        "c2st_X": X,
        "c2st_y": real,
        "c2st_fold": stratified_folds(real, None, C2ST_FOLDS, 0, [str(i) for i in range(2 * n)]),
        "placed_fit": place.place(table.training.X).numbers / table.training.X.shape[1],
        "placed_new": place.place(table.validation.X).numbers / table.training.X.shape[1],
        "numbers_real": numbers,
        "numbers_made": X[n:],
        "codes_real": codes,
        "codes_made": np.minimum(rng.integers(0, 20, (n, 3)), 15),
        "marked": np.array([[31, 169], [12, 88]]),
    }


def ours(given: dict[str, Any]) -> dict[str, float]:
    """The product's figures, named as the references' without the peer."""
    found: dict[str, float] = {}
    for name in ("gauss", "pictures"):
        real, made = given[f"{name}_real"], given[f"{name}_made"]
        found |= {f"{name}/{k}": v for k, v in likeness(real, made)._asdict().items()}
        found[f"{name}/frechet"] = frechet_distance(made, real)
    classes = list("abcd")
    scores = score_predictions(
        given["y"], given["proba"], classes=classes, compared=np.ones(4, dtype=bool)
    )
    for name in ("balanced_accuracy", "macro_f1", "auprc", "worst_recall", "brier"):
        found[f"scores/{name}"] = getattr(scores, name)
    n = len(given["numbers_real"])
    numbers = np.zeros(3, dtype=np.int64)
    found["c2st_auc"] = c2st_auc(
        given["c2st_X"][:n], given["c2st_X"][n:], n_levels=numbers, estimator="logistic"
    )
    table = _quality_cases.world("table", "mammography", 0)
    place = FeatureSpace.of(table.training.X, table.is_category)
    nearest = place.nearest(place.place(table.validation.X), place.place(table.training.X))
    found["nearest"] = float(nearest.mean())
    for kind, of in (("number", "numbers"), ("category", "codes")):
        columns = {
            f"{kind} {j}": ColumnShape(
                "numeric" if kind == "number" else "category",
                given[f"{of}_real"][:, j],
                given[f"{of}_made"][:, j],
            )
            for j in range(3)
        }
        found |= {f"shape/{s.column}": float(s.distance) for s in summarise_shapes(columns)}
    codes = [given[f"codes_{side}"].astype(np.float64) for side in ("real", "made")]
    levels = FeatureSpace.of(codes[0], np.ones(3, dtype=bool))
    copies = levels.nearest(levels.place(codes[1]), levels.place(codes[0])) == 0
    found["exact_copy_fraction"] = float(copies.mean())
    (a, b), (c, d) = given["marked"]
    found["more_true"] = more_true(np.arange(a + b) < a, np.arange(c + d) < c)
    return found


def tolerance(name: str) -> float:
    """How far two figures may be apart."""
    if name.startswith("c2st"):
        return OPTIMISED
    return NARROW if name.endswith("torch-fidelity") else ROUNDING


def main() -> None:
    """Compute both sides, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer records")
    parser.add_argument("--json", type=Path, help="write the goals to this file")
    parser.add_argument("--cache", type=Path, default=Path("build/benchmarks"))
    args = parser.parse_args()
    python = peer_python(args.cache.absolute())
    given = inputs(args.quick)
    with tempfile.TemporaryDirectory() as folder:
        into, out = Path(folder) / "in.npz", Path(folder) / "out.json"
        np.savez(into, **given)
        words = [str(python), str(HERE / "_reference_peers.py"), str(into), str(out)]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"the references failed:\n{done.stderr}")
        answered = json.loads(out.read_text())
    found, goals = ours(given), []
    for name, theirs in answered["figures"].items():
        metric, _, peer = name.rpartition("/")
        gap = abs(found[metric] - theirs)
        most = tolerance(name)
        named = f"{peer} {theirs:.10g}"
        goals.append(
            Goal(metric, "", found[metric], theirs, named, f"within {most:g}", gap <= most)
        )
    print(", ".join(f"{name} {at}" for name, at in answered["packages"].items()))
    print_goals(goals)
    if args.json:
        args.json.write_text(json.dumps([g.row() for g in goals], indent=1))


if __name__ == "__main__":
    main()
