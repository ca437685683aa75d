"""Verify: the one reading of the hold-out, for a comparison that was fixed beforehand."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_augment.datatypes import (
    Arm,
    ArmScore,
    BalancePlan,
    Choice,
    DatasetRef,
    GateReport,
    Verdict,
)
from prefect_augment.evaluation.candidates import Labelled
from prefect_augment.evaluation.compare import ArmPredictions, decide
from prefect_augment.evaluation.leaks import holdout_leaks
from prefect_augment.evaluation.neighbours import FeatureSpace
from prefect_augment.params import Classic, Gate, ModelParams
from prefect_augment.reading.staged import load_facts, read_part
from prefect_augment.stages.bench import (
    Synthetic,
    Wishes,
    Workbench,
    kept_synthetic,
    open_bench,
)
from prefect_augment.stages.matrix import Matrix
from prefect_augment.stages.privacy import measure_given
from prefect_augment.stages.records import Records
from prefect_augment.staging import Stage, stage_key
from prefect_augment.storage import Store

__all__ = ["verify", "without_comparison"]

logger = logging.getLogger(__name__)

ALGORITHM_VERSION = 3


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
    device: str = "auto",
) -> Verdict:
    """Compare the chosen arm, the best baseline and as is on the hold-out.

    The learners are trained on fit and val together, as the published training split will be. Under
    the first seed a model arm trains on the very records that would be published, under the others
    on records of the same model trained and drawn anew; for images, whose models take too long for
    that, on the same ones. Of a table, the best arm with synthetic records is shown beside them,
    whatever is published.

    ``device`` says where networks compute: auto, cpu or cuda.

    Returns
    -------
    Verdict
        Kept as a receipt, so that the hold-out is read once for these inputs.
    """
    key = stage_key(
        "verify",
        algorithm_version=ALGORITHM_VERSION,
        params=[choice, list(plan.classes), plan.learner_steps, model, classic, gate],
        inputs=[dataset.key, candidates.key if candidates else ""],
        seed=run_seed,
    )
    stage = Stage(store, "verify", key)
    found = stage.outcome(Verdict)
    if found is not None:
        return found
    wishes = Wishes(gate=gate, classic=classic, model=model, device=device)
    bench = open_bench(store, load_facts(dataset, store), plan, wishes)
    data = bench.records
    holdout = bench.read(read_part(store, bench.facts, ["holdout"]))
    if choice.chosen.family == "given" and candidates is not None:
        measure_given(dataset, candidates, bench, holdout, store)  # of this one reading
    # Shown, whatever is chosen; an image's classifier takes minutes for that.
    shown = choice.model if bench.facts.image is None else None
    compared = (choice.chosen, choice.baseline, choice.as_is, *([shown] if shown else []))
    arms = {arm.name: arm for arm in compared}
    given = kept_synthetic(bench, store, candidates, with_dropped=choice.chosen.family == "given")
    # An arm and the same with tuned thresholds are trained once.
    proba = {
        arm: _predict(arm, bench, holdout.X, range(gate.n_seeds), given, run_seed=run_seed)
        for arm in dict.fromkeys(map(_as_trained, arms.values()))
    }
    predictions = {
        name: ArmPredictions(
            arm=arm,
            proba=proba[_as_trained(arm)],
            multipliers=_multipliers(arm, data.classes, scores, gate.n_seeds),
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
        model=shown.name if shown else None,
        on_no_gain=gate.on_no_gain,
        max_recall_loss=gate.max_recall_loss,
        n_bootstrap=gate.n_bootstrap,
        seed=run_seed,
        groups=holdout.groups,
        twins=np.isin(holdout.content, data.content),
        not_judged={c.label: c.note for c in plan.classes if not c.judged and c.note},
    )
    leaks = _leaks(data, holdout)
    for leak in leaks:
        logger.warning("%s", leak)
    return stage.finish(verdict.model_copy(update={"leaks": leaks}))


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
    bench: Workbench,
    X: NDArray[Any],
    seeds: Sequence[int],
    given: Synthetic | None,
    *,
    run_seed: int,
) -> dict[str, NDArray[np.float64]]:
    """Train one arm with each seed; return each learner's probabilities of the hold-out records."""
    everything = np.arange(len(bench.records.y))
    proba: dict[str, list[NDArray[np.float64]]] = {name: [] for name in bench.learners}
    fixed = bench.is_fixed(arm)
    for seed in seeds[:1] if fixed else seeds:
        synthetic = given if arm.has_model else None
        if arm.has_model and seed > 0:
            synthetic = bench.synthetic(everything, given=given, seed=run_seed * 1000 + seed)
        for name, p in bench.predictions(
            arm, everything, X, synthetic=synthetic, seed=run_seed * 1000 + seed
        ):
            proba[name].append(p)
    return {
        name: np.stack(values * len(seeds) if fixed else values) for name, values in proba.items()
    }


def _leaks(data: Records, holdout: Records) -> tuple[str, ...]:
    """Return what points to a leak; images have near-duplicates, which were kept on one side."""
    if not isinstance(data, Matrix):
        return ()
    fit, val = (Labelled(data.X[rows], data.y[rows]) for rows in (~data.is_val, data.is_val))
    space = FeatureSpace.of(fit.X, data.is_category)
    return holdout_leaks(fit, val, Labelled(holdout.X, holdout.y), space)


def _as_trained(arm: Arm) -> Arm:
    """Return the arm as its training knows it: thresholds are applied to predictions alone."""
    if arm.family != "threshold":
        return arm
    return arm.model_copy(update={"name": "as is", "family": "as_is", "tune_threshold": False})


def _multipliers(
    arm: Arm, classes: Sequence[str], scores: Sequence[ArmScore], n_seeds: int
) -> dict[str, NDArray[np.float64]]:
    """Thresholds as they were tuned on val, the same for every seed."""
    tuned = next((s.thresholds for s in scores if s.arm == arm), {})
    return {
        learner: np.tile([values.get(c, 1.0) for c in classes], (n_seeds, 1))
        for learner, values in tuned.items()
    }
