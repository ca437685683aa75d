"""Privacy: what synthetic records reveal about the records that they were made from.

For our own models training records are the members, and validation shows what to expect of records
that they never saw. Another tool may have seen all of these: there the hold-out takes validation's
place, in its one reading (:func:`~prefect_augment.experiment.confirmation.confirm`). Results are
stored under what they were measured on, so that a later report or card finds them.
"""

from functools import partial

import numpy as np

from prefect_augment.encoding.arrays import Records as RealRecords
from prefect_augment.encoding.strata import codes_of
from prefect_augment.evaluation.privacy.distances import Part, SideNames, privacy_side, summarise
from prefect_augment.experiment.evaluator import Evaluator
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.params.keys import step_key
from prefect_augment.schema import (
    DatasetRef,
    Experiment,
    FilterResult,
    Modality,
    Privacy,
    Records,
    ShardInfo,
)
from prefect_augment.shards.base import label_names
from prefect_augment.shards.staged import load_info, read_shards
from prefect_augment.storage import Stage, Store

# Records of a class and side: with 2,000 the interval is three points wide. Images take longer.
MAX_REAL: dict[Modality, int] = {"table": 2000, "image": 500}
MAX_SYNTHETIC: dict[Modality, int] = {"table": 20_000, "image": 2000}

OWN_MODEL = SideNames(
    members="training, which they were made from",
    others="validation, which they were not made from",
)
EXTERNAL = SideNames(
    members="the source, which they were made from",
    others="the hold-out, which they were not made from",
)
NO_HOLDOUT = (
    "Privacy could not be measured: without a hold-out of your own, the records held out here may be among those "
    "that the synthetic records were made from. Set --holdout (source.holdout_uri) to real records that their "
    "maker never had."
)


def measure(experiment: Experiment, drawn: DatasetRef, store: Store) -> Privacy:
    """Attack the records that our own model drew (``drawn``), and those of them that were kept.

    Kept records come first in the result, since those are published. Training and validation are
    read, the hold-out is not.
    """
    filtered = experiment.candidates
    assert filtered is not None
    stage = _stage(store, experiment.dataset, filtered, "validation")

    def attack() -> Privacy:
        evaluator = open_evaluator(store, experiment).with_model_records()
        data = evaluator.records
        return _measured(
            evaluator,
            store,
            {"kept": filtered.kept, "drawn": load_info(drawn, store).shards},
            members=_part(data, np.flatnonzero(~data.is_validation)),
            others=_part(data, np.flatnonzero(data.is_validation)),
            names=OWN_MODEL,
        )

    return stage.run(Privacy, attack)


def measure_external(evaluator: Evaluator, holdout: RealRecords, store: Store) -> Privacy:
    """Attack another tool's records, with the hold-out's records as those it never saw."""
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
            names=EXTERNAL,
            why_blind="" if evaluator.info.holdout_uri else NO_HOLDOUT,
        )
    )


def stored_privacy(
    store: Store, dataset: DatasetRef, filtered: FilterResult | None
) -> Privacy | None:
    """The measurement of these records, None where there is none."""
    if filtered is None:
        return None
    outcomes = (
        _stage(store, dataset, filtered, o).outcome(Privacy) for o in ("holdout", "validation")
    )
    return next((privacy for privacy in outcomes if privacy is not None), None)


def _stage(store: Store, dataset: DatasetRef, filtered: FilterResult, others: str) -> Stage:
    return Stage(store, "privacy", step_key("privacy", inputs=[dataset.key, filtered.key, others]))


def _measured(
    evaluator: Evaluator,
    store: Store,
    shards: dict[Records, tuple[ShardInfo, ...]],
    *,
    members: Part,
    others: Part,
    names: SideNames,
    why_blind: str = "",
) -> Privacy:
    info, classes = evaluator.info, evaluator.records.classes
    space = evaluator.plain_space(np.concatenate([members.X, others.X]))
    max_real, max_synthetic = MAX_REAL[info.modality], MAX_SYNTHETIC[info.modality]
    columns = [*dict.fromkeys([*(c.name for c in info.columns), info.label])]
    side_of = partial(
        privacy_side, classes=classes, space=space, max_real=max_real, max_synthetic=max_synthetic,
        names=names,
    )  # fmt: skip
    sides, n_largest = [], 0
    for records, files in shards.items():
        synthetic = Part(members.X[:0], members.y[:0])
        if files:
            table = read_shards(store, files, columns)
            # They are sorted by the filter's result, and only the first of large classes count.
            order = np.random.default_rng(0).permutation(table.num_rows)
            X, y = evaluator.encode(table), codes_of(label_names(table[info.label]), classes)
            synthetic = Part(X[order], y[order])
            n_largest = max(n_largest, int(np.bincount(y[y >= 0], minlength=1).max()))
        sides.append(side_of(records, members, others, synthetic))
    notes = []
    sizes = [np.bincount(part.y[part.y >= 0], minlength=1).max() for part in (members, others)]
    if max(sizes) > max_real:
        notes.append(
            f"The first {max_real:,} real records of each class and side were compared, in the order of "
            "their ids, which is random."
        )
    if n_largest > max_synthetic:
        notes.append(f"A random {max_synthetic:,} synthetic records of each class were compared.")
    return summarise(sides, names=names, feature_space=space.name, notes=notes, why_blind=why_blind)


def _part(records: RealRecords, rows: np.ndarray) -> Part:
    """Real records; equal ones are a group where there are no others."""
    groups = records.groups
    if groups is None:
        groups = np.unique(records.content, return_inverse=True)[1]
    return Part(records.X[rows], records.y[rows], groups[rows])
