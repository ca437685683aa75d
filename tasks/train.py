"""Train: a generative model fitted on the training records, kept as a checkpoint by digest."""

from __future__ import annotations

from typing import Any

from prefect import task

from prefect_augment.registry import load_model_class
from prefect_augment.schema.base import ModelRef
from prefect_augment.schema.experiment import Experiment
from prefect_augment.synthesis.train import find_model, train
from prefect_augment.tasks._limits import gpu_slot
from prefect_augment.tasks._runtime import (
    TASK_OPTIONS,
    named,
    open_root,
    progress,
    run_log,
)

__all__ = ["train_model"]


def _name(parameters: dict[str, Any]) -> str:
    params = parameters["experiment"].params
    return f"train {getattr(params.model, 'name', params.model.kind)}, seed {params.seed}"


@task(name="train_model", task_run_name=named(_name), **TASK_OPTIONS)
def train_model(experiment: Experiment) -> ModelRef:
    """Fit the encoder and the model on the training records.

    Parameters
    ----------
    experiment : Experiment
        Ingested records, of which validation and hold-out are not read; the plan names the classes
        (strata) that the model is conditioned on; the kind of model, the budget and the seed.

    Returns
    -------
    ModelRef
        Checkpoint and encoder by digest, and the classes that can be sampled.
    """
    dataset, params = experiment.dataset, experiment.params
    with run_log(), progress("train", dataset.root) as report:
        store = open_root(dataset)
        ref = find_model(experiment, store)
        if ref is None:  # no run waits for a GPU that it has no work for
            network = load_model_class(params.model, modality=dataset.modality).trained_in_steps
            with gpu_slot(params.budget.device, network=network):
                ref = train(experiment, store, on_progress=report)
        return ref.model_copy(update={"block": dataset.block})
