"""Verify: the one reading of the hold-out, for a comparison that was fixed beforehand.

When a run is refused after its report: nothing helps, or records give away what they were made from.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefect_augment.encoding.arrays import Labelled, Matrix, Records
from prefect_augment.evaluation.metrics.selection import ArmPredictions, decide
from prefect_augment.evaluation.neighbours import FeatureSpace
from prefect_augment.evaluation.privacy.holdout_leaks import holdout_leaks
from prefect_augment.experiment.diagnostics import Copies, Holdout, corrupted_copies, further_facts
from prefect_augment.experiment.evaluator import Synthetic, Wishes, Workbench, kept_synthetic
from prefect_augment.experiment.open_evaluator import open_bench
from prefect_augment.experiment.privacy import measure_given
from prefect_augment.params import Classic, Gate, ModelParams
from prefect_augment.schema.base import (
    Arm,
    ArmScore,
    BalancePlan,
    Choice,
    DatasetRef,
    GateReport,
    Verdict,
)
from prefect_augment.schema.experiment import HoldoutFacts
from prefect_augment.schema.privacy import Privacy
from prefect_augment.shards.staged import load_facts, read_part
from prefect_augment.storage.staging import Stage, stage_key
from prefect_augment.storage.store import Store

__all__ = ["LEAKS", "verify", "why_refused", "without_comparison"]

logger = logging.getLogger(__name__)

ALGORITHM_VERSION = 5
FURTHER = "further"


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
    workers: int = 1,
) -> Verdict:
    """Compare the chosen arm, the best baseline and as is on the hold-out.

    The learners are trained on fit and val together, as the published training split will be. Under
    the first seed a model arm trains on the very records that would be published, under the others
    on records of the same model trained and drawn anew; for images, whose models take too long for
    that, on the same ones. Of a table, the best arm with synthetic records is shown beside them,
    whatever is published. Of the same reading and the same fitted learners are robustness to
    corrupted copies, recall per group of ``balance.by`` and calibration (:mod:`.further`).

    ``device`` says where networks compute: auto, cpu or cuda; ``workers`` how many arms are trained at the same
    time.

    Returns
    -------
    Verdict
        Kept as a receipt, so that the hold-out is read once for these inputs.
    """
    key = stage_key(
        "verify",
        algorithm_version=ALGORITHM_VERSION,
        params=[
            choice,
            list(plan.classes),
            plan.learner_steps,
            plan.learner_width,
            model,
            classic,
            gate,
        ],
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
    held = Holdout.of(bench, read_part(store, bench.facts, ["holdout"]))
    holdout = held.records
    if choice.chosen.family == "given" and candidates is not None:
        measure_given(dataset, candidates, bench, holdout, store)  # of this one reading
    copies = corrupted_copies(bench, holdout, seed=run_seed)
    # Shown, whatever is chosen; an image's classifier takes minutes for that.
    shown = choice.model if bench.facts.image is None else None
    compared = {arm.name: arm for arm in (choice.chosen, choice.baseline, choice.as_is)}
    arms = compared | ({shown.name: shown} if shown else {})
    given = kept_synthetic(bench, store, candidates, with_dropped=choice.chosen.family == "given")
    multipliers = {
        name: _multipliers(arm, data.classes, scores, gate.n_seeds) for name, arm in arms.items()
    }
    # An arm and the same with tuned thresholds are trained once.
    alike: dict[Arm, list[str]] = {}
    for name, arm in arms.items():
        alike.setdefault(_as_trained(arm), []).append(name)
    everything = _predict_all(
        bench,
        holdout,
        copies,
        {
            trained: {name: multipliers[name] for name in names if name in compared}
            for trained, names in alike.items()
        },
        given,
        n_seeds=gate.n_seeds,
        run_seed=run_seed,
        workers=workers,
    )
    predictions: dict[str, ArmPredictions] = {}
    corrupted: dict[str, NDArray[np.float64]] = {}
    for trained, (proba, hits) in everything.items():
        corrupted |= hits
        for name in alike[trained]:
            predictions[name] = ArmPredictions(arms[name], proba, multipliers[name])
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
    stage.item(
        FURTHER,
        HoldoutFacts,
        lambda: further_facts(
            verdict, predictions, {name: corrupted[name] for name in compared},
            bench=bench, holdout=held, copies=copies, given=given,
            n_bootstrap=gate.n_bootstrap, seed=run_seed,
        ),
    )  # fmt: skip
    further = f"{stage.prefix}/{FURTHER}.json"
    return stage.finish(verdict.model_copy(update={"leaks": leaks, "further": further}))


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


Asked = Mapping[str, Mapping[str, NDArray[np.float64]]]  # arm -> learner -> multipliers
Predicted = dict[str, NDArray[np.float64]]


def _predict_all(
    bench: Workbench,
    holdout: Records,
    copies: Copies,
    asked: Mapping[Arm, Asked],
    given: Synthetic | None,
    *,
    n_seeds: int,
    run_seed: int,
    workers: int,
) -> dict[Arm, tuple[Predicted, Predicted]]:
    """Train every arm with each seed, ``workers`` at the same time, and let it predict the hold-out.

    ``asked`` has, of each arm, the multipliers of those whose corrupted copies are predicted too.

    Returns
    -------
    dict of Arm to tuple
        By learner, probabilities of shape (n_seeds, n_records, n_classes); by name of the arms asked, the share
        of learners that are right about each copy, shape (n_seeds, n_corruptions, n_rows).
    """
    X = np.concatenate([holdout.X, copies.X])
    with ThreadPoolExecutor(workers) as pool:
        # One that draws nothing is the same under every seed.
        jobs = {
            arm: [
                # The run's log goes by the context.
                pool.submit(
                    copy_context().run,
                    _predict,
                    arm,
                    bench,
                    holdout,
                    copies,
                    X,
                    given,
                    i,
                    of,
                    run_seed,
                )
                for i in range(1 if bench.is_fixed(arm) else n_seeds)
            ]
            for arm, of in asked.items()
        }
        try:
            done = {arm: [job.result() for job in of_seeds] for arm, of_seeds in jobs.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what waits is not begun any more
            raise
    return {
        arm: (
            {name: _over_seeds([p[name] for p, _ in of], n_seeds) for name in bench.learners},
            {name: _over_seeds([hits[name] for _, hits in of], n_seeds) for name in asked[arm]},
        )
        for arm, of in done.items()
    }


def _predict(
    arm: Arm,
    bench: Workbench,
    holdout: Records,
    copies: Copies,
    X: NDArray[Any],
    given: Synthetic | None,
    i: int,
    asked: Asked,
    run_seed: int,
) -> tuple[Predicted, Predicted]:
    """Train an arm with seed ``i``; return what it says of the hold-out, and how right it is on the copies.

    ``X`` has the hold-out's records and after them the copies.
    """
    rows, n, seed = np.arange(len(bench.records.y)), len(holdout.y), run_seed * 1000 + i
    synthetic = given if arm.has_model else None
    if arm.has_model and i:
        synthetic = bench.synthetic(rows, given=given, seed=seed)
    proba: Predicted = {}
    right: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in asked}
    wanted = X if asked else X[:n]
    for learner, p in bench.predictions(arm, rows, wanted, synthetic=synthetic, seed=seed):
        proba[learner] = p[:n].copy()  # a view would keep the copies' in memory
        for name, multipliers in asked.items():
            tuned = multipliers[learner][i] if learner in multipliers else None
            right[name].append(copies.hits(p[n:], holdout.y, tuned))
    return proba, {name: np.mean(of_learners, axis=0) for name, of_learners in right.items()}


def _over_seeds(values: list[NDArray[np.float64]], n_seeds: int) -> NDArray[np.float64]:
    """Stack what each seed gave; of a single one the same array for all, without copies of it."""
    if len(values) == 1:
        return np.broadcast_to(values[0], (n_seeds, *values[0].shape))
    return np.stack(values)


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


LEAKS = ("leak", "gap")


def why_refused(
    gate: Gate, verdict: Verdict | None, privacy: Privacy | None, *, goes_out: bool
) -> str:
    """Return why the gate lets nothing pass; empty where it does.

    Parameters
    ----------
    gate : Gate
        ``on_no_gain`` and ``on_leak``.
    verdict : Verdict, optional
    privacy : Privacy, optional
    goes_out : bool
        Whether the synthetic records are to be published, or are what was asked about.
    """
    if gate.on_no_gain == "fail" and verdict is not None and verdict.decision != "accept":
        return f"the verdict is {verdict.decision} and gate.on_no_gain is 'fail'. " + " ".join(
            verdict.reasons
        )
    if gate.on_leak == "fail" and goes_out and privacy is not None and privacy.finding in LEAKS:
        return f"the synthetic records leak and gate.on_leak is 'fail'. {privacy.sentence}"
    return ""
