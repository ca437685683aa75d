"""The evaluator of tables: matrices, boosting and logistic regression, models fitted anew per fold.

A fold's strategy must not train on records of a model that has seen the fold. So each fold fits, samples and filters
within its own training records, a fifth of which serve as validation. (Tables only: image models take too long.)
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Array, Bool, Float, Int
from prefect_augment.encoding.arrays import (
    N_FOLDS,
    SMALL_VALIDATION,
    TRAINED_ON,
    Labelled,
    Matrix,
    by_columns,
    by_key,
    to_matrix,
)
from prefect_augment.encoding.rare_values import RareValues
from prefect_augment.encoding.subsample import (
    Sample,
    read_parts,
    read_training_records,
    sample_rows,
)
from prefect_augment.evaluation.classifiers.bagging import Bagged, bags, n_bags
from prefect_augment.evaluation.classifiers.base import Classifier
from prefect_augment.evaluation.classifiers.own_estimator import estimator_infos, fit_own
from prefect_augment.evaluation.classifiers.tree_ensembles import fit_named
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.neighbours import FeatureSpace
from prefect_augment.evaluation.quality.label_audit import LabelAudit, audit_labels, clean_weights
from prefect_augment.evaluation.quality.near_copies import Measures
from prefect_augment.evaluation.quality.record_filter import table_measures
from prefect_augment.experiment.evaluator import (
    Evaluator,
    FilterQuery,
    Synthetic,
    best_first,
    compared_sample,
    groups_of,
    rarest_in_validation,
    score_folds,
)
from prefect_augment.experiment.training_set import build_training_set
from prefect_augment.genmodels.base import MIN_SAMPLED_RECORDS, GenerativeModel, TableData
from prefect_augment.params import Budget, NoModel, OwnEstimator
from prefect_augment.plan.search_space import PILOT_SHARE
from prefect_augment.plan.strategies import candidates_wanted
from prefect_augment.registry import load_model_class
from prefect_augment.schema import EstimatorInfo, Strategy
from prefect_augment.storage import Store
from prefect_augment.storage.keys import hash_ids
from prefect_augment.synthesis.draw import candidate_seeds
from prefect_augment.synthesis.model_store import table_spec
from prefect_augment.synthesis.rejection import Rules, draw_kept
from prefect_augment.synthesis.soft_labels import Ensemble, expand, learn, out_of_fold, relabel
from prefect_augment.synthesis.train import fit_model
from prefect_augment.synthesis.training_budget import effective_budget

T = TypeVar("T")

# Families that add no record: they give every seed the same training set.
FIXED = ("as_is", "threshold", "weights", "external")
N_TRIED = 200  # records per class that the user's estimators are tried on
SEEDLESS = ("boosting", "logistic", "lightgbm", "xgboost")  # estimators that draw nothing


@dataclass(frozen=True)
class TableEvaluator(Evaluator):
    """Matrices, compared by the estimators in ``evaluation.estimators``."""

    records: Matrix
    store: Store

    @property
    def estimators(self) -> tuple[str, ...]:
        """The estimators in ``evaluation.estimators``."""
        named = self.params.evaluation.estimators
        return tuple(e if isinstance(e, str) else e.title for e in named)

    @property
    def estimator_infos(self) -> dict[str, EstimatorInfo]:
        """Package, version and digest of each estimator, by name."""
        return estimator_infos(self.params.evaluation)

    def try_estimators(self) -> None:
        """Fit and ask the user's estimators once, on a few records of every class."""
        data = self.records
        rows = np.concatenate(
            [np.flatnonzero(data.y == k)[:N_TRIED] for k in range(len(data.classes))]
        )
        for own in self.params.evaluation.own_estimators:
            fitted = self._fit_of(own)(data.X[rows], data.y[rows], weights=None, seed=0)
            fitted.predict_proba(data.X[rows])

    def _fits(self, step_share: float) -> list[Callable[..., Classifier]]:
        """What fits each estimator on a matrix and class codes, by ``weights`` and a ``seed``."""
        data = self.records
        of_table: dict[str, Any] = {"n_levels": data.n_levels, "n_classes": len(data.classes)}
        return [
            partial(fit_named, requested, **of_table, step_share=step_share)
            if isinstance(requested, str)
            else self._fit_of(requested)
            for requested in self.params.evaluation.estimators
        ]

    def _fit_of(self, own: OwnEstimator) -> Callable[..., Classifier]:
        encoder = self.records.encoder
        labels = encoder.labels(self.records.classes)
        return partial(fit_own, own, decode=encoder.decode_learnt, labels=labels)

    @property
    def has_slow_model(self) -> bool:
        """Whether the requested model is trained in steps."""
        if isinstance(self.params.model, NoModel):
            return False
        return bool(load_model_class(self.params.model, modality="table").trained_in_steps)

    @cached_property
    def rules(self) -> Rules:
        """The constraints of ``quality``, with the combinations that training and validation have."""
        data = self.records

        def real() -> pa.Table:
            strata = [data.strata_names[k] for k in data.strata]
            return data.encoder.decode(data.X, strata=strata)

        return Rules.of(data.encoder, real, constraints=self.params.quality.constraints)

    def read(self, table: pa.Table) -> Matrix:
        """Staged records of another part, by the encoder of training and validation."""
        return to_matrix(table, info=self.info, plan=self.plan, encoder=self.records.encoder)

    def encode(self, table: pa.Table) -> Float:
        """The matrix form."""
        return self.records.encoder.encode(table)

    def folds(self, *, seed: int, has_candidates: bool) -> Int:
        """Validation alone where it is large, or where a model is trained in steps; else five folds.

        A model is fitted anew within each fold, and one trained in steps would take the whole budget for each.
        """
        alone = has_candidates and self.has_slow_model
        if not alone:
            alone = rarest_in_validation(self.records) >= SMALL_VALIDATION["table"]
        return score_folds(self.records, n_folds=1 if alone else N_FOLDS, seed=seed)

    def is_fixed(self, strategy: Strategy) -> bool:
        """Whether neither strategy nor estimators draw: equal records give equal estimators."""
        draws = any(e not in SEEDLESS for e in self.params.evaluation.estimators)
        return strategy.family in FIXED and not draws

    def synthetic(self, rows: Int, *, candidates: Synthetic | None, seed: int) -> Synthetic:
        """Records of a model that is fitted on ``rows`` alone.

        For a model trained in steps these are the run's own candidates, under every seed. They were
        made from training records alone, and :meth:`folds` then scores validation records only. Another
        tool's records are the same under every seed, too.
        """
        if self.has_slow_model or isinstance(self.params.model, NoModel):
            return super().synthetic(rows, candidates=candidates, seed=seed)
        return draw_synthetic(self, rows, seed=seed)

    def predictions(
        self,
        strategy: Strategy,
        rows: Int,
        X: Array,
        *,
        synthetic: Synthetic | None,
        seed: int,
        step_share: float = 1.0,
    ) -> Iterator[tuple[str, Float]]:
        """Fit each estimator on the strategy's training set."""
        data, labels = self.records, None
        if strategy.family in ("soft_labels", "ensemble"):
            ensemble = learn_ensemble(self, rows, seed=seed)
            labels = relabel(data, self.plan, rows, ensemble)
        if strategy.is_control:
            proba = ensemble.predict_proba(X)
            proba /= proba.sum(axis=1, keepdims=True)
            yield from ((name, proba) for name in self.estimators)
            return
        real_weights = None
        if strategy.family == "clean":
            audit = audit_table(self, rows, seed=seed)
            real_weights = clean_weights(audit, strategy.doubted_weight)
        training = build_training_set(
            strategy,
            data,
            rows,
            plan=self.plan,
            synthetic=synthetic,
            labels=labels,
            real_weights=real_weights,
            classic=self.params.classic,
            seed=seed,
        )
        y = data.class_of_stratum(self.plan)[training.strata]
        for name, fit in zip(self.estimators, self._fits(step_share), strict=True):
            if strategy.family != "bagging":
                fitted = fit(training.X, y, weights=training.weights, seed=seed)
                yield name, fitted.predict_proba(X)
                continue
            drawn = enumerate(
                bags(training.strata, training.weights, n=n_bags(step_share), seed=seed)
            )
            members = [fit(training.X[b], y[b], weights=None, seed=seed + i) for i, b in drawn]
            yield name, Bagged(tuple(members)).predict_proba(X)

    def plain_space(self, X: Float) -> FeatureSpace:
        """The filter's distance, scaled by these records."""
        return FeatureSpace.of(X, self.records.is_category)

    def with_model_records(self) -> "TableEvaluator":
        """Itself, with the training records that the run's model has seen where its own are another sample.

        A copy of a record that is not there would pass for new.
        """
        if not self.is_sampled or isinstance(self.params.model, NoModel):
            return self
        model_class = load_model_class(self.params.model, modality="table")
        most = getattr(model_class, "max_training_records", 0)
        by, seed = by_columns(self.plan), self.params.seed
        training, _ = read_training_records(self.store, self.info, by=by, most=most, seed=seed)
        sample = compared_sample(self.experiment)
        _, validation = read_parts(self.store, self.info, TRAINED_ON, by=by, sample=sample)
        table, is_validation = by_key(training, validation)
        encoder = self.records.encoder
        return replace(
            self,
            records=to_matrix(
                table, info=self.info, plan=self.plan, encoder=encoder, is_validation=is_validation
            ),
        )

    def measures(self, training: Labelled, stratum_class: Int, seed: int) -> Measures:
        """Distances over the columns, labels by boosting."""
        return table_measures(
            training,
            is_category=self.records.is_category,
            n_levels=self.records.n_levels,
            stratum_class=stratum_class,
            seed=seed,
        )

    def in_domain(self, query: FilterQuery) -> Bool:
        """Which candidates keep to the encoder's domain and the constraints; external records may break them."""
        data, X = self.records, query.candidates.X
        rare = RareValues.of(
            data.X[query.training],
            data.is_category,
            min_records=self.params.quality.min_level_records,
        )
        strata = [data.strata_names[k] for k in query.candidates.stratum]
        in_domain = data.encoder.in_domain(X, may_miss=rare.without_level)
        return in_domain & self.rules.hold_in(data.encoder, X, strata)


VALIDATION_FOLDS = 5  # one of them serves as validation
# Pilots, full scores and mixtures use the same draws and ensembles one after the other.
MAX_RECENT = 24
_recent: OrderedDict[str, Any] = OrderedDict()
_recent_lock = Lock()


def _remembered(key: str, make: Callable[[], T]) -> T:
    """What was made under this key not long ago, or now."""
    with _recent_lock:
        if key in _recent:
            _recent.move_to_end(key)
            known: T = _recent[key]
            return known
    result = make()
    with _recent_lock:
        _recent[key] = result
        while len(_recent) > MAX_RECENT:
            _recent.popitem(last=False)
    return result


def learn_ensemble(evaluator: TableEvaluator, rows: Int, *, seed: int) -> Ensemble:
    """The ensemble that gives soft labels to drawn and real records, fitted on some rows."""
    key = f"ensemble {_key(evaluator, rows, seed, None)}"
    return _remembered(key, lambda: learn(evaluator.records, rows, seed=seed))


def audit_table(evaluator: TableEvaluator, rows: Int, *, seed: int) -> LabelAudit:
    """The audit of the labels of some rows, ascending, by an ensemble that is fitted on them alone."""
    data = evaluator.records

    def predict(weights: Float | None) -> Float:
        if weights is None:
            return out_of_fold(data, rows, learn_ensemble(evaluator, rows, seed=seed))
        return out_of_fold(data, rows, learn(data, rows, seed=seed + 1, weights=weights))

    key = f"audit {_key(evaluator, rows, seed, None)}"
    return _remembered(key, lambda: audit_labels(data.y[rows], predict))


def draw_synthetic(
    evaluator: TableEvaluator, rows: Int, *, seed: int, budget: Budget | None = None
) -> Synthetic:
    """Fit the model on some rows, draw records in matrix form, and keep those that pass the filter.

    The plan's wanted records are scaled to the rows. A ``budget`` is that of a pilot.
    """
    key = _key(evaluator, rows, seed, budget)
    return _remembered(key, lambda: _draw_synthetic(evaluator, rows, seed=seed, budget=budget))


def _key(evaluator: TableEvaluator, rows: Int, seed: int, budget: Budget | None) -> str:
    """A name of all that the draws depend on."""
    keys = "".join(evaluator.records.keys[rows].tolist()).encode()
    digest = hashlib.sha256(keys).hexdigest()
    # A fold's draws do not depend on the run's own candidates.
    alone = evaluator.experiment.model_copy(update={"candidates": None})
    return alone.key("draws", effective_budget(budget) if budget else None, digest, seed=seed)


def _draw_synthetic(
    evaluator: TableEvaluator, rows: Int, *, seed: int, budget: Budget | None
) -> Synthetic:
    data = evaluator.records
    fold = stratified_folds(
        data.strata[rows],
        groups=groups_of(data, rows),
        n_folds=VALIDATION_FOLDS,
        seed=seed,
        keys=data.keys[rows],
    )
    training, validation = rows[fold != 0], rows[fold == 0]
    counts = np.bincount(data.strata[training], minlength=len(data.strata_names))
    most = getattr(load_model_class(evaluator.params.model), "max_training_records", 0) or len(
        training
    )
    keys = hash_ids(pa.array(data.keys[training], pa.string()))
    learnt = training[sample_rows(data.strata[training], keys, Sample(most, seed))]
    trained = fit_model(
        TableData(data.X[learnt], data.strata[learnt]),
        table_spec(data.encoder, data.strata[learnt], data.strata_names),
        evaluator.params.model,
        seed,
        budget=budget,
        share=1.0 if budget is None else PILOT_SHARE,
        min_level_records=evaluator.params.quality.min_level_records,
    )
    share = len(rows) / len(data.y)
    names = [
        name for name, n in zip(data.strata_names, counts, strict=True) if n >= MIN_SAMPLED_RECORDS
    ]
    wanted = {
        name: round(n * share)
        for name, n in candidates_wanted(evaluator.plan, evaluator.params.quality, names).items()
    }
    if not wanted:
        return Synthetic(data.X[:0], data.strata[:0])
    candidates, ordinals = _draw_candidates(evaluator, trained, wanted, seed)
    outcome = evaluator.filter(
        FilterQuery(training, validation, candidates, ordinals, seed=seed, share=share)
    )
    order = best_first(outcome, candidates.stratum, ordinals, evaluator.params.quality)
    X, strata = candidates.X[order], candidates.stratum[order]
    if not evaluator.plan.soft_labels:
        return Synthetic(X, strata)
    # None of these rows is predicted, so their ensemble serves the audit and the real records' labels too.
    ensemble = learn_ensemble(evaluator, rows, seed=seed)
    rows_per_class = expand(data, evaluator.plan, training, X, strata, ensemble)
    return Synthetic(X[rows_per_class.rows], rows_per_class.strata, rows_per_class.shares)


def _draw_candidates(
    evaluator: TableEvaluator, model: GenerativeModel, wanted: Mapping[str, int], seed: int
) -> tuple[Labelled, Int]:
    """Candidates of a model with their strata, and each one's ordinal within its stratum."""
    data = evaluator.records
    drawn, codes, ordinals = [], [], []
    taken = evaluator.rules.taken()
    for name, n in wanted.items():
        kept = draw_kept(
            model,
            data.encoder,
            evaluator.rules,
            stratum=name,
            start=0,
            n=n,
            least=0,  # a fold may have fewer
            seeds_of=partial(candidate_seeds, seed, name),
            taken=taken,
        )
        drawn.append(kept.X)
        codes.append(np.full(len(kept.X), data.strata_names.index(name), dtype=np.int64))
        ordinals.append(kept.ordinals)
    return Labelled(np.concatenate(drawn), np.concatenate(codes)), np.concatenate(ordinals)
