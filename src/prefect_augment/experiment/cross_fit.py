"""Synthetic records inside one part of the records, for the arms: fit, draw, gate, as the flow does.

A fold's arm must not train on records that a model of the whole training part has made, since that
model has seen the fold. So each fold goes the flow's own way, from fitting to the gate, within its
training records: a fifth of them plays val. (Tables only: an image model takes too long for it.)
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.encoding.arrays import Labelled
from prefect_augment.evaluation.metrics.folds import stratified_folds
from prefect_augment.experiment.evaluator import Question, Synthetic, best_first, groups_of
from prefect_augment.genmodels.base import MIN_SAMPLED_RECORDS, TableData
from prefect_augment.params import Budget, Gate, ModelParams
from prefect_augment.plan.strategies import candidates_wanted
from prefect_augment.registry import load_model_class
from prefect_augment.storage.keys import fold_ids
from prefect_augment.storage.staging import stage_key
from prefect_augment.synthesis.draw import candidate_seeds
from prefect_augment.synthesis.effort import effort
from prefect_augment.synthesis.model_store import table_spec
from prefect_augment.synthesis.rejection import draw_kept
from prefect_augment.synthesis.soft_labels import stand
from prefect_augment.synthesis.subsample import sample_rows
from prefect_augment.synthesis.train import fit_model

if TYPE_CHECKING:
    from prefect_augment.experiment.table_evaluator import TableBench

__all__ = ["draw_synthetic"]

VAL_FOLDS = 5  # one of them plays val
# Pilots, the full scores and arms that mix ask for the same draws one after the other.
MAX_RECENT = 8
_recent: OrderedDict[str, Synthetic] = OrderedDict()
_recent_lock = Lock()


def draw_synthetic(
    bench: TableBench,
    rows: NDArray[np.int64],
    *,
    model: ModelParams,
    gate: Gate,
    seed: int,
    budget: Budget | None = None,
) -> Synthetic:
    """Fit the model on some records, draw, and return what passes the gate.

    Parameters
    ----------
    bench : TableBench
        Fit and val records, and the plan: synthetic records wanted of the whole training part.
    rows : ndarray of int64, shape (n_rows,)
        Those that may be used; what is wanted is scaled to them.
    seed : int
        Of the model, the draws and the gate's folds.
    budget : Budget, optional
        For models that are trained in steps.

    Returns
    -------
    Synthetic
        In matrix form.
    """
    key = _key(bench, rows, model, gate, seed, budget)
    with _recent_lock:
        if key in _recent:
            _recent.move_to_end(key)
            return _recent[key]
    found = _draw_synthetic(bench, rows, model=model, gate=gate, seed=seed, budget=budget)
    with _recent_lock:
        _recent[key] = found
        while len(_recent) > MAX_RECENT:
            _recent.popitem(last=False)
    return found


def _key(
    bench: TableBench,
    rows: NDArray[np.int64],
    model: ModelParams,
    gate: Gate,
    seed: int,
    budget: Budget | None,
) -> str:
    """Name what the draws depend on."""
    keys = "".join(bench.records.keys[rows].tolist()).encode()
    what = [bench.facts.key, bench.facts.digest, list(bench.plan.classes), bench.plan.soft_labels]
    rows_digest = hashlib.sha256(keys).hexdigest()
    asked = [model, gate, effort(budget) if budget else [], rows_digest]
    return stage_key("draws", algorithm_version=0, params=[*what, *asked], seed=seed)


def _draw_synthetic(
    bench: TableBench,
    rows: NDArray[np.int64],
    *,
    model: ModelParams,
    gate: Gate,
    seed: int,
    budget: Budget | None,
) -> Synthetic:
    data = bench.records
    fold = stratified_folds(
        data.strata[rows],
        groups=groups_of(data, rows),
        n_folds=VAL_FOLDS,
        seed=seed,
        keys=data.keys[rows],
    )
    fit, val = rows[fold != 0], rows[fold == 0]
    counts = np.bincount(data.strata[fit], minlength=len(data.strata_names))
    most = getattr(load_model_class(model), "max_fit_records", 0) or len(fit)
    folded = fold_ids(pa.array(data.keys[fit], pa.string()))
    learnt = fit[sample_rows(data.strata[fit], folded, most=most, seed=seed)]
    trained = fit_model(
        TableData(data.X[learnt], data.strata[learnt]),
        table_spec(data.encoder, data.strata[learnt], data.strata_names),
        model,
        seed,
        budget=budget,
    )
    share = len(rows) / len(data.y)
    drawn, codes, ordinals = [], [], []
    taken = bench.rules.taken()
    can = [
        name for name, n in zip(data.strata_names, counts, strict=True) if n >= MIN_SAMPLED_RECORDS
    ]
    for name, n in candidates_wanted(bench.plan, gate, can).items():
        k = data.strata_names.index(name)
        kept = draw_kept(
            trained,
            data.encoder,
            bench.rules,
            stratum=name,
            start=0,
            n=round(n * share),
            least=0,  # a fold is content with fewer
            seeds_of=partial(candidate_seeds, seed, name),
            taken=taken,
        )
        drawn.append(kept.X)
        codes.append(np.full(len(kept.X), k, dtype=np.int64))
        ordinals.append(kept.ordinals)
    if not drawn:
        return Synthetic(np.empty((0, data.X.shape[1])), np.empty(0, dtype=np.int64))
    candidates = Labelled(np.concatenate(drawn), np.concatenate(codes))
    outcome = bench.gate(
        Question(fit, val, candidates, np.concatenate(ordinals), seed=seed, share=share)
    )
    order = best_first(outcome, candidates.stratum, np.concatenate(ordinals), gate)
    X, strata = candidates.X[order], candidates.stratum[order]
    if not bench.plan.soft_labels:
        return Synthetic(X, strata)
    soft = stand(data, bench.plan, fit, X, strata, seed=seed)
    return Synthetic(X[soft.rows], soft.strata, soft.shares)
