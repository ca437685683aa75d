"""Augment: classic records (the SMOTE family), written only where the recipe asks for them."""

from __future__ import annotations

from collections.abc import Mapping

from prefect import task

from prefect_augment.augmentation.base import augment
from prefect_augment.params import Classic
from prefect_augment.schema.base import BalancePlan, DatasetRef
from prefect_augment.tasks._runtime import (
    TASK_OPTIONS,
    class_list,
    named,
    open_block_store,
    run_log,
)

__all__ = ["augment_records"]


@task(
    name="augment_records",
    task_run_name=named(lambda p: f"augment {class_list(p['counts'])}"),
    **TASK_OPTIONS,
)
def augment_records(
    dataset: DatasetRef,
    plan: BalancePlan,
    counts: Mapping[str, int],
    classic: Classic | None = None,
    *,
    seed: int = 0,
) -> DatasetRef:
    """Write classic records made from the training part, each naming its parent.

    Parameters
    ----------
    dataset : DatasetRef
        Ingested records; the hold-out is not read.
    plan : BalancePlan
        Names the strata.
    counts : mapping of str to int
        Records to make per stratum.
    classic : Classic, optional
        How they are made.
    seed : int
        Seed of everything random.

    Returns
    -------
    DatasetRef
        Staged classic records.
    """
    with run_log():
        ref = augment(
            dataset,
            plan=plan,
            counts=counts,
            classic=classic or Classic(),
            seed=seed,
            store=open_block_store(dataset.root, dataset.block),
        )
        return ref.model_copy(update={"block": dataset.block})
