"""How records of one kind of data are measured, for the gate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from prefect_augment.evaluation.fidelity import TrainClassifier
from prefect_augment.evaluation.neighbours import Space

__all__ = ["Measures"]


@dataclass(frozen=True)
class Measures:
    """How records of one kind of data are measured.

    Attributes
    ----------
    space : Space
        Where distances are measured.
    train : callable
        Returns a class-balanced classifier of records and their class codes.
    two_sample : callable, optional
        AUC of a classifier that tells real records (first argument) and synthetic ones apart.
    moved : Space, optional
        A second measure, in which copies that were moved a little are near too.
    hashes : callable, optional
        Codes of records, shape (n,), that are equal where records look alike from afar.
    """

    space: Space
    train: TrainClassifier
    two_sample: Callable[[NDArray[Any], NDArray[Any]], float] | None
    moved: Space | None = None
    hashes: Callable[[NDArray[Any]], NDArray[Any]] | None = None

    @property
    def name(self) -> str:
        """What the report calls the measures of distance."""
        also = f"; near copies also by: {self.moved.name}" if self.moved else ""
        return self.space.name + also
