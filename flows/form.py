"""The form of the `rebalance` deployment: five fields, and a group for the rest."""

from typing import Any, Literal

from prefect_augment.errors import ParameterError
from prefect_augment.flows._flow import flow, named_by_source
from prefect_augment.flows.rebalance import rebalance as rebalance_dataset
from prefect_augment.params import Approval, Destination, ImageSettings, Source, TableSettings
from prefect_augment.params.locations import Location
from prefect_augment.schema import RunResult


@flow("rebalance", named_by_source)
def rebalance(
    source: Location = "",
    label: str = "",
    destination: Location = "",
    approval: Literal["not needed", "needed"] = "not needed",
    plan_only: bool = False,
    tables: TableSettings | None = None,
    images: ImageSettings | None = None,
) -> RunResult:
    """Balance the rare classes of a labelled dataset in the way that helps on held-out real data.

    Args:
        source: Labelled records: a file, a folder or a glob, local to the worker or a URL (s3://…). Empty: the
            built-in example.
        label: The column that holds the class. Empty: detected where only one column can be it, and for images
            the folder's name.
        destination: A folder or URL to publish into, version by version. Empty: a folder named after the source, in
            prefect-augment in the home folder of the worker's user.
        approval: Whether somebody has to approve the version before it is published; the run waits for the answer.
        plan_only: Show the plan and an estimate of the time; train and publish nothing.
        tables: Everything else, where the records are rows of a table.
        images: Everything else, where the records are images.
    """
    if tables and images:
        raise ParameterError("tables and images are both given; keep the one that the source is.")
    given = tables or images or TableSettings()
    sections = {name: getattr(given, name) for name in type(given).model_fields}
    known: dict[str, Any] = {name: value for name, value in sections.items() if value is not None}
    known["source"] = (given.source or Source()).model_copy(update={"uri": source, "label": label})
    known["destination"] = (given.destination or Destination()).model_copy(
        update={"uri": destination}
    )
    known["approval"] = (given.approval or Approval()).model_copy(
        update={"ask": approval == "needed"}
    )
    # Called as a function, so that this run's own page has the tasks, the plan and the answer.
    return rebalance_dataset.fn(**known, plan_only=plan_only)
