"""Draw published synthetic records again from their lineage and the version's model."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.encoding.strata import table_strata
from prefect_augment.errors import IntegrityError, ParameterError
from prefect_augment.genmodels.base import GenerativeModel
from prefect_augment.loading.dataset import Dataset, open_dataset
from prefect_augment.schema import ModelRef
from prefect_augment.storage import with_workspace
from prefect_augment.synthesis.draw import candidate_seeds, draw_batch
from prefect_augment.synthesis.model_store import Encoder, load_model
from prefect_augment.synthesis.soft_labels import drawn_for

# Candidates of a stratum searched for a seed, and how many at a time.
MAX_CANDIDATES = 50_000_000
SEEDS_AT_ONCE = 1_000_000


def remake_records(dataset: Dataset | str | os.PathLike[str], aug_ids: Sequence[str]) -> pa.Table:
    """Return synthetic records of a published version, drawn again by their model.

    A network's images are drawn with their whole micro-batch, at the same places. They have the
    same bits on a machine with the same software, instruction set and number of threads, and are
    equal within rounding (a level or two of 255) elsewhere.

    ``dataset`` is one, or anything that :func:`~prefect_augment.open_dataset` takes; ``aug_ids`` are those of
    records whose ``aug_origin`` is ``synthetic``. The table has the source's columns, in their order.

    Raises
    ------
    ParameterError
        If an id is not that of a synthetic record of the version.
    IntegrityError
        If the version lacks the model, the seed is not one of its run (records made elsewhere), or
        the model's files are missing.

    Examples
    --------
    >>> dataset = open_dataset("s3://lake/defects-balanced/")  # doctest: +SKIP
    >>> ids = dataset.to_table(origins=["synthetic"])["aug_id"]  # doctest: +SKIP
    >>> remake_records(dataset, ids[:4].to_pylist())  # doctest: +SKIP
    """
    if not isinstance(dataset, Dataset):
        dataset = open_dataset(dataset)
    if not len(aug_ids):
        none = _synthetic(dataset).slice(0, 0)
        return none.select([name for name in none.column_names if not name.startswith("aug_")])
    # Only the lineage: the records are drawn again, and images would fill memory.
    lineage = _synthetic(dataset, ["aug_id", "aug_model", "aug_seed"])
    rows = pc.index_in(pa.array(aug_ids, pa.string()), value_set=lineage["aug_id"])
    if rows.null_count:
        unknown = [name for name, row in zip(aug_ids, rows, strict=True) if not row.is_valid]
        raise ParameterError(
            f"{dataset!r} has no synthetic record with aug_id {unknown[0]!r} "
            f"({len(unknown)} of {len(aug_ids)} are unknown); take ids of records whose aug_origin "
            "is 'synthetic'."
        )
    records = lineage.take(rows)
    models = {
        digest: load_model(with_workspace(dataset.store, required=False), _model(dataset, digest))
        for digest in sorted(set(records["aug_model"].to_pylist()))
    }
    by = {name for _, encoder in models.values() for name in (encoder.label, *encoder.by)}
    named = _synthetic(dataset, sorted(by)).take(rows)
    for name in named.column_names:
        records = records.append_column(named.schema.field(name), named[name])
    return pa.concat_tables(
        _remade(records.slice(i, 1), models, int(dataset.manifest.params.get("seed", 0)))
        for i in range(len(aug_ids))
    )


def _synthetic(dataset: Dataset, columns: Sequence[str] | None = None) -> pa.Table:
    return dataset.to_table("train", origins=["synthetic"], columns=columns)


def _remade(
    record: pa.Table, models: Mapping[str, tuple[GenerativeModel, Encoder]], run_seed: int
) -> pa.Table:
    """The record drawn again at its place; with soft labels it may have another class."""
    aug_id, digest, aug_seed = (
        record[name][0].as_py() for name in ("aug_id", "aug_model", "aug_seed")
    )
    fitted, encoder = models[digest]
    named = table_strata(record, label=encoder.label, by=encoder.by)[0]
    stratum = drawn_for(
        aug_id, digest=digest, aug_seed=aug_seed, stratum=named, strata=encoder.strata
    )
    ordinal = _ordinal(run_seed, stratum, aug_seed)
    drawn = draw_batch(fitted, encoder, digest, [(stratum, ordinal, 1)], run_seed)
    if stratum != named:
        label = encoder.stratum_labels().take(pa.array([encoder.strata.index(named)]))
        place = drawn.column_names.index(encoder.label)
        drawn = drawn.set_column(place, drawn.schema.field(place), label)
    schema = encoder.schema
    return drawn.select(schema.names).replace_schema_metadata(schema.metadata)


def _model(dataset: Dataset, digest: str) -> ModelRef:
    for model in dataset.manifest.models:
        if model.digest == digest:
            return ModelRef(root=dataset.store.uri, **model.model_dump())
    raise IntegrityError(
        f"{dataset!r} does not have the model {digest[:12]}: its records were made elsewhere. Make "
        "them again where the model is."
    )


def _ordinal(run_seed: int, stratum: str, aug_seed: int) -> int:
    """Position of a record's seed among those of its stratum in the run."""
    for start in range(0, MAX_CANDIDATES, SEEDS_AT_ONCE):
        seeds = candidate_seeds(run_seed, stratum, start, SEEDS_AT_ONCE)
        matches = np.flatnonzero(seeds == aug_seed)
        if len(matches):
            return start + int(matches[0])
    raise IntegrityError(
        f"seed {aug_seed} is none of the first {MAX_CANDIDATES:,} of class {stratum!r} under the "
        f"version's seed {run_seed}: the record was made by another run."
    )
