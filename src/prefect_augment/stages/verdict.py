"""Verify: the one reading of the hold-out, for a comparison that was fixed beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefect_augment.datatypes import (
    Arm,
    ArmScore,
    BalancePlan,
    Choice,
    DatasetFacts,
    DatasetRef,
    GateReport,
    Verdict,
)
from prefect_augment.encoding.tables import table_strata
from prefect_augment.evaluation.compare import ArmPredictions, decide
from prefect_augment.params import Classic, Gate, ModelParams
from prefect_augment.reading.staged import read_part, read_shards
from prefect_augment.stages.matrix import Matrix, by_columns, to_matrix
from prefect_augment.stages.score import FIXED, fit_and_predict, load_training
from prefect_augment.stages.synthetic import Synthetic, draw_synthetic
from prefect_augment.staging import Stage, stage_key
from prefect_augment.storage import Store

__all__ = ["verify", "without_comparison"]

ALGORITHM_VERSION = 1


def verify(
    dataset: DatasetRef,
    *,
    choice: Choice,
    plan: BalancePlan,
    scores: Sequence[ArmScore],
    model: ModelParams,
    candidates: GateReport | None,
    classic: Classic,
    gate: Gate,
    run_seed: int,
    store: Store,
) -> Verdict:
    """Compare the chosen arm, the best baseline and as is on the hold-out.

    The learners are trained on fit and val together, as the published training split will be. Under
    the first seed a model arm trains on the very records that would be published, under the others
    on records of the same model trained and drawn anew.

    Returns
    -------
    Verdict
        Kept as a receipt, so that the hold-out is read once for these inputs.
    """
    key = stage_key(
        "verify",
        algorithm_version=ALGORITHM_VERSION,
        params=[choice, list(plan.classes), model, classic, gate],
        inputs=[dataset.key, candidates.key if candidates else ""],
        seed=run_seed,
    )
    stage = Stage(store, "verify", key)
    found = stage.outcome(Verdict)
    if found is not None:
        return found
    facts, data = load_training(dataset, plan, store)
    table = read_part(store, facts, ["holdout"])
    holdout = to_matrix(table, facts=facts, plan=plan, encoder=data.encoder)
    arms = {arm.name: arm for arm in (choice.chosen, choice.baseline, choice.as_is)}
    seeds = range(gate.n_seeds)
    given = _judged_synthetic(choice, data, candidates, facts, plan, store)
    predictions = {
        name: _predict(
            arm, data, holdout, seeds, given, plan, model, classic, gate, scores, run_seed
        )
        for name, arm in arms.items()
    }
    verdict = decide(
        holdout.y,
        predictions,
        classes=data.classes,
        judged=data.judged,
        chosen=choice.chosen.name,
        baseline=choice.baseline.name,
        as_is=choice.as_is.name,
        on_no_gain=gate.on_no_gain,
        max_recall_loss=gate.max_recall_loss,
        n_bootstrap=gate.n_bootstrap,
        seed=run_seed,
        groups=holdout.groups,
        twins=np.isin(holdout.content, data.content),
        not_judged={c.label: c.note for c in plan.classes if not c.judged and c.note},
    )
    return stage.finish(verdict)


def without_comparison(plan: BalancePlan) -> tuple[Arm, Verdict]:
    """Return what to publish where fewer than two classes are large enough to be judged.

    Nothing can be compared then, so the rare classes get what is known to be mild: weight, at most
    five times that of the others.
    """
    arm = Arm(name="class weights", family="weights", amount=1.0)
    not_judged = {c.label: c.note for c in plan.classes if not c.judged}
    n_classes = len({c.label for c in plan.classes})
    reasons = (
        (
            f"Fewer than two of {n_classes} classes are large enough to stand in fit, val and hold-out, "
            "so no way of training could be compared."
        ),
        "The rare classes are weighted up, at most five times.",
    )
    verdict = Verdict(
        decision="inconclusive",
        reasons=reasons,
        chosen=arm.name,
        baseline=arm.name,
        published=arm.name,
        arms={},
        balanced_accuracy={},
        differences=(),
        minimum_detectable_effect=1.0,
        class_recall={},
        class_decisions={},
        not_judged=not_judged,
        n_holdout=0,
        n_seeds=0,
    )
    return arm, verdict


def _predict(
    arm: Arm,
    data: Matrix,
    holdout: Matrix,
    seeds: Sequence[int],
    given: Synthetic | None,
    plan: BalancePlan,
    model: ModelParams,
    classic: Classic,
    gate: Gate,
    scores: Sequence[ArmScore],
    run_seed: int,
) -> ArmPredictions:
    """Train one arm with each seed and predict the hold-out."""
    everything = np.arange(len(data.y))
    proba: dict[str, list[NDArray[np.float64]]] = {name: [] for name in gate.learners}
    fixed = arm.family in FIXED
    for seed in seeds[:1] if fixed else seeds:
        synthetic = given if arm.has_model else None
        if arm.has_model and seed > 0:
            synthetic = draw_synthetic(
                data, everything, plan=plan, model=model, gate=gate, seed=run_seed * 1000 + seed
            )
        for name, p in fit_and_predict(
            arm,
            data,
            everything,
            holdout.X,
            plan=plan,
            classic=classic,
            gate=gate,
            synthetic=synthetic,
            seed=run_seed * 1000 + seed,
        ):
            proba[name].append(p)
    return ArmPredictions(
        arm=arm,
        proba={
            name: np.stack(values * len(seeds) if fixed else values)
            for name, values in proba.items()
        },
        multipliers=_multipliers(arm, data.classes, scores, len(seeds)),
    )


def _multipliers(
    arm: Arm, classes: Sequence[str], scores: Sequence[ArmScore], n_seeds: int
) -> dict[str, NDArray[np.float64]]:
    """Thresholds as they were tuned on val, the same for every seed."""
    tuned = next((s.thresholds for s in scores if s.arm == arm), {})
    return {
        learner: np.tile([values.get(c, 1.0) for c in classes], (n_seeds, 1))
        for learner, values in tuned.items()
    }


def _judged_synthetic(
    choice: Choice,
    data: Matrix,
    gate: GateReport | None,
    facts: DatasetFacts,
    plan: BalancePlan,
    store: Store,
) -> Synthetic | None:
    """Return the candidates to train on, in matrix form: best first, those that passed the gate.

    Records that another tool made are judged as they are, with what our gate would drop.
    """
    if gate is None:
        return None
    shards = gate.kept + (gate.dropped if choice.chosen.family == "given" else ())
    if not shards:
        return None
    table = read_shards(store, shards)
    names = {name: i for i, name in enumerate(data.strata_names)}
    strata = table_strata(table, label=facts.label, by=by_columns(plan))
    return data.encoder.encode(table), np.array([names[s] for s in strata], dtype=np.int64)
