"""Privacy: what synthetic records give away about the records that they were made from.

Of our own models the members are fit, and val says what is expected of records that they never saw.
Another tool may have seen all of the real records: there the hold-out takes val's place, in its one
reading (:func:`~prefect_augment.experiment.confirmation.verify`). The outcome is found again by what it was
measured on, so a report or a card that is written later has it too.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from prefect_augment.encoding.arrays import Records as RealRecords
from prefect_augment.evaluation.privacy.distances import Part, Words, privacy_side, summed_up
from prefect_augment.experiment.evaluator import Workbench
from prefect_augment.experiment.open_evaluator import open_bench
from prefect_augment.schema.base import BalancePlan, DatasetRef, GateReport, Modality, ShardFact
from prefect_augment.schema.privacy import Privacy, Records
from prefect_augment.shards.parquet import label_names
from prefect_augment.shards.staged import load_facts, read_shards
from prefect_augment.storage.staging import Stage, stage_key
from prefect_augment.storage.store import Store

__all__ = ["found_privacy", "measure", "measure_given"]

ALGORITHM_VERSION = 2
# Of a class and a side: an interval of 2,000 is three points wide. Distances between pictures take longer.
MOST_REAL: dict[Modality, int] = {"table": 2000, "image": 500}
MOST_SYNTHETIC: dict[Modality, int] = {"table": 20_000, "image": 2000}

OF_OUR_OWN = Words(
    members="fit, which they were made from", others="val, which they were not made from"
)
OF_OTHERS = Words(
    members="the source, which they were made from",
    others="the hold-out, which they were not made from",
)
NO_HOLDOUT = (
    "What the synthetic records give away could not be measured: no hold-out of its own was given, so the records "
    "held out here may be among those that they were made from. Give --holdout (source.holdout_uri) with real "
    "records that whoever made them never had."
)


def measure(
    dataset: DatasetRef,
    candidates: DatasetRef,
    judged: GateReport,
    *,
    plan: BalancePlan,
    store: Store,
) -> Privacy:
    """Attack the records that a model of ours drew, and those of them that were kept.

    Parameters
    ----------
    dataset : DatasetRef
        Fit and val are read, the hold-out is not.
    candidates : DatasetRef
        What was drawn.
    judged : GateReport
        What was kept of it.
    plan : BalancePlan
        Names the classes.

    Returns
    -------
    Privacy
        The records that are kept first: those go out.
    """
    stage = _stage(store, dataset, judged, "val")
    found = stage.outcome(Privacy)
    if found is not None:
        return found
    bench = open_bench(store, load_facts(dataset, store), plan)
    data = bench.records
    return stage.finish(
        _measured(
            bench,
            store,
            {"kept": judged.kept, "drawn": load_facts(candidates, store).shards},
            members=_part(data, np.flatnonzero(~data.is_val)),
            others=_part(data, np.flatnonzero(data.is_val)),
            words=OF_OUR_OWN,
        )
    )


def measure_given(
    dataset: DatasetRef, judged: GateReport, bench: Workbench, holdout: RealRecords, store: Store
) -> Privacy:
    """Attack records that another tool made, with the hold-out's records as those it never saw.

    Parameters
    ----------
    dataset : DatasetRef
    judged : GateReport
        Of the records that were given.
    bench : Workbench
        Holds the real records.
    holdout : Records
        As :func:`~prefect_augment.experiment.confirmation.verify` has read them.

    Returns
    -------
    Privacy
        All records first, as they were given.
    """
    stage = _stage(store, dataset, judged, "holdout")
    data = bench.records
    return stage.finish(
        _measured(
            bench,
            store,
            {"drawn": (*judged.kept, *judged.dropped), "kept": judged.kept},
            members=_part(data, np.arange(len(data.y))),
            others=_part(holdout, np.arange(len(holdout.y))),
            words=OF_OTHERS,
            unusable="" if bench.facts.holdout_uri else NO_HOLDOUT,
        )
    )


def found_privacy(store: Store, dataset: DatasetRef, judged: GateReport | None) -> Privacy | None:
    """Return what was measured on these records, None where nothing was."""
    if judged is None:
        return None
    found = (_stage(store, dataset, judged, o).outcome(Privacy) for o in ("holdout", "val"))
    return next((privacy for privacy in found if privacy is not None), None)


def _stage(store: Store, dataset: DatasetRef, judged: GateReport, others: str) -> Stage:
    inputs = [dataset.key, judged.key]
    key = stage_key("privacy", algorithm_version=ALGORITHM_VERSION, params=others, inputs=inputs)
    return Stage(store, "privacy", key)


def _measured(
    bench: Workbench,
    store: Store,
    shards: dict[Records, tuple[ShardFact, ...]],
    *,
    members: Part,
    others: Part,
    words: Words,
    unusable: str = "",
) -> Privacy:
    facts, classes = bench.facts, bench.records.classes
    space = bench.plain_space(np.concatenate([members.X, others.X]))
    most_real, most_synthetic = MOST_REAL[facts.modality], MOST_SYNTHETIC[facts.modality]
    columns = [*dict.fromkeys([*(c.name for c in facts.columns), facts.label])]
    sides, n_most = [], 0
    for records, files in shards.items():
        synthetic = Part(members.X[:0], members.y[:0])
        if files:
            table = read_shards(store, files, columns)
            # They come by what the gate made of them, and of large classes the first are looked at.
            order = np.random.default_rng(0).permutation(table.num_rows)
            X, y = bench.encode(table), _codes(table, facts.label, classes)
            synthetic = Part(X[order], y[order])
            n_most = max(n_most, int(np.bincount(y[y >= 0], minlength=1).max()))
        sides.append(
            privacy_side(
                records,
                members,
                others,
                synthetic,
                classes=classes,
                space=space,
                most_real=most_real,
                most_synthetic=most_synthetic,
                words=words,
            )
        )
    notes = []
    if max(np.bincount(part.y[part.y >= 0], minlength=1).max() for part in (members, others)) > (
        most_real
    ):
        notes.append(
            f"Of each class the first {most_real:,} real records of a side were looked at, in the order of "
            "their ids, which is an order by chance."
        )
    if n_most > most_synthetic:
        notes.append(
            f"Of each class {most_synthetic:,} synthetic records were looked at, drawn by chance."
        )
    return summed_up(sides, words=words, feature_space=space.name, notes=notes, unusable=unusable)


def _codes(table: pa.Table, label: str, classes: tuple[str, ...]) -> np.ndarray:
    index = {name: k for k, name in enumerate(classes)}
    return np.array([index.get(name, -1) for name in label_names(table[label])], dtype=np.int64)


def _part(records: RealRecords, rows: np.ndarray) -> Part:
    """Real records; equal ones are a group where there is no other."""
    groups = records.groups
    if groups is None:
        groups = np.unique(records.content, return_inverse=True)[1]
    return Part(records.X[rows], records.y[rows], groups[rows])
