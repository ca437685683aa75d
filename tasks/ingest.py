"""Ingest: from a labelled source to validated and split records."""

from prefect_augment.ingest.ingest import ingest, ingest_part as stage_part, near_part as stage_near
from prefect_augment.params import Destination, Source
from prefect_augment.schema import DatasetRef
from prefect_augment.tasks._blocks import storage_options
from prefect_augment.tasks._display import progress
from prefect_augment.tasks._runtime import open_destination, step


@step("ingest {source.uri}")
def ingest_dataset(source: Source, destination: Destination, *, seed: int = 0) -> DatasetRef:
    """Read a labelled source, split it, and quarantine unusable records.

    Parameters
    ----------
    source : Source
    destination : Destination
        Validated records stay below its ``_staging`` until something is published.
    seed : int
        Fixes the split's salt at the destination's first version; later versions inherit it.

    Returns
    -------
    DatasetRef
        The staged records, split into training, validation and hold-out.

    Raises
    ------
    InputError
        If the source cannot be used; the message names file, column or row.
    StorageError
        If the source cannot be read, or the destination cannot be written, read, listed and cleaned.
    """
    with progress("ingest", destination.uri) as report:
        store = open_destination(destination)
        ref = ingest(
            source,
            store=store,
            seed=seed,
            source_options=storage_options(source.storage_block),
            on_progress=report,
        )
        # Needed even if nothing new was written: later steps write to it.
        store.check_writable()
        return ref.model_copy(update={"block": destination.storage_block})


@step(lambda p: f"ingest, part {p['part'] + 1} of {p['n_parts']}")
def ingest_part(
    source: Source, destination: Destination, *, seed: int = 0, part: int, n_parts: int
) -> int:
    """Check a part of the source's images, or parse a part of its text files, for :func:`ingest_dataset`.

    Parameters
    ----------
    source, destination, seed
        As for :func:`ingest_dataset`.
    part, n_parts : int
        Which part, from 0, of how many.

    Returns
    -------
    int
        How many images or files are this part's; 0 of a table whose files have types.
    """
    return stage_part(
        source,
        store=open_destination(destination),
        seed=seed,
        source_options=storage_options(source.storage_block),
        part=part,
        n_parts=n_parts,
    )


@step(lambda p: f"near-duplicates, part {p['part'] + 1} of {p['n_parts']}")
def near_part(
    source: Source, destination: Destination, *, seed: int = 0, part: int, n_parts: int
) -> int:
    """Compare a part of the images, which all of :func:`ingest_part` have checked, for :func:`ingest_dataset`.

    Parameters
    ----------
    source, destination, seed
        As for :func:`ingest_dataset`; of images whose near-duplicates stay together.
    part, n_parts : int
        Which part, from 0, of how many.

    Returns
    -------
    int
        How many images there are.
    """
    return stage_near(
        source,
        store=open_destination(destination),
        seed=seed,
        source_options=storage_options(source.storage_block),
        part=part,
        n_parts=n_parts,
    )
