"""Augment: the classic records that a recipe asks for, staged beside the real ones.

SMOTE records of tables are made here, copies of images in :mod:`~.augment_images`.

Classic records of tables by the method that is asked for, behind one call.

SMOTE and what differs from it in the records it starts from (Borderline-SMOTE, ADASYN), and copies that
are moved a little (random oversampling with shrinkage, jitter). All keep nulls, categories and the range
of a class's values; whole numbers, dates and grids come back when the encoder decodes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.augmentation.smote import SmoteRecords, random_oversample_indices, smote
from prefect_augment.augmentation.smote_neighbours import start_weights, stratum_seed
from prefect_augment.augmentation.text import is_learnable, text_changer, with_texts
from prefect_augment.augmentation.write_images import make_image_copies
from prefect_augment.encoding.arrays import Matrix, training_matrix
from prefect_augment.encoding.record_ids import derived_ids
from prefect_augment.errors import ParameterError
from prefect_augment.params import Classic
from prefect_augment.params.keys import step_key
from prefect_augment.schema.base import BalancePlan, DatasetInfo, DatasetRef, Modality
from prefect_augment.shards.parquet import write_shards
from prefect_augment.shards.staged import load_info
from prefect_augment.storage.staging import Stage
from prefect_augment.storage.store import Store
from prefect_augment.text import suggestion

__all__ = ["augment", "make_records"]

SHARD_RECORDS, SHARD_BYTES = 1_000_000, 128 * 1024 * 1024
# Identifiers count on from each record's place. Synthetic candidates take the first places, some
# times as many as are planned; classic records start beyond, so that no identifier comes twice.
CANDIDATES_PER_PLANNED = 64


def augment(
    dataset: DatasetRef,
    *,
    plan: BalancePlan,
    counts: Mapping[str, int],
    classic: Classic,
    seed: int,
    store: Store,
) -> DatasetRef:
    """Return staged classic records of the training part (training and validation): SMOTE's, or copies of images.

    Parameters
    ----------
    dataset : DatasetRef
        From the ingest stage.
    plan : BalancePlan
        Gives the strata.
    counts : mapping of str to int
        Records to make per stratum; the recipe's, at most the plan's.
    classic : Classic
        Neighbours, and the memory that may be used; the policy for images.
    seed : int
        Same input, params and seed give the same bytes.
    store : Store
        The destination, under whose ``_staging`` the records go.

    Returns
    -------
    DatasetRef
        Records in the source's columns and types, then ``aug_id``, ``aug_parent`` (the real record
        each starts from), ``aug_seed`` (of images: each copy's own) and ``aug_stratum``; sorted by
        ``aug_id``. Its facts' notes say which strata were copied instead of interpolated, and why.

    Raises
    ------
    ParameterError
        If a stratum is not in the plan, classic augmentation is switched off, or more memory would
        be needed than is allowed.
    EmptyClassError
        If a stratum has no record to start from.
    """
    wanted = {name: n for name, n in sorted(counts.items()) if n > 0}
    source = load_info(dataset, store)
    _check(wanted, plan, classic, source.modality)
    # The plan's amounts matter only through the counts; its strata and the first free place do too.
    inputs = [dataset.key, wanted, [entry.name for entry in plan.classes], _first_place(plan)]
    key = step_key("augment", {"classic": classic}, inputs=inputs, seed=seed)
    stage = Stage(store, "augment", key)
    info = stage.outcome(DatasetInfo)
    if info is None:
        make = make_image_copies if source.modality == "image" else _make
        info = stage.finish(make(source, plan, wanted, classic, seed, stage))
    return stage.reference(info, info.part_counts["classic"])


def _check(
    wanted: Mapping[str, int], plan: BalancePlan, classic: Classic, modality: Modality
) -> None:
    """Refuse what cannot be made before anything is read."""
    known = [entry.name for entry in plan.classes]
    for name in wanted:
        if name not in known:
            raise ParameterError(
                f"classic records are wanted of {name!r}, which is not in the plan; "
                f"{suggestion(name, known)}.",
                stratum=name,
            )
    chosen, other = (classic.image, "safe") if modality == "image" else (classic.table, "smote")
    if wanted and chosen == "none":
        raise ParameterError(
            f"{sum(wanted.values())} classic records are wanted and classic.{modality} is 'none'; "
            f"choose {other!r}, or a recipe without classic records."
        )


def _first_place(plan: BalancePlan) -> int:
    """Return the first place within a stratum that no synthetic candidate takes."""
    return CANDIDATES_PER_PLANNED * max((entry.n_synthetic for entry in plan.classes), default=0)


def _make(
    source: DatasetInfo,
    plan: BalancePlan,
    wanted: Mapping[str, int],
    classic: Classic,
    seed: int,
    stage: Stage,
) -> DatasetInfo:
    """Make the records, put their shards, and return what is known of them."""
    change = text_changer(classic)
    if wanted and change is None and not is_learnable(source):
        raise ParameterError(
            "the source holds free text alone, and new records would be empty; set classic.text='light', or name a "
            "classic.text_plugin."
        )
    data = training_matrix(stage.store, source, plan)
    names = [entry.name for entry in plan.classes]
    made = make_records(
        data.X,
        data.strata,
        {names.index(name): n for name, n in wanted.items()},
        classic=classic,
        is_category=data.is_category,
        n_levels=data.n_levels,
        seed=seed,
    )
    table = _to_table(made, data, source.digest, seed, _first_place(plan))
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
    notes = tuple(f"{names[code]}: {note}" for code, note in sorted(made.notes.items()))
    return stage.info_of(source, shards, part="classic", notes=notes)


def _to_table(
    made: SmoteRecords, data: Matrix, digest: str, seed: int, first_place: int
) -> pa.Table:
    """Return the records with the source's schema and their lineage, sorted by id."""
    strata = [data.strata_names[code] for code in made.strata]
    # smote returns them by stratum, so the place within it is the distance from its first record.
    ordinals = np.arange(made.strata.size) - np.searchsorted(made.strata, made.strata)
    parents = data.keys[made.parents].tolist()
    # Of the records' own digest and not of the stage key, which knows where the source lies: equal
    # records from another place get the same ids.
    ids = derived_ids("classic", parents, strata, digest, seed, ordinals.tolist())
    table = data.encoder.decode(
        made.X, strata=strata, ordinals=ordinals + first_place, aug_ids=ids.to_pylist()
    )
    for name, column in (
        ("aug_id", ids),
        ("aug_parent", pa.array(parents, pa.string())),
        ("aug_seed", pa.array(np.full(len(strata), seed, np.int64))),
        ("aug_stratum", pa.array(strata, pa.string())),
    ):
        table = table.append_column(name, column)
    return table.sort_by("aug_id")


Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


def make_records(
    X: Floats,
    strata: Codes,
    counts: Mapping[int, int],
    *,
    classic: Classic,
    is_category: NDArray[np.bool_],
    n_levels: Codes,
    seed: int,
) -> SmoteRecords:
    """Return new records of the strata, exactly as many as wanted.

    Parameters
    ----------
    X, strata, counts, is_category, n_levels, seed
        As for :func:`.tables.smote`.
    classic : Classic
        The method (``table``) and what it needs.

    Returns
    -------
    SmoteRecords
        ``notes`` say where a stratum was treated otherwise than asked, and why.

    Raises
    ------
    ParameterError
        If the estimated memory is above ``classic.max_memory_mib``.
    EmptyClassError
        If records are wanted of a stratum that has none.

    References
    ----------
    Han et al. 2005, "Borderline-SMOTE"; He et al. 2008, "ADASYN"; Menardi & Torelli 2014, "Training and
    assessing classification rules with imbalanced data" (ROSE, the shrinkage).
    """
    if classic.table in ("oversampling", "jitter"):
        return _moved_copies(X, strata, counts, classic, is_category, seed)
    start: Floats | None = None
    notes: dict[int, str] = {}
    if classic.table in ("borderline", "adasyn"):
        start, notes = start_weights(
            X, strata, counts, method=classic.table, is_category=is_category, n_levels=n_levels,
            k_neighbors=classic.k_neighbors, max_memory_mib=classic.max_memory_mib,
        )  # fmt: skip
    made = smote(
        X,
        strata,
        counts,
        is_category=is_category,
        n_levels=n_levels,
        k_neighbors=classic.k_neighbors,
        seed=seed,
        max_memory_mib=classic.max_memory_mib,
        start=start,
    )
    joined = {
        k: "; ".join(filter(None, (notes.get(k), made.notes.get(k)))) for k in {*notes, *made.notes}
    }
    return SmoteRecords(made.X, made.strata, made.parents, joined)


def _moved_copies(
    X: Floats,
    strata: Codes,
    counts: Mapping[int, int],
    classic: Classic,
    is_category: NDArray[np.bool_],
    seed: int,
) -> SmoteRecords:
    """Return copies with normal noise on the numbers, within the range of the stratum's values."""
    wanted = {code: n for code, n in sorted(counts.items()) if n > 0}
    parents = random_oversample_indices(strata, wanted, seed)
    made = X[parents]
    numbers = np.flatnonzero(~is_category.astype(bool))
    start = 0
    for code, n in wanted.items():
        own, part = X[strata == code][:, numbers], made[start : start + n]
        rng = np.random.default_rng((stratum_seed(seed, code), 1))
        share = classic.jitter if classic.table == "jitter" else _bandwidth(own, classic.shrinkage)
        finite = np.where(np.isfinite(own), own, np.nan)
        low, high = _range(finite)
        values = part[:, numbers]
        with np.errstate(all="ignore"):
            noise = rng.standard_normal((n, len(numbers))) * share * _deviation(finite)
            moved = np.clip(values + noise, low, high)
        # A null stays one, and so does what is not finite.
        part[:, numbers] = np.where(np.isfinite(values), moved, values)
        start += n
    return SmoteRecords(made, np.repeat(np.array([*wanted], np.int64), [*wanted.values()]), parents)


def _bandwidth(own: Floats, shrinkage: float) -> float:
    """Silverman's rule for a normal kernel, as imbalanced-learn's RandomOverSampler has it."""
    n, d = own.shape
    return float(shrinkage * (4 / ((d + 2) * max(1, n))) ** (1 / (d + 4)))


def _deviation(values: Floats) -> Floats:
    """Standard deviation of each column's finite values, 0 where there is none."""
    found = [np.std(known) if (known := c[~np.isnan(c)]).size else 0.0 for c in values.T]
    deviation: Floats = np.nan_to_num(np.array(found), nan=0.0, posinf=0.0)
    return deviation


def _range(values: Floats) -> tuple[Floats, Floats]:
    """Smallest and largest finite value of each column."""
    low = [known.min() if (known := c[~np.isnan(c)]).size else 0.0 for c in values.T]
    high = [known.max() if (known := c[~np.isnan(c)]).size else 0.0 for c in values.T]
    return np.array(low), np.array(high)
