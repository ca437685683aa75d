"""What travels to the gate and back: records with their strata, what is asked, what became of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray

from prefect_augment.datatypes import ClassGate
from prefect_augment.evaluation.class_gates import Limits

__all__ = ["Asked", "GateOutcome", "Labelled", "Purpose"]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]
# soft: for utility, where a record may stand for several classes.
Purpose = Literal["utility", "faithful", "soft"]


@dataclass(frozen=True)
class Labelled:
    """Records as an array with the stratum of each.

    Attributes
    ----------
    X : ndarray, shape (n_records, ...)
        A table's matrix form, float64 of shape (n_records, n_columns), with NaN for null and level
        codes in category columns; or images, uint8 of shape (n_records, height, width, channels).
    stratum : ndarray of int64, shape (n_records,)
    """

    X: NDArray[Any]
    stratum: Int

    def __len__(self) -> int:
        return len(self.X)


@dataclass(frozen=True)
class GateOutcome:
    """What became of each candidate, in the order given.

    Attributes
    ----------
    passed : ndarray of bool, shape (n_candidates,)
        Passed every check.
    kept : ndarray of bool, shape (n_candidates,)
        Passed, and among those wanted.
    reason : ndarray of str, shape (n_candidates,)
        Empty where kept, else one of :data:`~prefect_augment.evaluation.gates.REASONS`.
    score : ndarray of float64, shape (n_candidates,)
        Probability of the wanted class by the utility filter; 0 for soft labels, which need none.
    strata : tuple of ClassGate
        Counts, reasons and metrics of each stratum that was asked for or has candidates.
    feature_space : str
        Where distances were measured.
    notes : tuple of str
        What could not be checked, and why.
    """

    passed: Bool
    kept: Bool
    reason: NDArray[np.str_]
    score: Float
    strata: tuple[ClassGate, ...]
    feature_space: str
    notes: tuple[str, ...]


class Asked(TypedDict):
    """What ``gate_records`` is asked, beside the records: the same for every kind of data."""

    strata: Sequence[str]
    stratum_class: Int
    wanted: Int
    ordinals: Int
    fit_keys: Sequence[str] | NDArray[np.str_]
    fit_groups: NotRequired[Any]
    val_groups: NotRequired[Any]
    in_domain: NotRequired[Bool | None]
    purpose: NotRequired[Purpose]
    near_copy_quantile: NotRequired[float]
    fidelity_quantile: NotRequired[float]
    seed: NotRequired[int]
    metrics: NotRequired[bool]
    limits: NotRequired[Limits]
    drop_unsafe: NotRequired[bool]
