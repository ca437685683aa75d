"""Training alone: a model kept below the destination, which a later `rebalance` finds and uses."""

import logging
import time

from prefect_augment import params
from prefect_augment.errors import ParameterError
from prefect_augment.flows._flow import flow, named_by_source
from prefect_augment.flows._inputs import check_comparison, check_parameters, ingested, reading
from prefect_augment.report.run_summary import peak_rss_bytes
from prefect_augment.schema import Experiment, TrainResult
from prefect_augment.synthesis.train import find_model
from prefect_augment.tasks._runtime import finish, open_root, run
from prefect_augment.tasks.plan import plan_balance
from prefect_augment.tasks.train import train_model

logger = logging.getLogger(__name__)


@flow("train", named_by_source)
def train(
    source: params.Source = params.Source(),
    destination: params.Destination = params.Destination(),
    balance: params.Balance = params.Balance(),
    model: params.ModelParams = params.AutoModel(),
    budget: params.Budget = params.Budget(),
    compute: params.Compute = params.Compute(),
    seed: int = 0,
) -> TrainResult:
    """Train the generative model ahead of time, for example where the GPU is at night.

    Args:
        source: Where the labelled records are. Empty: the built-in example.
        destination: The destination of the later rebalance; the model waits below its _staging.
        balance: As in the later rebalance; the columns in `by` change what the model is trained on.
        model: The generative model.
        budget: How much effort the run may take.
        compute: Where tasks run, and how many at the same time.
        seed: Seed of everything random; rebalance reuses the model with the same seed and budget.
    """
    started = time.monotonic()
    if isinstance(model, params.NoModel):
        raise ParameterError(
            "model is 'none', so there is nothing to train; choose auto or a kind such as trees or diffusion."
        )
    run_params = params.RunParams(balance=balance, model=model, budget=budget, seed=seed)
    check_parameters(source, destination, run_params)
    # Nothing is published, so no other run has to wait; later runs find the model by its receipt.
    steps = ("ingest", "train")
    with reading(source, destination, steps=steps, compute=compute) as (source, destination, _):
        dataset = ingested(source, destination, seed=seed)
        check_comparison(dataset, run_params)
        plan = run(plan_balance, dataset, run_params)
        experiment = Experiment(dataset=dataset, plan=plan, params=run_params)
        known = find_model(experiment, open_root(dataset))
        trained = run(train_model, experiment)
        outcome = "Nothing new: there was a model" if known else "Trained"
        logger.info(
            "%s %s, %d steps on %d training records: checkpoint %s, encoder %s; it can sample %d of %d classes.",
            outcome,
            trained.kind,
            trained.steps,
            trained.n_training,
            trained.digest[:12],
            trained.encoder_digest[:12],
            len(trained.strata),
            len(plan.classes),
        )
        result = TrainResult(
            status="unchanged" if known else "trained",
            model=trained,
            plan=plan,
            n_records=dataset.n_records,
            quarantined=dataset.n_quarantined,
            seconds=round(time.monotonic() - started, 2),
            peak_rss_bytes=peak_rss_bytes(),
            notes=(*trained.notes, *plan.warnings),
        )
        sentence = (
            f"{outcome} {trained.kind}, {trained.steps} steps, for {len(trained.strata)} classes."
        )
        return finish(result, sentence)
