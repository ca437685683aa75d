"""The workbench: what judging needs to know of a kind of data.

Scoring, gating and the verdict are written once, over this protocol. Tables bring a
:class:`~prefect_augment.stages.table_bench.TableBench`, images an
:class:`~prefect_augment.stages.image_bench.ImageBench`, which is imported on use: it needs torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.datatypes import Arm, BalancePlan, DatasetFacts, GateReport
from prefect_augment.encoding.strata import table_strata
from prefect_augment.errors import MissingExtraError
from prefect_augment.evaluation.candidates import GateOutcome
from prefect_augment.evaluation.neighbours import Space
from prefect_augment.params import AutoModel, Classic, Gate, ModelParams
from prefect_augment.reading.staged import read_shards
from prefect_augment.stages.parts import Question
from prefect_augment.stages.records import Records, by_columns
from prefect_augment.stages.soft import SHARE
from prefect_augment.storage import Store

__all__ = ["Synthetic", "Wishes", "Workbench", "kept_synthetic", "open_bench"]

Int = NDArray[np.int64]


class Synthetic(NamedTuple):
    """Synthetic records for arms.

    Attributes
    ----------
    X : ndarray, shape (n, ...)
        Best first within a stratum.
    strata : ndarray of int64, shape (n,)
    shares : ndarray of float64, shape (n,), optional
        What each counts, where a record may stand for several classes; else each counts 1.
    """

    X: NDArray[Any]
    strata: Int
    shares: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Wishes:
    """What was asked of the comparison."""

    gate: Gate = Gate()
    classic: Classic = Classic()
    model: ModelParams = AutoModel()
    device: str = "auto"  # where networks compute


class Workbench(Protocol):
    """Records of one kind, and how they are read, learnt and judged."""

    facts: DatasetFacts
    plan: BalancePlan

    @property
    def records(self) -> Records:
        """Fit and val, sorted by key."""
        ...

    @property
    def learners(self) -> tuple[str, ...]:
        """Names of the classifiers that judge an arm."""
        ...

    def read(self, table: pa.Table) -> Records:
        """Staged records of another part."""
        ...

    def encode(self, table: pa.Table) -> NDArray[Any]:
        """The array form of records alone."""
        ...

    def folds(self, *, seed: int, has_candidates: bool) -> Int:
        """Fold of each record whose predictions are scored; -1 for records that only train.

        ``has_candidates`` says that a model's candidates are compared in this run.
        """
        ...

    def is_fixed(self, arm: Arm) -> bool:
        """Whether another seed trains the same learners on the same records again."""
        ...

    def synthetic(self, rows: Int, *, given: Synthetic | None, seed: int) -> Synthetic:
        """Synthetic records for an arm that trains on ``rows``, best first within a stratum.

        ``given`` are those that the run's own model drew and the gate kept.
        """
        ...

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
        """Train each learner on the arm made of ``rows``; yield its name and probabilities of ``X``.

        ``effort`` is the share of its steps that a learner takes, where it is trained in steps.
        """
        ...

    def plain_space(self, X: NDArray[Any]) -> Space:
        """Where distances are measured that may not know which records trained anything."""
        ...

    def gate(self, question: Question) -> GateOutcome:
        """Hold candidates against real records."""
        ...


def open_bench(
    store: Store, facts: DatasetFacts, plan: BalancePlan, wishes: Wishes | None = None
) -> Workbench:
    """Return the workbench for staged records.

    Raises
    ------
    MissingExtraError
        If the records are images and torch or Pillow is not installed.
    """
    kind = "image" if facts.modality == "image" else "table"
    try:
        module = importlib.import_module(f"prefect_augment.stages.{kind}_bench")
    except ModuleNotFoundError as exc:
        if kind == "table" or (exc.name or "").partition(".")[0] == "prefect_augment":
            raise
        raise MissingExtraError(
            f"judging images needs {exc.name}: pip install 'prefect-augment[images,torch]'",
            extra="images,torch",
        ) from exc
    bench: Workbench = module.open_bench(store, facts, plan, wishes or Wishes())
    return bench


def kept_synthetic(
    bench: Workbench, store: Store, report: GateReport | None, *, with_dropped: bool = False
) -> Synthetic | None:
    """Return the candidates that passed the gate as arrays: best first within a stratum.

    Records that another tool made are judged as they are, ``with_dropped``: with what our gate
    would drop.
    """
    if report is None:
        return None
    shards = report.kept + (report.dropped if with_dropped else ())
    if not shards:
        return None
    # What is kept has a rank and what is dropped a reason; only the source's columns are common.
    facts = bench.facts
    soft = [SHARE] if report.shares and not with_dropped else []
    columns = [*dict.fromkeys([*(c.name for c in facts.columns), facts.label, *soft])]
    table = read_shards(store, shards, columns)
    index = {name: i for i, name in enumerate(bench.records.strata_names)}
    strata = table_strata(table, label=facts.label, by=by_columns(bench.plan))
    return Synthetic(
        bench.encode(table),
        np.array([index[s] for s in strata], dtype=np.int64),
        table[SHARE].to_numpy() if soft else None,
    )
