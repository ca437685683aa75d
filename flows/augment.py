"""Classic augmentation alone: SMOTE records or changed copies of images up to the target, not judged."""

from __future__ import annotations

import logging
import time

from prefect import flow

from prefect_augment.augmentation.label_preservation import needs_check
from prefect_augment.flows._inputs import (
    as_json,
    check_parameters,
    default_destination,
    default_source,
    running,
)
from prefect_augment.params import (
    Balance,
    Budget,
    Classic,
    Destination,
    NoModel,
    Publish,
    Report,
    Source,
)
from prefect_augment.plan.strategies import classic_recipe
from prefect_augment.plan.weights import inherit_weights
from prefect_augment.publish.export import check_export
from prefect_augment.publish.publish import check_destination
from prefect_augment.registry import check_shard_format
from prefect_augment.report.run_summary import summarise
from prefect_augment.schema.base import RunResult
from prefect_augment.tasks._runtime import conclude, open_destination, run
from prefect_augment.tasks.augment import augment_records
from prefect_augment.tasks.check_policy import check_image_policy
from prefect_augment.tasks.ingest import ingest_dataset
from prefect_augment.tasks.plan import plan_balance
from prefect_augment.tasks.publish import publish_dataset, write_report

__all__ = ["augment"]

logger = logging.getLogger(__name__)


@flow(name="augment", flow_run_name="augment {source.uri}", persist_result=False)
def augment(
    source: Source = Source(),
    destination: Destination = Destination(),
    balance: Balance = Balance(),
    classic: Classic = Classic(),
    publish: Publish = Publish(),
    report: Report = Report(),
    seed: int = 0,
    plan_only: bool = False,
) -> RunResult:
    """Bring the rare classes up by classic augmentation alone, without asking whether it helps.

    Args:
        source: Where the labelled records are. Empty: the built-in example.
        destination: Where the augmented dataset is published, version by version.
        balance: How far the rare classes are brought up.
        classic: How records are made: SMOTE on tables, small changes of pictures on images.
        publish: What is written.
        report: What may be seen in the report.
        seed: Seed of everything random; the same input, parameters and seed give the same bytes.
        plan_only: Show the plan and an estimate; publish nothing.
    """
    started = time.monotonic()
    model = NoModel()
    check_parameters(
        source=source, destination=destination, budget=Budget(), model=model, seed=seed
    )
    destination = default_destination(destination, source, suffix="augmented")
    with running(destination, publishes=not plan_only):
        source = default_source(source, destination)
        dataset = run(ingest_dataset, source, destination, seed=seed)
        plan = run(plan_balance, dataset, balance, model=model, seed=seed)
        if plan_only:
            result = summarise(dataset, plan, status="planned", started=started)
            return conclude(result, dataset.root, dataset.block)
        store = open_destination(destination)
        check_destination(store, dataset)
        if publish.export:
            check_export(store, publish.export)
        check_shard_format(publish.format, modality=dataset.modality)

        if needs_check(classic, dataset, balance):
            run(
                check_image_policy,
                dataset,
                classic,
                seed=seed,
                show_pictures=report.pictures == "real",
            )
        recipe = inherit_weights(
            classic_recipe(plan, dataset.modality, classic), plan, publish, store
        )
        made = None
        if recipe.classic:
            made = run(augment_records, dataset, plan, recipe.classic, classic, seed=seed)
        logger.info("%s To have it judged, run the flow rebalance instead.", recipe.sentence)
        page = run(
            write_report,
            dataset,
            plan,
            recipe=recipe,
            pictures=report,
            classic=classic,
            seed=seed,
        )
        commit = run(
            publish_dataset,
            dataset,
            plan=plan,
            recipe=recipe,
            classic=made,
            report=page,
            settings=publish,
            params=as_json(source, destination, balance, classic, publish, report)
            | {"flow": "augment", "seed": seed},
        )
        result = summarise(
            dataset,
            plan,
            status="published" if commit.created else "unchanged",
            started=started,
            store=store,
            commit=commit,
            recipe=recipe,
            report=page,
        )
        return conclude(result, dataset.root, dataset.block)
