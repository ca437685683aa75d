"""Check a policy of classic augmentation on a source of images, before anything is made by it."""

from __future__ import annotations

from prefect import flow

from prefect_augment.augmentation.label_preservation import PolicyCheck
from prefect_augment.flows._inputs import (
    check_parameters,
    default_destination,
    default_source,
    running,
)
from prefect_augment.params import Classic, Destination, NoModel, Report, RunParams, Source
from prefect_augment.tasks._runtime import finish, run
from prefect_augment.tasks.check_policy import check_image_policy
from prefect_augment.tasks.ingest import ingest_dataset

__all__ = ["check_policy"]


@flow(name="check-policy", flow_run_name="check policy {classic.image}", persist_result=False)
def check_policy(
    source: Source = Source(),
    destination: Destination = Destination(),
    classic: Classic = Classic(),
    report: Report = Report(),
    seed: int = 0,
) -> PolicyCheck:
    """Show what each operation of a policy does to the images, and whether a classifier still sees their class.

    Args:
        source: Where the labelled images are.
        destination: Where a later rebalance or augment publishes; what is staged there is used again.
        classic: The policy.
        report: What may be seen on the run's page.
        seed: Seed of everything random.
    """
    check_parameters(source, destination, RunParams(model=NoModel(), seed=seed))
    destination = default_destination(destination, source, suffix="augmented")
    with running(destination, publishes=False):
        source = default_source(source, destination)
        dataset = run(ingest_dataset, source, destination, seed=seed)
        found = run(
            check_image_policy,
            dataset,
            classic,
            seed=seed,
            show_pictures=report.pictures == "real",
        )
        bad = ", ".join(op.name for op in found.damaging)
        return finish(
            found, f"May change what images show: {bad}." if bad else "No damage was found."
        )
