"""Plan: how many records each class has and gets, and where they come from."""

from prefect_augment.params import RunParams
from prefect_augment.plan.plan import plan
from prefect_augment.report.report import plan_table
from prefect_augment.schema import BalancePlan, DatasetRef
from prefect_augment.tasks._display import artifact_key, dataset_slug, table_artifact
from prefect_augment.tasks._runtime import open_root, step
from prefect_augment.text import class_list


@step(lambda p: f"plan {class_list(p['dataset'].class_counts)}")
def plan_balance(
    dataset: DatasetRef,
    params: RunParams | None = None,
    *,
    searched: bool = False,
    compares: bool = True,
) -> BalancePlan:
    """Work out each class's target, and how many synthetic and classic records lead to it.

    Parameters
    ----------
    dataset : DatasetRef
        Ingested records.
    params : RunParams, optional
        Balance, model and budget; the budget decides whether a generator of images is worth training.
    searched : bool
        Whether the number of synthetic records is searched on validation records: with ``model: auto``
        and no cap, up to 5 per real record are planned.
    compares : bool
        Whether strategies are compared afterwards.

    Returns
    -------
    BalancePlan
        One entry per class (per class and cell with ``balance.by``), shown as a table artifact.

    Raises
    ------
    ParameterError
        If a target is below the class's count, or a class or column is not known.
    """
    store = open_root(dataset)
    result = plan(dataset, params or RunParams(), store, searched=searched, compares=compares)
    key = artifact_key("plan", dataset_slug(dataset.root))
    table_artifact(key, plan_table(result), f"Plan: {result.rule}")
    return result
