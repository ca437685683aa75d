"""Plan: how many records each class has, should have, and where they come from."""

from __future__ import annotations

from prefect import task

from prefect_augment.params import RunParams
from prefect_augment.plan.plan import plan
from prefect_augment.report.report import plan_table
from prefect_augment.schema.base import BalancePlan, DatasetRef
from prefect_augment.tasks._runtime import (
    TASK_OPTIONS,
    artifact_key,
    class_list,
    dataset_slug,
    named,
    open_root,
    run_log,
    table_artifact,
)

__all__ = ["plan_balance"]


@task(
    name="plan_balance",
    task_run_name=named(lambda p: f"plan {class_list(p['dataset'].class_counts)}"),
    **TASK_OPTIONS,
)
def plan_balance(
    dataset: DatasetRef,
    params: RunParams | None = None,
    *,
    searched: bool = False,
    compares: bool = True,
) -> BalancePlan:
    """Work out each class's target, and how much of the way synthetic and classic records go.

    Parameters
    ----------
    dataset : DatasetRef
        Ingested records.
    params : RunParams, optional
        Targets and caps; the kind of model, where ``none`` plans no synthetic records; the budget, which
        bounds the classifier of images and decides whether a generator of images is worth it.
    searched : bool
        The number of synthetic records is searched on validation records: where ``model`` is auto and no cap
        is given, up to 5 per real one are planned.
    compares : bool
        Whether strategies are compared after it.

    Returns
    -------
    BalancePlan
        One entry per class (per class and cell with ``balance.by``), shown as a table artifact.

    Raises
    ------
    ParameterError
        If a target is below what is there, or a class or column is not known.
    """
    with run_log():
        store = open_root(dataset)
        result = plan(dataset, params or RunParams(), store, searched=searched, compares=compares)
        key = artifact_key(dataset_slug(dataset.root), "plan")
        table_artifact(key, plan_table(result), f"Plan: {result.rule}")
        return result
