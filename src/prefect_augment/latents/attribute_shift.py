"""Attribute arithmetic: add an attribute to records' latent vectors, and decode them again."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from prefect_augment.latents.base import Job, Progress, head
from prefect_augment.latents.image_adapter import open_view
from prefect_augment.latents.reconstruct import decoding_strata
from prefect_augment.params import AttributeShift
from prefect_augment.schema import LatentRef, ShardInfo
from prefect_augment.text import suggestion

STRENGTH = "aug_strength"
# The mean of fewer vectors depends on single records; a model needs as many of a class.
MIN_RECORDS = MIN_SAMPLED_RECORDS
N_SHOWN = 8  # records in the picture
WITHOUT_VALUES = ("image", "opaque", "empty", "identifier")  # columns whose values no records share


def shift_attribute(job: Job, params: AttributeShift, on_progress: Progress | None) -> LatentRef:
    """Write records with an attribute added to them: ``decode(z + strength * direction)``.

    The direction is the mean latent vector of the training records with one value of a column minus that
    of another value; whatever else differs between the two groups is in it, too. The Parquet has a row
    per record and strength: ``aug_id``, ``aug_split``, ``aug_strength`` (float64), the learnt columns, and
    label and ``by`` of the decoding stratum; strength 0 is the reconstruction. ``summary`` has the two values
    with their training records, the direction's Euclidean length and ``validation_auroc``: how well
    projections on it separate validation records of the two values (None if one has none).

    Raises ParameterError for a model without latents, an unknown column, value, class or record, too few
    training records of a value, or nothing to shift; DivergedError for a vector that is not finite.

    References
    ----------
    Radford et al. 2016, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
    Networks", section 6.3.2 (arithmetic on mean vectors); Larsen et al. 2016, "Autoencoding beyond pixels
    using a learned similarity metric", section 4.2 (attribute vectors of a dataset with labels).
    """
    view = open_view(job, "latents")
    column = _column(job, params.column)
    ends = _ends(job, column, params)
    selection = _Selection.of(job, column, ends[0].value, params.only)
    means = view.vector_means(column, [end.value for end in ends])
    direction = means[ends[1].value] - means[ends[0].value]

    def shifted(table: pa.Table) -> tuple[Int, list[Array]]:
        """Return the decoding strata, and the records decoded once per strength."""
        codes = decoding_strata(table, view.strata, params.as_class)
        Z = view.vectors(table)
        moved = ((Z + s * direction).astype(np.float32) for s in params.strengths)
        return codes, [view.fitted.decode_latents(view.finite(z, "vectors"), codes) for z in moved]

    def make(table: pa.Table, shard: ShardInfo) -> tuple[pa.Table, Mapping[str, Any]]:
        table = table.filter(selection.mask(table))
        if not table.num_rows:
            return pa.table({}), {}
        decoded = _decoded(view, table, *shifted(table))
        return _written(job, table, shard, decoded, params.strengths), {}

    n_strengths = len(params.strengths)
    shards, _ = job.each_shard(
        make, on_progress, n_written=lambda shard: selection.counts[shard.path] * n_strengths
    )

    def rows(table: pa.Table) -> list[tuple[str, Array]]:
        _, images = shifted(table)
        return [(f"strength {s:g}", X) for s, X in zip(params.strengths, images, strict=True)]

    title = f"{ends[0].value} → {ends[1].value}"
    return job.finish(
        shards,
        summary={
            "column": column,
            "start": ends[0].value,
            "end": ends[1].value,
            "n_start": ends[0].n,
            "n_end": ends[1].n,
            "strengths": list(params.strengths),
            "n_shifted": sum(selection.counts.values()),
            "distance": float(np.linalg.norm(direction)),
            "validation_auroc": _validation_auroc(view, column, ends, direction),
        },
        # The shown part may have none of the selected records.
        pictures=job.folder.put_pictures(
            view.shift_picture(title, selection.shown, rows) if selection.shown else b""
        ),
    )


def _decoded(view: View, table: pa.Table, codes: Int, shifted: Sequence[Array]) -> pa.Table:
    """Return the decoded records, those of one record side by side."""
    ids = table["aug_id"].to_pylist()
    names = [f"{aug_id}-{j:02d}" for j in range(len(shifted)) for aug_id in ids]
    decoded = view.decode(np.concatenate(shifted), np.tile(codes, len(shifted)), names, like=table)
    by_record = np.arange(decoded.num_rows).reshape(len(shifted), len(ids)).T.ravel()
    return decoded.take(pa.array(by_record))


def _written(
    job: Job, table: pa.Table, shard: ShardInfo, decoded: pa.Table, strengths: Sequence[float]
) -> pa.Table:
    """Return the decoded records after ids, parts and strengths."""
    rows = pa.array(np.repeat(np.arange(table.num_rows), len(strengths)))
    known = head(table, job.info.label, shard, (STRENGTH,))
    columns = {
        "aug_id": known["aug_id"].take(rows),
        "aug_split": known["aug_split"].take(rows),
        STRENGTH: pa.array(np.tile(strengths, table.num_rows), pa.float64()),
        **{name: decoded[name] for name in decoded.column_names},
    }
    return pa.table(columns).replace_schema_metadata(decoded.schema.metadata)


# --- the direction ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _End:
    """A value at one end of the direction, and its number of training records."""

    value: str
    n: int


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


def _ends(job: Job, column: str, params: AttributeShift) -> tuple[_End, _End]:
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
    if few or not start or not end or start == end:
        raise ParameterError(
            f"a direction leads from one value of {column!r} to another, each with {MIN_RECORDS} training records at "
            f"least; {_problem(counts, few, start, end)}. Name two with start (--from) and end (--to); there "
            f"are: {listing([f'{v}: {counts[v]}' for v in by_size], 20) or 'none'}."
        )
    return _End(start, counts[start]), _End(end, counts[end])


def _problem(counts: Mapping[str, int], few: Sequence[str], start: str, end: str) -> str:
    if few:
        return f"{few[0]!r} has {counts[few[0]]}"
    return f"both are {start!r}" if start and start == end else "there are not two such values"


def _validation_auroc(
    view: View, column: str, ends: tuple[_End, _End], direction: Float
) -> float | None:
    """Return the AUROC of projections on the direction between validation records of its two values."""
    start, end = (x.value for x in ends)
    validation = [shard for shard in view.job.info.shards if shard.split == "validation"]
    places: dict[str, list[Float]] = {start: [], end: []}
    for value, _, Z in view.vectors_by(column, [start, end], validation):
        places[value].append(Z @ direction)
    if not (places[start] and places[end]):
        return None
    a, b = (np.concatenate(places[value]) for value in (start, end))
    is_end = np.repeat([0, 1], [len(a), len(b)])
    return float(roc_auc_score(is_end, np.concatenate([a, b])))


# --- the records ------------------------------------------------------------------------------


@dataclass
class _Selection:
    """The records to shift, counted shard by shard."""

    label: str
    column: str
    start: str
    only: frozenset[str]
    counts: dict[str, int] = field(default_factory=dict)  # by the shard's path
    shown: list[str] = field(default_factory=list)  # the lowest ids of the shown part

    @classmethod
    def of(cls, job: Job, column: str, start: str, only: Sequence[str]) -> "_Selection":
        """Read every record's id, label and attribute; ParameterError for unknown names or no records."""
        selection = cls(job.info.label, column, start, frozenset(only))
        missing = dict.fromkeys(only)
        names = ["aug_id", *dict.fromkeys([job.info.label, column])]
        for shard in job.shards:
            selection.counts[shard.path] = 0
            for table in job.tables([shard], names):
                ids = table["aug_id"].filter(selection.mask(table)).to_pylist()
                selection.counts[shard.path] += len(ids)
                if shard.split == job.shown_part:
                    selection.shown = sorted([*selection.shown, *ids])[:N_SHOWN]
                for name in {*ids, *column_values(table, job.info.label)} & missing.keys():
                    del missing[name]
        parts = ", ".join(job.parts)
        if missing:
            classes = dict.fromkeys(name for n in job.info.part_counts.values() for name in n)
            raise ParameterError(
                f"{next(iter(missing))!r} is neither a class nor the aug_id of a record in {parts}; classes: "
                f"{listing(list(classes))}."
            )
        if not any(selection.counts.values()):
            raise ParameterError(
                f"no record in {parts} has the value {start!r} of column {column!r}; name the records to shift "
                "with only, or read other parts."
            )
        return selection

    def mask(self, table: pa.Table) -> pa.Array:
        """Return which records are shifted; null if the attribute is missing."""
        if not self.only:
            return pc.equal(label_text(table[self.column]), self.start)
        named = pa.array(sorted(self.only), pa.string())
        of_class = pc.is_in(label_text(table[self.label]), named)
        return pc.or_(of_class, pc.is_in(plain(table["aug_id"]), named))
