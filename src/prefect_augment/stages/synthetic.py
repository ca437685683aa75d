"""Synthetic records inside one part of the records, for the arms: fit, draw, gate, as the flow does.

A fold's arm must not train on records that a model of the whole training part has made, since that
model has seen the fold. So each fold goes the flow's own way, from fitting to the gate, within its
training records: a fifth of them plays val.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from prefect_augment.datatypes import BalancePlan
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.gates import GateOutcome, Labelled, gate_candidates
from prefect_augment.genmodels.base import MIN_SAMPLED_RECORDS
from prefect_augment.params import Gate, ModelParams
from prefect_augment.stages.arms import candidates_wanted
from prefect_augment.stages.matrix import Matrix
from prefect_augment.stages.sample import candidate_seeds
from prefect_augment.stages.train import fit_table_model, table_spec

__all__ = ["Synthetic", "draw_synthetic", "gate_matrix"]

Synthetic = tuple[NDArray[np.float64], NDArray[np.int64]]  # records and their strata, best first
VAL_FOLDS = 5  # one of them plays val


def draw_synthetic(
    data: Matrix,
    rows: NDArray[np.int64],
    *,
    plan: BalancePlan,
    model: ModelParams,
    gate: Gate,
    seed: int,
) -> Synthetic:
    """Fit the model on some records, draw, and return what passes the gate.

    Parameters
    ----------
    data : Matrix
        Fit and val records.
    rows : ndarray of int64, shape (n_rows,)
        Those that may be used.
    plan : BalancePlan
        Synthetic records wanted of the whole training part; scaled to ``rows``.
    seed : int
        Of the model, the draws and the gate's folds.

    Returns
    -------
    tuple of ndarray
        Records in matrix form, best first within a stratum, and their stratum codes.
    """
    fold = stratified_folds(
        data.strata[rows],
        groups=None if data.groups is None else data.groups[rows],
        n_folds=VAL_FOLDS,
        seed=seed,
        keys=data.keys[rows],
    )
    fit, val = rows[fold != 0], rows[fold == 0]
    counts = np.bincount(data.strata[fit], minlength=len(data.strata_names))
    trained = fit_table_model(
        data.X[fit],
        data.strata[fit],
        table_spec(data.encoder, data.strata[fit], data.strata_names),
        model,
        seed,
    )
    share = len(rows) / len(data.y)
    drawn, codes, ordinals = [], [], []
    can = [
        name for name, n in zip(data.strata_names, counts, strict=True) if n >= MIN_SAMPLED_RECORDS
    ]
    for name, n in candidates_wanted(plan, gate, can).items():
        k = data.strata_names.index(name)
        n_drawn = round(n * share)
        conditions = np.full(n_drawn, k, dtype=np.int64)
        seeds = candidate_seeds(seed, name, 0, n_drawn)
        drawn.append(trained.sample(conditions, seeds=seeds))
        codes.append(conditions)
        ordinals.append(np.arange(n_drawn))
    if not drawn:
        return np.empty((0, data.X.shape[1])), np.empty(0, dtype=np.int64)
    candidates = Labelled(np.concatenate(drawn), np.concatenate(codes))
    outcome = gate_matrix(
        data,
        fit,
        val,
        candidates,
        np.concatenate(ordinals),
        plan=plan,
        gate=gate,
        seed=seed,
        share=share,
    )
    order = best_first(outcome, candidates.stratum, np.concatenate(ordinals), gate)
    return candidates.X[order], candidates.stratum[order]


def gate_matrix(
    data: Matrix,
    fit: NDArray[np.int64],
    val: NDArray[np.int64],
    candidates: Labelled,
    ordinals: NDArray[np.int64],
    *,
    plan: BalancePlan,
    gate: Gate,
    seed: int,
    share: float = 1.0,
    metrics: bool = False,
) -> GateOutcome:
    """Hold candidates against the real records ``fit`` and ``val`` (rows of ``data``).

    ``share`` scales the plan's wanted records to the part that is used.
    """
    return gate_candidates(
        Labelled(data.X[fit], data.strata[fit]),
        Labelled(data.X[val], data.strata[val]),
        candidates,
        strata=data.strata_names,
        stratum_class=data.class_of_stratum(plan),
        wanted=np.array([round(c.n_synthetic * share) for c in plan.classes], dtype=np.int64),
        ordinals=ordinals,
        fit_keys=data.keys[fit],
        fit_groups=None if data.groups is None else data.groups[fit],
        is_category=data.is_category,
        n_levels=data.n_levels,
        in_domain=data.encoder.in_domain(candidates.X),
        purpose=gate.purpose,
        near_copy_quantile=gate.near_copy_quantile,
        fidelity_quantile=gate.fidelity_quantile,
        seed=seed,
        metrics=metrics,
    )


def best_first(
    outcome: GateOutcome, strata: NDArray[np.int64], ordinals: NDArray[np.int64], gate: Gate
) -> NDArray[np.int64]:
    """Return the kept candidates by stratum and rank: a smaller amount is a prefix of a larger one."""
    first = -outcome.score if gate.purpose == "utility" else np.zeros(len(ordinals))
    order = np.lexsort((ordinals, first, strata))
    return order[outcome.kept[order]]
