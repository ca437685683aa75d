"""Classic augmentation alone, not compared with anything, and a check of what an image policy does to labels."""

import logging
import time

from prefect_augment import params
from prefect_augment.flows._approval import publish_or_ask
from prefect_augment.flows._classic import with_classic
from prefect_augment.flows._flow import flow, named_by_source
from prefect_augment.flows._inputs import (
    as_json,
    check_before_work,
    check_parameters,
    ingested,
    reading,
)
from prefect_augment.plan.strategies import classic_recipe
from prefect_augment.plan.weights import keep_weights
from prefect_augment.report.run_summary import summarise
from prefect_augment.schema import Experiment, PolicyCheck, Release, RunResult
from prefect_augment.tasks._runtime import conclude, finish, open_root, run
from prefect_augment.tasks.augment import check_image_policy
from prefect_augment.tasks.plan import plan_balance
from prefect_augment.tasks.publish import write_report

logger = logging.getLogger(__name__)


@flow("augment", named_by_source)
def augment(
    source: params.Source = params.Source(),
    destination: params.Destination = params.Destination(),
    balance: params.Balance = params.Balance(),
    classic: params.Classic = params.Classic(),
    publish: params.Publish = params.Publish(),
    report: params.Report = params.Report(),
    compute: params.Compute = params.Compute(),
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
        compute: Where tasks run, and how many at the same time.
        seed: Seed of everything random; the same input, parameters and seed give the same bytes.
        plan_only: Show the plan and an estimate; publish nothing.
    """
    started = time.monotonic()
    run_params = params.RunParams(
        balance=balance,
        model=params.NoModel(),
        classic=classic,
        publish=publish,
        report=report,
        seed=seed,
    )
    check_parameters(source, destination, run_params)
    steps = ("ingest", "augment", "write the report", "publish")
    with reading(
        source,
        destination,
        steps=steps[:1] if plan_only else steps,
        suffix="augmented",
        publish=publish,
        job="" if plan_only else "augment",
        compute=compute,
    ) as (source, destination, _):
        dataset = ingested(source, destination, seed=seed)
        plan = run(plan_balance, dataset, run_params, compares=False)
        experiment = Experiment(dataset=dataset, plan=plan, params=run_params)
        if plan_only:
            result = summarise(Release(experiment=experiment), status="planned", started=started)
            return conclude(result, dataset)
        check_before_work(experiment)
        recipe = classic_recipe(plan, dataset.modality, classic)
        recipe = keep_weights(recipe, plan, publish, open_root(dataset))
        logger.info("%s To have it compared, run the flow rebalance instead.", recipe.sentence)
        requested = as_json(run_params, source, destination) | {"flow": "augment"}
        release = Release(experiment=experiment, recipe=recipe, requested=requested)
        release = with_classic(release)
        page = run(write_report, release)
        return publish_or_ask(release, page, params.Approval(), started=started)


@flow("check-policy", "check policy {classic.image}")
def check_policy(
    source: params.Source = params.Source(),
    destination: params.Destination = params.Destination(),
    classic: params.Classic = params.Classic(),
    report: params.Report = params.Report(),
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
    check_parameters(source, destination, params.RunParams(model=params.NoModel(), seed=seed))
    steps = ("ingest", "check policy")
    with reading(source, destination, steps=steps, suffix="augmented") as (source, destination, _):
        dataset = ingested(source, destination, seed=seed)
        shows = report.pictures == "real"
        check = run(check_image_policy, dataset, classic, seed=seed, show_pictures=shows)
        bad = ", ".join(op.name for op in check.damaging)
        sentence = f"May change what images show: {bad}." if bad else "No damage was found."
        return finish(check, sentence)
