"""Profile: what a source holds, said before anything is done with it. Writes nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from prefect_augment.datatypes import ColumnFact, ImageFacts, Profile
from prefect_augment.encoding.columns import describe_columns
from prefect_augment.encoding.labels import class_names, label_text, missing_labels
from prefect_augment.errors import InputError, ParameterError
from prefect_augment.params import Source
from prefect_augment.shards.image_files import MASKS
from prefect_augment.splitting import MIN_JUDGED, Ledger
from prefect_augment.stages.image_columns import record_keys
from prefect_augment.stages.listing import Listing, list_source
from prefect_augment.stages.near_split import find_clusters
from prefect_augment.stages.source import SourceTable, read_source
from prefect_augment.stages.usable import Labelled, find_records
from prefect_augment.stages.usable_images import image_notes

__all__ = ["profile"]


def profile(source: Source, *, source_options: dict[str, Any] | None = None) -> Profile:
    """Return what was found in a source: columns, types, classes, sizes, troubles.

    What ingest would refuse about the label or the parameters is a note here, so that the rest can
    be seen; what cannot be read at all is an error here as well.

    Parameters
    ----------
    source : Source
        Where the records are; the label may be left open.
    source_options : dict, optional
        fsspec storage options.

    Raises
    ------
    InputError
        If nothing is there, or its files do not fit together.
    """
    listing = list_source(source.uri, wished=source.format, options=source_options)
    data = read_source(listing, source)
    try:
        found = find_records(data, source, manifest=listing.manifest)
    except (InputError, ParameterError) as exc:
        return _unusable(source, listing, data, str(exc))
    names = label_text(found.data.table[found.label])
    counts = Counter(names.to_pylist())
    ordered = {name: counts[name] for name in class_names(found.data.table[found.label])}
    small = [name for name, n in ordered.items() if n < MIN_JUDGED]
    notes = [f"column {c.name!r} ({c.kind}): {c.note}" for c in found.columns if c.note]
    image = _image_facts(found)
    if small:
        notes.insert(
            0,
            f"fewer than {MIN_JUDGED} records, so trained on but not judged: {', '.join(map(repr, small))}",
        )
    return _profile(
        source,
        listing,
        found.data,
        label=found.label,
        columns=found.columns,
        counts=ordered,
        usable=True,
        notes=[*notes, *data.notes, *image_notes(image)],
        image=image,
    )


def _image_facts(found: Labelled) -> ImageFacts | None:
    """Counts of the images and of their near-duplicates, as a first version would find them."""
    if found.images is None:
        return None
    keys = record_keys(found.data.table, label=found.label)
    names = find_clusters(keys, found.images.thumbs, ledger=Ledger("")).names
    sizes = np.unique(names, return_counts=True)[1]
    return found.images.facts(
        n_clusters=int((sizes > 1).sum()),
        n_clustered=int(sizes[sizes > 1].sum()),
        largest_cluster=int(sizes.max()),
    )


def _unusable(source: Source, listing: Listing, data: SourceTable, trouble: str) -> Profile:
    """What can be said although the label or a parameter does not fit."""
    counts: dict[str, int] = {}
    label = source.label if source.label in data.table.column_names else ""
    if label:
        missing = missing_labels(data.table[label]) if _is_flat(data, label) else None
        if missing is not None:
            data = data.without(missing.to_numpy(zero_copy_only=False), "no label")
            counts = dict(Counter(label_text(data.table[label]).to_pylist()).most_common(100))
    columns = describe_columns(data.table, label=label)
    return _profile(
        source,
        listing,
        data,
        label=label,
        columns=columns,
        counts=counts,
        usable=False,
        notes=[trouble, *data.notes],
    )


def _is_flat(data: SourceTable, label: str) -> bool:
    """Whether the label can be shown as text at all."""
    return describe_columns(data.table.select([label]), label="")[0].n_unique >= 0


def _profile(
    source: Source,
    listing: Listing,
    data: SourceTable,
    *,
    label: str,
    columns: tuple[ColumnFact, ...],
    counts: dict[str, int],
    usable: bool,
    notes: list[str],
    image: ImageFacts | None = None,
) -> Profile:
    return Profile(
        source=source.uri,
        format=listing.format,
        label=label,
        usable=usable,
        n_files=len(listing.entries),
        n_bytes=sum(max(0, entry.n_bytes) for entry in listing.entries),
        n_records=data.table.num_rows,
        columns=columns,
        class_counts=counts,
        imbalance_ratio=max(counts.values()) / min(counts.values()) if counts else 0.0,
        n_quarantined=len(data.rejected),
        quarantine=dict(Counter(q.reason for q in data.rejected)),
        modality="table" if image is None else "image",
        image=image,
        notes=tuple(sorted(notes, key=lambda note: not note.startswith(MASKS))),
    )
