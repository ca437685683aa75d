"""What differs between tables and images in a comparison.

Scoring, filtering and the verdict are written once, over :class:`Evaluator`. Tables bring a
:class:`~prefect_augment.experiment.table_evaluator.TableEvaluator`, images an
:class:`~prefect_augment.experiment.image_evaluator.ImageEvaluator`, which is imported on use: it needs torch.
"""

import io
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Array, Bool, Float, Float32, Int
from prefect_augment.encoding.arrays import (
    TRAINED_ON,
    FilterOutcome,
    FilterRequest,
    Labelled,
    Records,
    by_columns,
)
from prefect_augment.encoding.strata import table_strata
from prefect_augment.encoding.subsample import LEAST_OF_CLASS, Sample, read_parts
from prefect_augment.evaluation.folds import stratified_folds
from prefect_augment.evaluation.metrics.chosen_measure import measure_of
from prefect_augment.evaluation.metrics.measures import Measure
from prefect_augment.evaluation.neighbours import Space
from prefect_augment.evaluation.quality.near_copies import Measures
from prefect_augment.evaluation.quality.record_filter import filter_records
from prefect_augment.params import Quality, RunParams
from prefect_augment.registry import resolve_model
from prefect_augment.schema import (
    BalancePlan,
    DatasetInfo,
    EstimatorInfo,
    Experiment,
    Result,
    Strategy,
)
from prefect_augment.shards.staged import read_shards
from prefect_augment.storage import Stage, Store
from prefect_augment.synthesis.soft_labels import SHARE


class Synthetic(NamedTuple):
    """Synthetic records for strategies, best first within a stratum."""

    X: Array  # (n, ...)
    strata: Int
    shares: Float | None = None  # weights with soft labels; without, each counts 1


@dataclass(frozen=True)
class Evaluator(ABC):
    """Records of one kind of data: reading, encoding, folds, training and filtering."""

    experiment: Experiment  # records, plan and parameters of the comparison
    info: DatasetInfo  # the staged dataset
    records: Records  # training and validation, sorted by key

    @property
    def plan(self) -> BalancePlan:
        """The experiment's plan: amounts per class."""
        return self.experiment.plan

    @property
    def params(self) -> RunParams:
        """The experiment's parameters."""
        return self.experiment.params

    @property
    @abstractmethod
    def estimators(self) -> tuple[str, ...]:
        """Names of the classifiers that a strategy trains."""

    @property
    @abstractmethod
    def estimator_infos(self) -> dict[str, EstimatorInfo]:
        """Package, version and digest of each of them, by name."""

    @abstractmethod
    def try_estimators(self) -> None:
        """Raise ParameterError for an estimator of the user's that fails on the first records."""

    @abstractmethod
    def read(self, table: pa.Table) -> Records:
        """Staged records of another part."""

    def read_holdout(self, store: Store) -> tuple[Records, pa.Table]:
        """The hold-out's records, or a sample, and a table of them with at least the ``balance.by`` columns."""
        by, sample = by_columns(self.plan), compared_sample(self.experiment)
        (table,) = read_parts(store, self.info, ["holdout"], by=by, sample=sample)
        return self.read(table), table

    @abstractmethod
    def encode(self, table: pa.Table) -> Array:
        """The array form of records alone."""

    def features(self, X: Array) -> Float32:
        """Features of records by the user's encoder, shape (n, n_features); of images alone."""
        raise TypeError("an encoder is for images")

    @abstractmethod
    def folds(self, *, seed: int, has_candidates: bool) -> Int:
        """Fold of each record whose predictions are scored; -1 for records that only train.

        ``has_candidates``: a model's candidates are compared in this run.
        """

    @abstractmethod
    def is_fixed(self, strategy: Strategy) -> bool:
        """Whether every seed trains the same estimators on the same records."""

    def synthetic(self, rows: Int, *, candidates: Synthetic | None, seed: int) -> Synthetic:
        """Synthetic records for a strategy that trains on ``rows``, best first within a stratum.

        ``candidates`` are those that the run's own model drew and the filter kept, the same under every seed.
        """
        return candidates or Synthetic(self.records.X[:0], self.records.strata[:0])

    @abstractmethod
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
        """Train each estimator on the strategy made of ``rows``; yield its name and probabilities of ``X``.

        ``step_share`` is the share of the steps that an estimator trains for, if it trains in steps.
        """

    @abstractmethod
    def plain_space(self, X: Array) -> Space:
        """A space of distances that does not depend on which records trained anything."""

    @property
    def is_sampled(self) -> bool:
        """Whether the records are a sample of a larger dataset's."""
        return bool(sampled_note(self))

    def with_model_records(self) -> "Evaluator":
        """Itself, with the training records that the run's model has seen where its own are another sample."""
        return self

    @abstractmethod
    def measures(self, training: Labelled, stratum_class: Int, seed: int) -> Measures:
        """How the filter measures records, made from training records."""

    def in_domain(self, query: "FilterQuery") -> Bool | None:
        """Which candidates are within the domain, shape (n_candidates,); None: all are."""
        return None

    def filter(self, query: "FilterQuery") -> FilterOutcome:
        """Check candidates against real records."""
        records, quality = self.records, self.params.quality
        training, stratum_class = (
            records.labelled(query.training),
            records.class_of_stratum(self.plan),
        )
        counts = [round(c.n_synthetic * query.share) for c in self.plan.classes]
        request = FilterRequest(
            strata=records.strata_names,
            stratum_class=stratum_class,
            wanted=np.array(counts, dtype=np.int64),
            ordinals=query.ordinals,
            training_keys=records.keys[query.training],
            training_groups=groups_of(records, query.training),
            validation_groups=groups_of(records, query.validation),
            in_domain=self.in_domain(query),
            purpose="soft" if self.plan.soft_labels else quality.purpose,
            seed=query.seed,
            metrics=query.metrics,
            quality=quality,
            # Only for the whole run's candidates: a fold has too few real records.
            drop_unsafe=query.metrics and quality.on_unsafe_class == "drop",
        )
        measures = self.measures(training, stratum_class, query.seed)
        validation = records.labelled(query.validation)
        return filter_records(training, validation, query.candidates, request, measures=measures)


class StoredArray(Result):
    """The receipt of an array that is staged beside it."""

    path: str

    @classmethod
    def of(cls, stage: Stage, name: str, make: Callable[[], Array]) -> "StoredArray":
        """Stage the array of ``make``, or find it."""

        def build() -> StoredArray:
            buffer, path = io.BytesIO(), f"{stage.prefix}/{name}.npy"
            np.save(buffer, make(), allow_pickle=False)
            stage.store.put(path, buffer.getvalue())
            return cls(path=path)

        return stage.run(cls, build)

    def load(self, store: Store) -> Array:
        """The array."""
        stored = io.BytesIO(store.read(self.path))
        return np.asarray(np.load(stored, allow_pickle=False))


def kept_synthetic(
    evaluator: Evaluator, store: Store, *, with_dropped: bool = False
) -> Synthetic | None:
    """The candidates that passed the filter as arrays, best first within a stratum; None without any.

    External records are evaluated as they are, ``with_dropped``.
    """
    report = evaluator.experiment.candidates
    if report is None:
        return None
    shards = report.kept + (report.dropped if with_dropped else ())
    if not shards:
        return None
    # Kept records have a rank and dropped ones a reason; only the source's columns are common.
    info = evaluator.info
    share_column = [SHARE] if report.shares and not with_dropped else []
    columns = [*dict.fromkeys([*(c.name for c in info.columns), info.label, *share_column])]
    table = read_shards(store, shards, columns)
    index = {name: i for i, name in enumerate(evaluator.records.strata_names)}
    strata = table_strata(table, label=info.label, by=by_columns(evaluator.plan))
    return Synthetic(
        evaluator.encode(table),
        np.array([index[s] for s in strata], dtype=np.int64),
        table[SHARE].to_numpy() if share_column else None,
    )


def compared_sample(experiment: Experiment) -> Sample:
    """The records that strategies are compared on: of larger tables a sample that keeps the class frequencies."""
    return Sample(experiment.max_compared, experiment.params.seed, equal=False)


def sampled_note(evaluator: Evaluator, holdout: Records | None = None) -> str:
    """How many records of a larger table were compared, as a sentence; empty where it was all of them."""
    if not evaluator.experiment.max_compared:
        return ""
    used: dict[tuple[str, ...], Records] = {TRAINED_ON: evaluator.records}
    if holdout is not None:
        used["holdout",] = holdout
    n_of = Counter[str]()
    for shard in evaluator.info.shards:
        n_of[shard.split] += shard.n_records
    sampled = [
        f"{len(records.y):,} of {n:,} {' and '.join(parts)} records"
        for parts, records in used.items()
        if len(records.y) < (n := sum(n_of[part] for part in parts))
    ]
    if not sampled:
        return ""
    return (
        f"Strategies were compared on {' and '.join(sampled)}. They are chosen by their ids and the seed: of each "
        f"class its share, and at least {LEAST_OF_CLASS:,} where it has them."
    )


def has_candidates(experiment: Experiment) -> bool:
    """Whether a model's candidates are compared in this run: those there are, or those that are planned."""
    kind = resolve_model(experiment.params.model, modality=experiment.dataset.modality)
    return experiment.candidates is not None or bool(kind and experiment.plan.n_synthetic)


def chosen_measure(evaluator: Evaluator) -> Measure:
    """The measure that decides the comparison (``evaluation.metric``), the same on every part of the data."""
    data = evaluator.records
    return measure_of(
        evaluator.experiment.params.evaluation.metric,
        classes=data.classes,
        compared=data.compared,
        counts=np.bincount(data.y, minlength=len(data.classes)),
    )


def rarest_in_validation(records: Records) -> int:
    """Validation records of the rarest compared class; 0 where no class is compared."""
    compared = np.flatnonzero(records.compared)
    return min((int(np.sum(records.is_validation & (records.y == k))) for k in compared), default=0)


def score_folds(records: Records, *, n_folds: int, seed: int) -> Int:
    """Fold of each record; with one fold, validation is 0 and training, which is not scored, is -1."""
    if n_folds == 1:
        return np.where(records.is_validation, 0, -1)
    return stratified_folds(
        records.strata, groups=records.groups, n_folds=n_folds, seed=seed, keys=records.keys
    )


def groups_of(records: Records, rows: Int) -> Int | None:
    """Groups of some records, where there are groups."""
    return None if records.groups is None else records.groups[rows]


@dataclass(frozen=True)
class FilterQuery:
    """Candidates to check against real records."""

    training: Int  # rows of the evaluator's records that the model was trained on
    validation: Int  # other rows
    candidates: Labelled
    ordinals: Int  # (n_candidates,) place within the stratum
    seed: int
    share: float = 1.0  # scales the plan's wanted records to the part in use
    metrics: bool = False  # also measure what is only reported


def best_first(outcome: FilterOutcome, strata: Int, ordinals: Int, quality: Quality) -> Int:
    """Kept candidates by stratum and rank, so that a smaller amount is a prefix of a larger one."""
    # With soft labels all scores are 0, and the ordinals decide.
    first = -outcome.score if quality.purpose == "utility" else np.zeros(len(ordinals))
    order = np.lexsort((ordinals, first, strata))
    return order[outcome.kept[order]]
