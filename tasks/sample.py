"""Sample: candidates for the under-represented classes, each traceable to model and seed."""

from collections.abc import Mapping, Sequence
from typing import Any

from prefect_augment.ingest.external import import_candidates
from prefect_augment.params import Constraint
from prefect_augment.registry import load_model_class
from prefect_augment.schema import BalancePlan, DatasetRef, ModelRef
from prefect_augment.synthesis import sample
from prefect_augment.tasks._blocks import storage_options
from prefect_augment.tasks._display import progress
from prefect_augment.tasks._limits import gpu_slot
from prefect_augment.tasks._runtime import open_root, step
from prefect_augment.text import class_list


@step(lambda p: f"sample {class_list(p['counts'])}")
def sample_classes(
    dataset: DatasetRef,
    model: ModelRef,
    counts: Mapping[str, int],
    *,
    seed: int = 0,
    conditions: Mapping[str, Any] | None = None,
    constraints: Sequence[Constraint] = (),
    max_near: float | None = None,
) -> DatasetRef:
    """Draw the requested number of records per class from a trained model.

    Parameters
    ----------
    dataset : DatasetRef
        The records that the model was trained on.
    model : ModelRef
    counts : mapping of str to int
        Records per class (stratum). Larger counts later extend what was drawn.
    seed : int
        Seed of the run; each record's seed is derived from it.
    conditions : mapping of str to value, optional
        A fixed value per column, besides the class; None means a missing value.
    constraints : sequence of Constraint
        What every record keeps.
    max_near : float in [0, 1), optional
        Largest share of records nearer to a training record of their class than the nearest 5 % of
        validation records are: 0.05 is as many as among real records, 0 drops all of them.

    Returns
    -------
    DatasetRef
        Staged candidates, not yet filtered.

    Raises
    ------
    EmptyClassError
        If a class has too few records to be sampled.
    ParameterError
        If ``max_near`` is no share, a condition or a constraint does not fit the columns, or too few
        draws keep them.
    """
    with progress("sample", dataset.root) as report:
        with gpu_slot(network=load_model_class(model.kind).trained_in_steps):
            ref = sample.sample(
                model,
                counts=counts,
                seed=seed,
                store=open_root(dataset),
                dataset=dataset,
                conditions=conditions,
                constraints=constraints,
                max_near=max_near,
                on_progress=report,
            )
        return ref.model_copy(update={"block": dataset.block})


@step(lambda p: f"sample, part {p['part'] + 1} of {p['n_parts']}")
def draw_part(
    dataset: DatasetRef,
    model: ModelRef,
    counts: Mapping[str, int],
    *,
    seed: int = 0,
    part: int,
    n_parts: int,
) -> int:
    """Draw a part of the batches of :func:`sample_classes`, which finds them.

    Parameters
    ----------
    dataset, model, counts, seed
        As for :func:`sample_classes`, which then has no conditions and constraints.
    part, n_parts : int
        Which part, from 0, of how many.

    Returns
    -------
    int
        How many batches are this part's.
    """
    with gpu_slot(network=load_model_class(model.kind).trained_in_steps):
        draws = sample.Draws(model, counts, seed, open_root(dataset), dataset)
        return draws.draw_part(part, n_parts)


@step("import {uri}")
def import_synthetic(
    dataset: DatasetRef,
    plan: BalancePlan,
    uri: str,
    *,
    storage_block: str = "",
    max_megapixels: float = 50.0,
) -> DatasetRef:
    """Stage records of another tool, so that they can be evaluated like our own.

    Parameters
    ----------
    dataset : DatasetRef
        The real records; the others must have the same columns.
    plan : BalancePlan
        Names the strata.
    uri : str
        File, folder or glob of the records.
    storage_block : str
        Name of a Prefect block with the credentials, if needed.
    max_megapixels : float
        Larger images are quarantined.

    Returns
    -------
    DatasetRef
        Staged candidates; ``n_quarantined`` counts the unusable records.
    """
    ref = import_candidates(
        dataset,
        uri,
        plan=plan,
        store=open_root(dataset),
        options=storage_options(storage_block),
        max_megapixels=max_megapixels,
    )
    return ref.model_copy(update={"block": dataset.block})
