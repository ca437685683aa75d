"""Interpolate: the records that a model decodes between two others."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefect_augment.array_types import Float
from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.latents.adapter import View, column_values
from prefect_augment.latents.reconstruct import decoding_strata
from prefect_augment.params import Interpolation
from prefect_augment.schema import LatentRef


@dataclass(frozen=True)
class _End:
    """A record at one end of a strip."""

    record: pa.Table
    z: Float
    centre: Float | None = None  # mean vector of its class

    @property
    def aug_id(self) -> str:
        return str(self.record["aug_id"][0].as_py())


def interpolate(view: View, params: Interpolation) -> LatentRef:
    """Write a strip of records between two, decoded from vectors on the :func:`way` between theirs.

    A class is represented by its medoid: the learnt record nearest to the mean of the class's vectors.
    Vectors of the first half are decoded as the first record's stratum, the others as the last one's. The
    Parquet has ``aug_step``, ``aug_place`` (0 to 1), ``aug_id`` (null but for the two records, first and
    last), the learnt columns, and the label.

    Raises ParameterError for an end that is neither class nor record, or equal ends.
    """
    strata, folder = view.strata, view.job.folder
    ends = _ends(view, params)
    places = np.linspace(0.0, 1.0, params.n_steps)
    between = None
    if params.path == "class" and ends[0].centre is not None and ends[1].centre is not None:
        between = ends[1].centre - ends[0].centre
    Z = way(ends[0].z, ends[1].z, places, between)
    advice = "let the strip begin and end with classes that it knows, or records of them"
    codes = np.concatenate([decoding_strata(end.record, strata, "", advice=advice) for end in ends])
    y = np.where(places < 0.5, codes[0], codes[1])
    X = view.fitted.decode_latents(view.finite(Z.astype(np.float32), "vectors"), y)
    decoded = view.decode(X, y, [f"step-{i:04d}" for i in range(len(y))])
    strip = _strip(decoded, places, ends)
    shards = folder.put(iter([strip]), strip.num_rows, "strip", split="strip", origin="synthetic")
    return view.job.finish(
        shards,
        summary={
            "start": ends[0].aug_id,
            "end": ends[1].aug_id,
            "start_class": strata.of_class[codes[0]],
            "end_class": strata.of_class[codes[1]],
            "distance": float(np.linalg.norm(ends[1].z - ends[0].z)),
        },
        pictures=(view.strip_picture(strip),),
    )


def way(first: Float, last: Float, places: Float, between: Float | None = None) -> Float:
    """Return vectors between two, shape (n_places, n_latent), at ``places`` from 0 to 1 on a straight line.

    ``between`` is the last class's mean vector less the first one's. With it only the deviation from the
    means is interpolated, and the class changes as a whole in the middle: half-way between two means a
    decoder often finds a third class.
    """
    t = places[:, None]
    line: Float = (1 - t) * first + t * last
    return line if between is None else line + ((t >= 0.5) - t) * between


def _strip(decoded: pa.Table, places: Float, ends: Sequence[_End]) -> pa.Table:
    """Return the first record, the decoded ones and the last record, numbered from 0."""
    first, last = (
        end.record.select(decoded.column_names).cast(decoded.schema.remove_metadata())
        for end in ends
    )
    tables = [t.replace_schema_metadata(None) for t in (first, decoded, last)]
    strip = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    lineage = {
        "aug_step": pa.array(np.arange(strip.num_rows), pa.int32()),
        "aug_place": pa.array(np.concatenate([[0.0], places, [1.0]]), pa.float64()),
        "aug_id": pa.array([ends[0].aug_id, *[None] * len(places), ends[1].aug_id], pa.string()),
    }
    columns = {**lineage, **{name: strip[name] for name in strip.column_names}}
    return pa.table(columns).replace_schema_metadata(decoded.schema.metadata)


def _ends(view: View, params: Interpolation) -> list[_End]:
    job, strata = view.job, view.strata
    counts = Counter[str]()
    for part in job.info.part_counts.values():
        counts.update(part)
    by_size = sorted(strata.classes, key=lambda name: (-counts[name], name))
    names = [params.start or by_size[0], params.end or by_size[-1]]
    if names[0] == names[1]:
        raise ParameterError(
            f"both ends of the strip are {names[0]!r}; name two classes, or two records by their "
            f"aug_id. Classes: {', '.join(map(repr, strata.classes))}."
        )
    records = [None if name in strata.classes else _record(view, name) for name in names]
    classes = [
        name if end is None else column_values(end.record, job.info.label)[0]
        for name, end in zip(names, records, strict=True)
    ]
    values = [*dict.fromkeys(name for name in classes if name is not None)]
    centres = view.vector_means(job.info.label, values)
    medoids = _medoids(view, centres, [n for n in names if n in strata.classes])
    return [
        replace(end or medoids[name], centre=centres.get(name))
        for name, end in zip(classes, records, strict=True)
    ]


def _record(view: View, aug_id: str) -> _End:
    for table in view.job.tables(view.job.shards):
        record = table.filter(pc.equal(table["aug_id"], aug_id)).slice(0, 1)
        if record.num_rows:
            return _End(record, view.vectors(record)[0])
    raise ParameterError(
        f"{aug_id!r} is neither a class nor the aug_id of a record in {', '.join(view.job.parts)}; classes: "
        f"{', '.join(map(repr, view.strata.classes))}."
    )


def _medoids(view: View, centres: Mapping[str, Float], classes: Sequence[str]) -> dict[str, _End]:
    """Return of each class the learnt record nearest to the mean of its vectors."""
    empty = [name for name in classes if name not in centres]
    if empty:
        raise EmptyClassError(
            f"class {empty[0]!r} has no training record to represent it; name a record by its aug_id.",
            class_name=empty[0],
        )
    best: dict[str, tuple[float, _End]] = {}
    job = view.job
    shards = job.learnt_shards if classes else []
    for name, table, Z in view.vectors_by(job.info.label, classes, shards):
        distances = np.linalg.norm(Z - centres[name], axis=1)
        i = int(distances.argmin())
        if name not in best or distances[i] < best[name][0]:
            best[name] = float(distances[i]), _End(table.slice(i, 1), Z[i])
    return {name: end for name, (_, end) in best.items()}
