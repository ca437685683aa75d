"""The workbench of tables: matrices, boosting and logistic regression, models fitted anew per fold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.encoding.arrays import (
    N_FOLDS,
    SMALL_VAL,
    GateOutcome,
    Matrix,
    to_matrix,
    training_matrix,
)
from prefect_augment.evaluation.classifiers.base import fit_learner
from prefect_augment.evaluation.quality.neighbours import FeatureSpace
from prefect_augment.evaluation.quality.table_filter import gate_candidates
from prefect_augment.experiment.cross_fit import draw_synthetic
from prefect_augment.experiment.evaluator import (
    Question,
    Synthetic,
    Wishes,
    gate_wishes,
    rarest_in_val,
    score_folds,
)
from prefect_augment.experiment.training_set import build_training_set
from prefect_augment.params import NoModel
from prefect_augment.registry import load_model_class
from prefect_augment.schema.base import Arm, BalancePlan, DatasetFacts
from prefect_augment.storage.store import Store
from prefect_augment.synthesis.rejection import Rules

__all__ = ["TableBench", "open_bench"]

Int = NDArray[np.int64]

# Families that add no record: they give every seed the same training set.
FIXED = ("as_is", "threshold", "weights", "given")


def open_bench(store: Store, facts: DatasetFacts, plan: BalancePlan, wishes: Wishes) -> TableBench:
    """Return the workbench of a staged table."""
    return TableBench(facts, plan, wishes, training_matrix(store, facts, plan))


@dataclass(frozen=True)
class TableBench:
    """See :class:`~prefect_augment.experiment.evaluator.Workbench`."""

    facts: DatasetFacts
    plan: BalancePlan
    wishes: Wishes
    records: Matrix

    @property
    def learners(self) -> tuple[str, ...]:
        """The learners that the gate asks for."""
        return tuple(self.wishes.gate.learners)

    @property
    def has_slow_model(self) -> bool:
        """Whether the wished model is trained in steps."""
        if isinstance(self.wishes.model, NoModel):
            return False
        return bool(load_model_class(self.wishes.model, modality="table").trained_in_steps)

    @cached_property
    def rules(self) -> Rules:
        """The gate's constraints, with the combinations that fit and val have."""
        data = self.records

        def real() -> pa.Table:
            strata = [data.strata_names[k] for k in data.strata]
            return data.encoder.decode(data.X, strata=strata)

        return Rules.of(data.encoder, real, constraints=self.wishes.gate.constraints)

    def read(self, table: pa.Table) -> Matrix:
        """Staged records of another part, by the encoder of fit and val."""
        return to_matrix(table, facts=self.facts, plan=self.plan, encoder=self.records.encoder)

    def encode(self, table: pa.Table) -> NDArray[np.float64]:
        """The matrix form."""
        return self.records.encoder.encode(table)

    def folds(self, *, seed: int, has_candidates: bool) -> Int:
        """Val alone where it is large, else five folds: a model is fitted anew within each.

        Val alone, too, where the model is trained in steps: each fold would take the whole budget.
        """
        alone = has_candidates and self.has_slow_model
        if not alone:
            alone = rarest_in_val(self.records) >= SMALL_VAL["table"]
        return score_folds(self.records, n_folds=1 if alone else N_FOLDS, seed=seed)

    def is_fixed(self, arm: Arm) -> bool:
        """Whether the arm draws nothing: both learners give the same for the same records."""
        return arm.family in FIXED

    def synthetic(self, rows: Int, *, given: Synthetic | None, seed: int) -> Synthetic:
        """Records of a model that is fitted on ``rows`` alone.

        Of one that is trained in steps, the run's own candidates under every seed: made from fit
        alone, they know nothing of val, which is all that :meth:`folds` then scores.
        """
        if self.has_slow_model:
            if given is None:
                return Synthetic(
                    np.empty((0, self.records.X.shape[1])), np.empty(0, dtype=np.int64)
                )
            return given
        return draw_synthetic(self, rows, model=self.wishes.model, gate=self.wishes.gate, seed=seed)

    def predictions(
        self,
        arm: Arm,
        rows: Int,
        X: NDArray[Any],
        *,
        synthetic: Synthetic | None,
        seed: int,
        effort: float = 1.0,
    ) -> Iterator[tuple[str, NDArray[np.float64]]]:
        """Fit each learner on the arm's training set."""
        data = self.records
        training = build_training_set(
            arm,
            data.X[rows],
            data.strata[rows],
            names=data.strata_names,
            plan=self.plan,
            synthetic=synthetic,
            is_category=data.is_category,
            n_levels=data.n_levels,
            classic=self.wishes.classic,
            seed=seed,
        )
        labels = data.class_of_stratum(self.plan)[training.strata]
        for name in self.wishes.gate.learners:
            learner = fit_learner(
                name,
                training.X,
                labels,
                weights=training.weights,
                is_category=data.is_category,
                n_levels=data.n_levels,
                n_classes=len(data.classes),
                seed=seed,
                effort=effort,
            )
            yield name, learner.predict_proba(X)

    def plain_space(self, X: NDArray[np.float64]) -> FeatureSpace:
        """The gate's distance, scaled by these records."""
        return FeatureSpace.of(X, self.records.is_category)

    def gate(self, question: Question) -> GateOutcome:
        """Distances over the columns, labels by boosting, domains by the encoder."""
        data = self.records
        asked = gate_wishes(data, self.plan, self.wishes.gate, question)
        X, codes = question.candidates.X, question.candidates.stratum
        strata = [data.strata_names[k] for k in codes]
        # What breaks a constraint is none of the domain; candidates of other tools may.
        asked["in_domain"] = data.encoder.in_domain(X) & self.rules.hold_in(data.encoder, X, strata)
        return gate_candidates(
            data.labelled(question.fit),
            data.labelled(question.val),
            question.candidates,
            is_category=data.is_category,
            n_levels=data.n_levels,
            **asked,
        )
