"""Privacy: what synthetic records give away about the records that they were made from.

Of our own models the members are fit, and validation says what is expected of records that they never saw.
Another tool may have seen all of the real records: there the hold-out takes validation's place, in its one
reading (:func:`~prefect_augment.experiment.confirmation.confirm`). The outcome is found again by what it was
measured on, so a report or a card that is written later has it too.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from prefect_augment.encoding.arrays import Records as RealRecords
from prefect_augment.evaluation.privacy.distances import Part, Words, privacy_side, summed_up
from prefect_augment.experiment.evaluator import Evaluator
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.params.keys import step_key
from prefect_augment.schema.base import DatasetRef, FilterResult, Modality, ShardInfo
from prefect_augment.schema.experiment import Experiment
from prefect_augment.schema.privacy import Privacy, Records
from prefect_augment.shards.parquet import label_names
from prefect_augment.shards.staged import load_info, read_shards
from prefect_augment.storage.staging import Stage
from prefect_augment.storage.store import Store

__all__ = ["found_privacy", "measure", "measure_external"]

# Of a class and a side: an interval of 2,000 is three points wide. Distances between pictures take longer.
MOST_REAL: dict[Modality, int] = {"table": 2000, "image": 500}
MOST_SYNTHETIC: dict[Modality, int] = {"table": 20_000, "image": 2000}

OF_OUR_OWN = Words(
    members="fit, which they were made from", others="validation, which they were not made from"
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


def measure(experiment: Experiment, drawn: DatasetRef, store: Store) -> Privacy:
    """Attack the records that a model of ours drew, and those of them that were kept.

    Parameters
    ----------
    experiment : Experiment
        With candidates: what was kept. Training and validation are read, the hold-out is not.
    drawn : DatasetRef
        What the model drew.
    store : Store
        The root that they lie under.

    Returns
    -------
    Privacy
        The records that are kept first: those go out.
    """
    filtered = experiment.candidates
    assert filtered is not None
    stage = _stage(store, experiment.dataset, filtered, "validation")

    def attack() -> Privacy:
        evaluator = open_evaluator(store, experiment)
        data = evaluator.records
        return _measured(
            evaluator,
            store,
            {"kept": filtered.kept, "drawn": load_info(drawn, store).shards},
            members=_part(data, np.flatnonzero(~data.is_validation)),
            others=_part(data, np.flatnonzero(data.is_validation)),
            words=OF_OUR_OWN,
        )

    return stage.run(Privacy, attack)


def measure_external(evaluator: Evaluator, holdout: RealRecords, store: Store) -> Privacy:
    """Attack records that another tool made, with the hold-out's records as those it never saw.

    Parameters
    ----------
    evaluator : Evaluator
        Holds the real records; its experiment's candidates are those that were given.
    holdout : Records
        As :func:`~prefect_augment.experiment.confirmation.confirm` has read them.
    store : Store
        The root that they lie under.

    Returns
    -------
    Privacy
        All records first, as they were given.
    """
    filtered = evaluator.experiment.candidates
    assert filtered is not None
    stage = _stage(store, evaluator.experiment.dataset, filtered, "holdout")
    data = evaluator.records
    return stage.finish(
        _measured(
            evaluator,
            store,
            {"drawn": (*filtered.kept, *filtered.dropped), "kept": filtered.kept},
            members=_part(data, np.arange(len(data.y))),
            others=_part(holdout, np.arange(len(holdout.y))),
            words=OF_OTHERS,
            unusable="" if evaluator.info.holdout_uri else NO_HOLDOUT,
        )
    )


def found_privacy(
    store: Store, dataset: DatasetRef, filtered: FilterResult | None
) -> Privacy | None:
    """Return what was measured on these records, None where nothing was."""
    if filtered is None:
        return None
    found = (
        _stage(store, dataset, filtered, o).outcome(Privacy) for o in ("holdout", "validation")
    )
    return next((privacy for privacy in found if privacy is not None), None)


def _stage(store: Store, dataset: DatasetRef, filtered: FilterResult, others: str) -> Stage:
    return Stage(store, "privacy", step_key("privacy", inputs=[dataset.key, filtered.key, others]))


def _measured(
    evaluator: Evaluator,
    store: Store,
    shards: dict[Records, tuple[ShardInfo, ...]],
    *,
    members: Part,
    others: Part,
    words: Words,
    unusable: str = "",
) -> Privacy:
    info, classes = evaluator.info, evaluator.records.classes
    space = evaluator.plain_space(np.concatenate([members.X, others.X]))
    most_real, most_synthetic = MOST_REAL[info.modality], MOST_SYNTHETIC[info.modality]
    columns = [*dict.fromkeys([*(c.name for c in info.columns), info.label])]
    sides, n_most = [], 0
    for records, files in shards.items():
        synthetic = Part(members.X[:0], members.y[:0])
        if files:
            table = read_shards(store, files, columns)
            # They come by what the gate made of them, and of large classes the first are looked at.
            order = np.random.default_rng(0).permutation(table.num_rows)
            X, y = evaluator.encode(table), _codes(table, info.label, classes)
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
