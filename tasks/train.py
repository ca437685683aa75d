"""Train: a generative model fitted on the training records, kept as a checkpoint by digest."""

from __future__ import annotations

from typing import Any

from prefect import task

from prefect_augment.params import AutoModel, Balance, Budget, Gate, ModelParams
from prefect_augment.plan.plan import plan as make_plan
from prefect_augment.registry import load_model_class
from prefect_augment.schema.base import BalancePlan, DatasetRef, ModelRef
from prefect_augment.synthesis.train import find_model, train
from prefect_augment.tasks._limits import gpu_slot
from prefect_augment.tasks._runtime import (
    TASK_OPTIONS,
    named,
    open_block_store,
    progress,
    run_log,
)

__all__ = ["train_model"]


def _name(parameters: dict[str, Any]) -> str:
    model, seed = parameters.get("model"), parameters.get("seed", 0)
    return f"train {getattr(model, 'name', model.kind) if model else 'auto'}, seed {seed}"


@task(name="train_model", task_run_name=named(_name), **TASK_OPTIONS)
def train_model(
    dataset: DatasetRef,
    model: ModelParams | None = None,
    *,
    plan: BalancePlan | None = None,
    budget: Budget | None = None,
    seed: int = 0,
) -> ModelRef:
    """Fit the encoder and the model on the training records.

    Parameters
    ----------
    dataset : DatasetRef
        Ingested records; validation and hold-out are not read.
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
    with run_log(), progress("train", dataset.root) as report:
        store = open_block_store(dataset.root, dataset.block)
        model, budget = model or AutoModel(), budget or Budget()
        plan = plan or make_plan(dataset, balance=Balance(), model=model, gate=Gate(), store=store)
        wish: dict[str, Any] = {
            "model": model,
            "plan": plan,
            "budget": budget,
            "seed": seed,
            "store": store,
        }
        ref = find_model(dataset, **wish)
        if ref is None:  # no run waits for a GPU that it has no work for
            network = load_model_class(model, modality=dataset.modality).trained_in_steps
            with gpu_slot(budget.device, network=network):
                ref = train(dataset, on_progress=report, **wish)
        return ref.model_copy(update={"block": dataset.block})
