"""Augment: classic records (the SMOTE family), written only where the recipe asks for them."""

from __future__ import annotations

from collections.abc import Mapping

from prefect import task

from prefect_augment.augmentation.base import augment
from prefect_augment.schema.base import DatasetRef
from prefect_augment.schema.experiment import Experiment
from prefect_augment.tasks._runtime import (
    TASK_OPTIONS,
    class_list,
    named,
    open_root,
    run_log,
)

__all__ = ["augment_records"]


@task(
    name="augment_records",
    task_run_name=named(lambda p: f"augment {class_list(p['counts'])}"),
    **TASK_OPTIONS,
)
def augment_records(experiment: Experiment, counts: Mapping[str, int]) -> DatasetRef:
    """Write classic records made from the training part, each naming its parent.

    Parameters
    ----------
    experiment : Experiment
        Ingested records, of which the hold-out is not read; ``params.classic`` says how records are made.
    counts : mapping of str to int
        Records to make per stratum of the plan.

    Returns
    -------
    DatasetRef
        Staged classic records.
    """
    dataset, params = experiment.dataset, experiment.params
    with run_log():
        ref = augment(
            dataset,
            plan=experiment.plan,
            counts=counts,
            classic=params.classic,
            seed=params.seed,
            store=open_root(dataset),
        )
        return ref.model_copy(update={"block": dataset.block})
