"""Augment: the classic records that a recipe requests, staged beside the real ones.

Tables: SMOTE and its variants with other starting records (Borderline-SMOTE, ADASYN), and copies that are moved a
little (random oversampling with shrinkage, jitter). All keep nulls, categories and the range of a class's values; whole
numbers, dates and grids come back when the encoder decodes. Copies of images are made in :mod:`~.write_images`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Float
from prefect_augment.augmentation.smote import (
    SmoteRecords,
    StratifiedTable,
    of_known,
    random_oversample_indices,
    smote,
    start_weights,
    stratum_seed,
)
from prefect_augment.augmentation.text import is_learnable, text_changer, with_texts
from prefect_augment.augmentation.write_images import CopyMaker, make_image_copies
from prefect_augment.encoding.arrays import TRAINED_ON, Matrix, training_matrix
from prefect_augment.encoding.rare_values import RareValues, without_rare_levels
from prefect_augment.encoding.record_ids import derived_ids
from prefect_augment.encoding.subsample import Sample
from prefect_augment.errors import ParameterError
from prefect_augment.params import Classic
from prefect_augment.params.keys import step_key
from prefect_augment.schema import BalancePlan, DatasetInfo, DatasetRef, Experiment, Modality
from prefect_augment.shards.base import write_shards
from prefect_augment.shards.staged import load_info
from prefect_augment.storage import Stage, Store
from prefect_augment.text import suggestion

SHARD_RECORDS, SHARD_BYTES = 1_000_000, 128 * 1024 * 1024
# Identifiers follow from each record's place in its stratum. Synthetic candidates take the first
# places, several times as many as planned; classic records start beyond, so identifiers are unique.
CANDIDATES_PER_PLANNED = 64
# Real records of a table that new ones are made from: what a search for neighbours holds in memory.
MAX_STARTS = 200_000
COPIED = ("oversampling", "jitter")  # values of Classic.table that copy whole records


def augment(experiment: Experiment, counts: Mapping[str, int], store: Store) -> DatasetRef:
    """Return staged classic records made from training and validation records.

    They have the source's columns and types, then ``aug_id``, ``aug_parent`` (the real record each
    starts from), ``aug_seed`` (of images: each copy's own) and ``aug_stratum``; sorted by ``aug_id``.
    ``counts`` are records per stratum. The notes name strata that were copied instead of interpolated.

    Raises ParameterError for an unknown stratum, classic augmentation switched off, or too little
    memory; EmptyClassError for a stratum without records.
    """
    source, requested, stage = _request(experiment, counts, store)
    info = stage.outcome(DatasetInfo)
    if info is None:
        if source.modality == "image":
            info = make_image_copies(_copy_maker(experiment, source, requested, stage))
        else:
            info = _make(source, experiment, requested, stage)
        info = stage.finish(info)
    return stage.reference(info, info.part_counts["classic"])


def augment_part(
    experiment: Experiment, counts: Mapping[str, int], store: Store, *, part: int, n_parts: int
) -> int:
    """Make and stage the copies of every ``n_parts``-th shard of images, which :func:`augment` finds.

    Returns how many shards are this part's.
    """
    source, requested, stage = _request(experiment, counts, store)
    if stage.outcome(DatasetInfo) is not None:
        return 0
    maker = _copy_maker(experiment, source, requested, stage)
    own = range(part, len(maker.shards), n_parts)
    for number in own:
        maker.keep(number)
    return len(own)


def _request(
    experiment: Experiment, counts: Mapping[str, int], store: Store
) -> tuple[DatasetInfo, dict[str, int], Stage]:
    """Return the source, the counts above 0 and the stage of the records; raise for what cannot be made."""
    dataset, plan, params = experiment.dataset, experiment.plan, experiment.params
    requested = {name: n for name, n in sorted(counts.items()) if n > 0}
    source = load_info(dataset, store)
    _check(requested, plan, params.classic, source.modality)
    # Of the plan only the strata and the first free place matter; its amounts come as counts.
    inputs: list[Any] = [dataset.key, requested, [entry.name for entry in plan.classes]]
    inputs.append(_first_place(plan))
    if source.modality == "table" and _n_real(source) > MAX_STARTS:
        inputs.append(MAX_STARTS)
    key = step_key("augment", params, inputs=inputs, seed=params.seed)
    return source, requested, Stage(store, "augment", key)


def _copy_maker(
    experiment: Experiment, source: DatasetInfo, requested: Mapping[str, int], stage: Stage
) -> CopyMaker:
    params = experiment.params
    return CopyMaker(source, experiment.plan, requested, params.classic, params.seed, stage)


def _check(
    requested: Mapping[str, int], plan: BalancePlan, classic: Classic, modality: Modality
) -> None:
    """Refuse impossible requests before anything is read."""
    known = [entry.name for entry in plan.classes]
    for name in requested:
        if name not in known:
            raise ParameterError(
                f"classic records are requested of {name!r}, which is not in the plan; "
                f"{suggestion(name, known)}.",
                stratum=name,
            )
    chosen, other = (classic.image, "safe") if modality == "image" else (classic.table, "smote")
    if requested and chosen == "none":
        raise ParameterError(
            f"{sum(requested.values())} classic records are requested and classic.{modality} is 'none'; "
            f"choose {other!r}, or a recipe without classic records."
        )


def _first_place(plan: BalancePlan) -> int:
    """Return the first place within a stratum that no synthetic candidate takes."""
    return CANDIDATES_PER_PLANNED * max((entry.n_synthetic for entry in plan.classes), default=0)


def _make(
    source: DatasetInfo, experiment: Experiment, requested: Mapping[str, int], stage: Stage
) -> DatasetInfo:
    plan, params = experiment.plan, experiment.params
    classic, seed = params.classic, params.seed
    change = text_changer(classic)
    if requested and change is None and not is_learnable(source):
        raise ParameterError(
            "the source holds free text alone, and new records would be empty; set classic.text='light', or name a "
            "classic.text_plugin."
        )
    # Borderline-SMOTE and ADASYN look at the classes around, so frequencies stay.
    sample = Sample(MAX_STARTS, seed, equal=classic.table not in ("borderline", "adasyn"))
    data = training_matrix(stage.store, source, plan, sample)
    if classic.table not in COPIED:  # new records lie between others, without rare levels
        least, is_category = params.quality.min_level_records, data.is_category
        rare = RareValues.of(data.X, is_category, min_records=least)
        X = without_rare_levels(data.X, data.strata, is_category, min_records=least, seed=seed)
        data = replace(data, X=X, encoder=data.encoder.guarding(rare, lists_rare_levels=True))
    names = [entry.name for entry in plan.classes]
    rows = StratifiedTable(data.X, data.strata, data.is_category, data.n_levels)
    counts = {names.index(name): n for name, n in requested.items()}
    records = make_records(rows, counts, classic=classic, seed=seed)
    table = _to_table(records, data, source.digest, seed, _first_place(plan))
    table = with_texts(table, source, change, stage.store)
    shards = write_shards(
        stage.store,
        table,
        prefix=stage.prefix,
        stem="classic",
        split="train",
        origin="classic",
        label=source.label,
        max_records=SHARD_RECORDS,
        max_bytes=SHARD_BYTES,
    )
    notes = tuple(f"{names[code]}: {note}" for code, note in sorted(records.notes.items()))
    if len(data.y) < (n_real := _n_real(source)):
        rule = "as many of each class, rarer ones whole" if sample.equal else "each class's share"
        sampled = f"made from {len(data.y):,} of {n_real:,} training and validation records"
        notes += (f"{sampled}, chosen by their ids and the seed: {rule}.",)
    return stage.info_of(source, shards, part="classic", notes=notes)


def _n_real(source: DatasetInfo) -> int:
    return sum(s.n_records for s in source.shards if s.split in TRAINED_ON)


def _to_table(
    records: SmoteRecords, data: Matrix, digest: str, seed: int, first_place: int
) -> pa.Table:
    """Return the records with the source's schema and their lineage, sorted by id."""
    strata = [data.strata_names[code] for code in records.strata]
    # Records come by stratum, so the ordinal is the distance from the stratum's first record.
    ordinals = np.arange(records.strata.size) - np.searchsorted(records.strata, records.strata)
    parents = data.keys[records.parents].tolist()
    # From the records' digest, not the stage key, which depends on the source's location: equal
    # records from another location get the same ids.
    ids = derived_ids("classic", parents, strata, digest, seed, ordinals.tolist())
    table = data.encoder.decode(
        records.X, strata=strata, ordinals=ordinals + first_place, aug_ids=ids.to_pylist()
    )
    for name, column in (
        ("aug_id", ids),
        ("aug_parent", pa.array(parents, pa.string())),
        ("aug_seed", pa.array(np.full(len(strata), seed, np.int64))),
        ("aug_stratum", pa.array(strata, pa.string())),
    ):
        table = table.append_column(name, column)
    return table.sort_by("aug_id")


def make_records(
    table: StratifiedTable, counts: Mapping[int, int], *, classic: Classic, seed: int
) -> SmoteRecords:
    """Return ``counts`` new records per stratum by the method ``classic.table``.

    Arguments and errors are those of :func:`.smote.smote`; ``notes`` say where another method was used.

    Han et al. 2005, "Borderline-SMOTE"; He et al. 2008, "ADASYN"; Menardi & Torelli 2014, "Training and
    assessing classification rules with imbalanced data" (ROSE, the shrinkage).
    """
    if classic.table in COPIED:
        return _moved_copies(table, counts, classic, seed)
    limits = {"k_neighbors": classic.k_neighbors, "max_memory_mib": classic.max_memory_mib}
    start: Float | None = None
    notes: dict[int, str] = {}
    if classic.table in ("borderline", "adasyn"):
        start, notes = start_weights(table, counts, method=classic.table, **limits)
    records = smote(table, counts, seed=seed, start=start, **limits)
    joined = {
        k: "; ".join(filter(None, (notes.get(k), records.notes.get(k))))
        for k in {*notes, *records.notes}
    }
    return replace(records, notes=joined)


def _moved_copies(
    table: StratifiedTable, counts: Mapping[int, int], classic: Classic, seed: int
) -> SmoteRecords:
    """Return copies with normal noise on the numbers, within the range of the stratum's values."""
    parents = random_oversample_indices(table.strata, counts, seed)
    copies, strata = table.X[parents], table.strata[parents]
    numbers = np.flatnonzero(~table.is_category)
    for code in np.unique(strata).tolist():
        own, is_new = table.X[table.strata == code][:, numbers], strata == code
        rng = np.random.default_rng((stratum_seed(seed, code), 1))
        share = classic.jitter
        if classic.table == "oversampling":
            # Silverman's rule for a normal kernel, as in imbalanced-learn's RandomOverSampler.
            n, d = own.shape
            share = float(classic.shrinkage * (4 / ((d + 2) * max(1, n))) ** (1 / (d + 4)))
        finite = np.where(np.isfinite(own), own, np.nan)
        low, high = np.fmin.reduce(finite), np.fmax.reduce(finite)  # NaN where none is finite
        values = copies[np.ix_(is_new, numbers)]
        with np.errstate(all="ignore"):
            deviation = np.nan_to_num(of_known(finite, np.std), nan=0.0, posinf=0.0)
            noise = rng.standard_normal(values.shape) * share * deviation
            moved = np.clip(values + noise, low, high)
        # Nulls and infinite values stay.
        copies[np.ix_(is_new, numbers)] = np.where(np.isfinite(values), moved, values)
    return SmoteRecords(copies, strata, parents)
