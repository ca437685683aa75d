"""Staged records as arrays, of tables and images alike, and the filter's input and outcome."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.array_types import Array, Bool, Float, Int, String
from prefect_augment.encoding.strata import codes_of, table_strata
from prefect_augment.encoding.subsample import Sample, read_parts
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.params import Quality
from prefect_augment.params.keys import canonical_json
from prefect_augment.schema import BalancePlan, ClassFilter, DatasetInfo, Modality
from prefect_augment.shards.base import label_names
from prefect_augment.shards.staged import read_part
from prefect_augment.storage import Store

TRAINED_ON = ("training", "validation")  # parts
N_FOLDS = 5
N_FEWER_FOLDS = 3  # where a budget does not allow five
# With fewer validation records in the rarest compared class, chance decides, and strategies are compared by folds
# over training + validation. Tables: the standard error of a recall exceeds 3 points. Images, which train
# many times longer: one record is 10 points.
SMALL_VALIDATION: dict[Modality, int] = {"table": 200, "image": 10}


@dataclass(frozen=True)
class Records:
    """Records as arrays: ``X`` of shape (n, ...), everything else of shape (n,)."""

    X: Array
    y: Int  # index into classes; -1 for another class
    strata: Int  # index into strata_names; -1 for another stratum
    keys: String  # aug_id: an order that does not depend on the source's
    content: String  # content_key; duplicates share it
    groups: Int | None  # records of one group stay together in folds and resamples
    is_validation: Bool
    classes: tuple[str, ...]
    strata_names: tuple[str, ...]
    compared: Bool

    @classmethod
    def of(
        cls,
        table: pa.Table,
        X: Array,
        *,
        info: DatasetInfo,
        plan: BalancePlan,
        is_validation: Bool | None = None,
    ) -> "Records":
        """Return the records of a table whose arrays are ``X``, with classes and strata in the plan's order."""
        classes = tuple(dict.fromkeys(c.label for c in plan.classes))
        names = tuple(c.name for c in plan.classes)
        groups = None
        if info.group_column:
            groups = np.unique(
                np.array(label_names(table[info.group_column]), dtype=object).astype(str),
                return_inverse=True,
            )[1]
        none = np.zeros(table.num_rows, dtype=bool)
        return Records(
            X=X,
            y=codes_of(label_names(table[info.label]), classes),
            strata=codes_of(table_strata(table, label=info.label, by=by_columns(plan)), names),
            keys=_texts(table, "aug_id"),
            content=_texts(table, "content_key"),
            groups=groups,
            is_validation=none if is_validation is None else is_validation,
            classes=classes,
            strata_names=names,
            compared=np.array([name in info.compared for name in classes]),
        )

    def labelled(self, rows: Int) -> "Labelled":
        """Return some records with their strata."""
        return Labelled(self.X[rows], self.strata[rows])

    def class_of_stratum(self, plan: BalancePlan) -> Int:
        """Return the class index of each stratum."""
        return np.array([self.classes.index(c.label) for c in plan.classes], dtype=np.int64)


def by_columns(plan: BalancePlan) -> tuple[str, ...]:
    """Return the names of the ``balance.by`` columns."""
    return tuple(plan.classes[0].by) if plan.classes else ()


def training_table(store: Store, info: DatasetInfo) -> tuple[pa.Table, Bool]:
    """Return training and validation, sorted by key, and which of them are validation; the hold-out is not read."""
    return by_key(*(read_part(store, info, [part]) for part in TRAINED_ON))


def by_key(training: pa.Table, validation: pa.Table) -> tuple[pa.Table, Bool]:
    """Return both, sorted by key, and which of them are validation."""
    table = pa.concat_tables([training, validation])
    is_validation = np.repeat([False, True], [training.num_rows, validation.num_rows])
    order = pc.sort_indices(table, sort_keys=[("aug_id", "ascending")])
    return table.take(order), is_validation[order.to_numpy()]


# All strategies of a run read the same records, some from several threads.
_recent: OrderedDict[tuple[str, str, bytes, Sample], Any] = OrderedDict()
_recent_lock = Lock()
MAX_RECENT = 2

R = TypeVar("R", bound=Records)


def recent(
    store: Store, info: DatasetInfo, plan: BalancePlan, read: Callable[[], R], sample: Sample
) -> R:
    """Return the training records, or a sample of them, read once for all strategies of a run."""
    key = (store.uri, info.digest + info.key, canonical_json(list(plan.classes)), sample)
    with _recent_lock:
        if key not in _recent:
            _recent[key] = read()
        _recent.move_to_end(key)
        while len(_recent) > MAX_RECENT:
            _recent.popitem(last=False)
        result: R = _recent[key]
        return result


def _texts(table: pa.Table, column: str) -> String:
    if column not in table.column_names:
        return np.zeros(table.num_rows, dtype="U32")
    return np.array(table.column(column).to_pylist(), dtype="U32")


@dataclass(frozen=True)
class Matrix(Records):
    """Records in matrix form: ``X`` is float64 (n, n_columns) of the learnt columns, NaN for null."""

    encoder: TableEncoder

    @property
    def is_category(self) -> Bool:
        """Which columns hold level codes."""
        return self.encoder.is_category

    @property
    def n_levels(self) -> Int:
        """Levels per column; 0 for numeric ones."""
        return self.encoder.n_levels


def training_matrix(store: Store, info: DatasetInfo, plan: BalancePlan, sample: Sample) -> Matrix:
    """Return training and validation, or a sample of them, in matrix form, sorted by key.

    Only they fit the encoder.
    """

    def read() -> Matrix:
        by = by_columns(plan)
        table, is_validation = by_key(*read_parts(store, info, TRAINED_ON, by=by, sample=sample))
        encoder = TableEncoder.fit(table, columns=info.columns, label=info.label, by=by)
        return to_matrix(table, info=info, plan=plan, encoder=encoder, is_validation=is_validation)

    return recent(store, info, plan, read, sample)


def to_matrix(
    table: pa.Table,
    *,
    info: DatasetInfo,
    plan: BalancePlan,
    encoder: TableEncoder,
    is_validation: Bool | None = None,
) -> Matrix:
    """Encode ``table``, with classes and strata in the plan's order."""
    X = encoder.encode(table)
    records = Records.of(table, X, info=info, plan=plan, is_validation=is_validation)
    return Matrix(**vars(records), encoder=encoder)


# soft: for utility, where a record may have several classes.
Purpose = Literal["utility", "faithful", "soft"]


@dataclass(frozen=True)
class Labelled:
    """Records as an array with the stratum of each.

    ``X`` is a table's matrix, float64 (n, n_columns), NaN for null and level codes for categories; or
    images, uint8 (n, height, width, channels). ``stratum`` is int64 (n,).
    """

    X: Array
    stratum: Int

    def __len__(self) -> int:
        return len(self.X)


@dataclass(frozen=True)
class FilterOutcome:
    """The filter's decision on each candidate, in input order; arrays of shape (n_candidates,)."""

    passed: Bool  # every check
    kept: Bool  # passed, and within the number requested
    reason: String  # empty where kept, else one of record_filter.REASONS
    score: Float  # probability of the wanted class; 0 for soft labels, which need none
    strata: tuple[ClassFilter, ...]
    feature_space: str  # where distances were measured
    notes: tuple[str, ...]  # what could not be checked, and why
    metrics: Mapping[str, float]  # of the kept records of all strata


@dataclass(frozen=True)
class FilterRequest:
    """Parameters of ``filter_records`` beside the records, for every modality.

    A quantile is the share of real records that the check would drop; 0 drops only what lies beyond
    all validation records. Without ``metrics`` and ``drop_unsafe`` classes are not tested as a whole.
    """

    strata: Sequence[str]  # names in code order
    stratum_class: Int  # (n_strata,) class code of each stratum
    wanted: Int  # (n_strata,) records to keep at most
    ordinals: Int  # (n_candidates,) place of each candidate in its stratum
    training_keys: Sequence[str] | String  # decide the halves of the two classifiers
    training_groups: Any = None  # records of a group stay in one half
    validation_groups: Any = None
    in_domain: Bool | None = None  # (n_candidates,)
    purpose: Purpose = "utility"
    seed: int = 0
    metrics: bool = True
    quality: Quality = Quality()
    drop_unsafe: bool = False
