"""Train: fit a generative model on the training records and keep it as a checkpoint by digest."""

from typing import Any

from prefect_augment.registry import load_model_class
from prefect_augment.schema import Experiment, ModelRef
from prefect_augment.synthesis.train import find_model, train
from prefect_augment.tasks._display import progress
from prefect_augment.tasks._limits import gpu_slot
from prefect_augment.tasks._runtime import open_root, step


def _name(parameters: dict[str, Any]) -> str:
    params = parameters["experiment"].params
    return f"train {getattr(params.model, 'name', params.model.kind)}, seed {params.seed}"


@step(_name)
def train_model(experiment: Experiment) -> ModelRef:
    """Fit the encoder and the model on the training records.

    Parameters
    ----------
    experiment : Experiment
        Only training records are read; the plan names the classes (strata) that condition the model.

    Returns
    -------
    ModelRef
        Checkpoint and encoder by digest, and the classes that can be sampled.
    """
    dataset, params = experiment.dataset, experiment.params
    with progress("train", dataset.root) as report:
        store = open_root(dataset)
        ref = find_model(experiment, store)
        if ref is None:  # without work no run waits for a GPU
            network = load_model_class(params.model, modality=dataset.modality).trained_in_steps
            with gpu_slot(params.budget.device, network=network, n=params.budget.devices):
                ref = train(experiment, store, on_progress=report)
        return ref.model_copy(update={"block": dataset.block})
