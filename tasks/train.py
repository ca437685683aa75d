"""Train: a generative model fitted on the fit records, kept as a checkpoint by digest."""

from __future__ import annotations

from prefect import task

from prefect_augment.datatypes import BalancePlan, DatasetRef, ModelRef
from prefect_augment.params import AutoModel, Balance, Budget, Gate, ModelParams
from prefect_augment.stages.plan import plan as make_plan
from prefect_augment.stages.train import train
from prefect_augment.tasks._runtime import TASK_OPTIONS, open_block_store, progress, run_log

__all__ = ["train_model"]


@task(name="train_model", task_run_name="train {model.kind}", **TASK_OPTIONS)
def train_model(
    dataset: DatasetRef,
    model: ModelParams | None = None,
    *,
    plan: BalancePlan | None = None,
    budget: Budget | None = None,
    seed: int = 0,
) -> ModelRef:
    """Fit the encoder and the model on the fit records.

    Parameters
    ----------
    dataset : DatasetRef
        Ingested records; val and hold-out are not read.
    model : ModelParams, optional
        The kind of model and its parameters; chosen for the modality by default.
    plan : BalancePlan, optional
        Names the classes (strata) that the model is conditioned on; the default plan's otherwise.
    budget : Budget, optional
        Training effort.
    seed : int
        Seed of everything random in training.

    Returns
    -------
    ModelRef
        Checkpoint and encoder by digest, and the classes that can be sampled.
    """
    with run_log(), progress("train") as report:
        store = open_block_store(dataset.root, dataset.block)
        model = model or AutoModel()
        ref = train(
            dataset,
            model=model,
            plan=plan
            or make_plan(dataset, balance=Balance(), model=model, gate=Gate(), store=store),
            budget=budget or Budget(),
            seed=seed,
            store=store,
            on_progress=report,
        )
        return ref.model_copy(update={"block": dataset.block})
