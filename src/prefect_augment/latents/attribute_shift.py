"""Attribute arithmetic: add an attribute to records' latent vectors, and decode them again."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import roc_auc_score

from prefect_augment.array_types import Array, Float, Int
from prefect_augment.encoding.columns import did_you_mean, listing
from prefect_augment.encoding.labels import label_text
from prefect_augment.encoding.values import plain
from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.base import MIN_SAMPLED_RECORDS
from prefect_augment.latents.adapter import View, column_values
from prefect_augment.latents.base import Job, head
from prefect_augment.latents.reconstruct import decoding_strata
from prefect_augment.params import AttributeShift
from prefect_augment.schema import LatentRef, ShardInfo
from prefect_augment.text import suggestion

STRENGTH = "aug_strength"
# The mean of fewer vectors depends on single records; a model needs as many of a class.
MIN_RECORDS = MIN_SAMPLED_RECORDS
N_SHOWN = 8  # records in the picture
WITHOUT_VALUES = ("image", "opaque", "empty", "identifier")  # columns whose values no records share


def shift_attribute(view: View, params: AttributeShift) -> LatentRef:
    """Write records with an attribute added to them: ``decode(z + strength * direction)``.

    The direction is the mean latent vector of the training records with one value of a column minus that
    of another value; whatever else differs between the two groups is in it, too. The Parquet has a row
    per record and strength: ``aug_id``, ``aug_split``, ``aug_strength`` (float64), the learnt columns, and
    label and ``by`` of the decoding stratum; strength 0 is the reconstruction. ``summary`` has the two values
    with their training records, the direction's Euclidean length and ``validation_auroc``: how well
    projections on it separate validation records of the two values (None if one has none).

    Raises ParameterError for an unknown column, value, class or record, too few training records of a value, or
    nothing to shift; DivergedError for a vector that is not finite.

    References
    ----------
    Radford et al. 2016, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
    Networks", section 6.3.2 (arithmetic on mean vectors); Larsen et al. 2016, "Autoencoding beyond pixels
    using a learned similarity metric", section 4.2 (attribute vectors of a dataset with labels).
    """
    job = view.job
    column = _column(job, params.column)
    start, end, counts = _ends(job, column, params)
    mask, counts_shifted, shown = _selection(job, column, start, params.only)
    means = view.vector_means(column, [start, end])
    direction = means[end] - means[start]
    n_strengths = len(params.strengths)

    def shifted(table: pa.Table) -> tuple[Int, list[Array]]:
        """Return the decoding strata, and the records decoded once per strength."""
        codes = decoding_strata(table, view.strata, params.as_class)
        Z = view.vectors(table)
        moved = ((Z + s * direction).astype(np.float32) for s in params.strengths)
        return codes, [view.fitted.decode_latents(view.finite(z, "vectors"), codes) for z in moved]

    def make(table: pa.Table, shard: ShardInfo) -> tuple[pa.Table, Mapping[str, Any]]:
        table = table.filter(mask(table))
        if not table.num_rows:
            return pa.table({}), {}
        codes, X = shifted(table)
        names = [f"{i}-{j:02d}" for j in range(n_strengths) for i in table["aug_id"].to_pylist()]
        decoded = view.decode(np.concatenate(X), np.tile(codes, n_strengths), names, like=table)
        side_by_side = np.arange(len(names)).reshape(n_strengths, -1).T.ravel()
        decoded = decoded.take(pa.array(side_by_side))
        rows = pa.array(np.repeat(np.arange(table.num_rows), n_strengths))
        known = head(table, job.info.label, shard, (STRENGTH,))
        columns = {
            "aug_id": known["aug_id"].take(rows),
            "aug_split": known["aug_split"].take(rows),
            STRENGTH: pa.array(np.tile(params.strengths, table.num_rows), pa.float64()),
            **{name: decoded[name] for name in decoded.column_names},
        }
        return pa.table(columns).replace_schema_metadata(decoded.schema.metadata), {}

    n_written = {path: n * n_strengths for path, n in counts_shifted.items()}
    shards, _ = job.each_shard(make, n_written=n_written)

    def rows(table: pa.Table) -> list[tuple[str, Array]]:
        _, images = shifted(table)
        return [(f"strength {s:g}", X) for s, X in zip(params.strengths, images, strict=True)]

    title = f"{start} → {end}"
    return job.finish(
        shards,
        summary={
            "column": column,
            "start": start,
            "end": end,
            "n_start": counts[start],
            "n_end": counts[end],
            "strengths": list(params.strengths),
            "n_shifted": sum(counts_shifted.values()),
            "distance": float(np.linalg.norm(direction)),
            "validation_auroc": _validation_auroc(view, column, start, end, direction),
        },
        # The shown part may have none of the selected records.
        pictures=(view.shift_picture(title, shown, rows) if shown else b"",),
    )


def _column(job: Job, name: str) -> str:
    """Return the attribute's column, by default the label; ParameterError for a column without shared values."""
    label = job.info.label
    columns = [c.name for c in job.info.columns if c.kind not in WITHOUT_VALUES]
    if name and name not in (label, *columns):
        raise ParameterError(
            f"column {name!r} has no values that an attribute can be{did_you_mean(name, columns)}; choose the label, "
            f"{label!r}, or one of: {listing(columns) or 'none'}."
        )
    return name or label


def _ends(job: Job, column: str, params: AttributeShift) -> tuple[str, str, Mapping[str, int]]:
    """The values that the direction leads from and to, and the training records of every value."""
    counts: Counter[str] = Counter()
    for table in job.tables(job.learnt_shards, [column]):
        counts.update(value for value in column_values(table, column) if value is not None)
    for value in filter(None, (params.start, params.end)):
        if value not in counts:
            raise ParameterError(
                f"no training record has the value {value!r} of column {column!r}; "
                f"{suggestion(value, list(counts))}."
            )
    by_size = sorted(counts, key=lambda value: (-counts[value], value))
    others = [
        v for v in by_size if counts[v] >= MIN_RECORDS and v not in (params.start, params.end)
    ]
    start = params.start or next(iter(others), "")
    end = params.end or next((v for v in reversed(others) if v != start), "")
    few = [v for v in (start, end) if v and counts[v] < MIN_RECORDS]
    problem = "" if start and end else "there are not two such values"
    if start and start == end:
        problem = f"both are {start!r}"
    if few:
        problem = f"{few[0]!r} has {counts[few[0]]}"
    if problem:
        raise ParameterError(
            f"a direction leads from one value of {column!r} to another, each with {MIN_RECORDS} training records at "
            f"least; {problem}. Name two with start (--from) and end (--to); there "
            f"are: {listing([f'{v}: {counts[v]}' for v in by_size], 20) or 'none'}."
        )
    return start, end, counts


def _validation_auroc(
    view: View, column: str, start: str, end: str, direction: Float
) -> float | None:
    """Return the AUROC of projections on the direction between validation records of its two values."""
    validation = [shard for shard in view.job.info.shards if shard.split == "validation"]
    places: dict[str, list[Float]] = {start: [], end: []}
    for value, _, Z in view.vectors_by(column, [start, end], validation):
        places[value].append(Z @ direction)
    if not (places[start] and places[end]):
        return None
    a, b = (np.concatenate(places[value]) for value in (start, end))
    is_end = np.repeat([0, 1], [len(a), len(b)])
    return float(roc_auc_score(is_end, np.concatenate([a, b])))


def _selection(
    job: Job, column: str, start: str, only: Sequence[str]
) -> tuple[Callable[[pa.Table], pa.Array], dict[str, int], list[str]]:
    """Which records are shifted, how many by the shard's path, and the lowest ids of the shown part.

    ParameterError for unknown names, or no records.
    """
    label, named = job.info.label, pa.array(sorted(set(only)), pa.string())

    def mask(table: pa.Table) -> pa.Array:  # null if the attribute is missing
        if not only:
            return pc.equal(label_text(table[column]), start)
        of_class = pc.is_in(label_text(table[label]), named)
        return pc.or_(of_class, pc.is_in(plain(table["aug_id"]), named))

    counts: Counter[str] = Counter()
    shown: list[str] = []
    missing = dict.fromkeys(only)
    for shard in job.shards:
        for table in job.tables([shard], ["aug_id", *dict.fromkeys([label, column])]):
            ids = table["aug_id"].filter(mask(table)).to_pylist()
            counts[shard.path] += len(ids)
            if shard.split == job.shown_part:
                shown = sorted([*shown, *ids])[:N_SHOWN]
            for name in {*ids, *column_values(table, label)} & missing.keys():
                del missing[name]
    parts = ", ".join(job.parts)
    if missing:
        classes = dict.fromkeys(name for n in job.info.part_counts.values() for name in n)
        raise ParameterError(
            f"{next(iter(missing))!r} is neither a class nor the aug_id of a record in {parts}; classes: "
            f"{listing(list(classes))}."
        )
    if not counts.total():
        raise ParameterError(
            f"no record in {parts} has the value {start!r} of column {column!r}; name the records to shift "
            "with only, or read other parts."
        )
    return mask, counts, shown
