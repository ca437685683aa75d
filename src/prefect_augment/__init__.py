"""Augmentation as a step of ETL: rebalance labelled datasets inside Prefect, with proof that it helps.

The public names are loaded on first use, so that ``import prefect_augment`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_augment.estimators.recipe_classifier import RecipeClassifier
    from prefect_augment.estimators.sampler import GenerativeSampler
    from prefect_augment.flows.approve import approve
    from prefect_augment.flows.augment import augment
    from prefect_augment.flows.evaluate import evaluate
    from prefect_augment.flows.latents import (
        anomalies,
        classify,
        denoise,
        embed,
        interpolate,
        reconstruct,
        shift_attribute,
    )
    from prefect_augment.flows.rebalance import rebalance
    from prefect_augment.flows.train import train
    from prefect_augment.loading.dataset import open_dataset
    from prefect_augment.loading.latents import open_latents
    from prefect_augment.params import (
        Anomalies,
        Answer,
        Approval,
        AttributeShift,
        AutoencoderModel,
        AutoModel,
        Balance,
        Budget,
        ClassAmount,
        Classic,
        Classification,
        ClassTarget,
        ColumnOverride,
        Combination,
        Compute,
        Denoising,
        Destination,
        DiffusionModel,
        Evaluation,
        FlowModel,
        GanModel,
        Inequality,
        Interpolation,
        NoModel,
        Output,
        PluginModel,
        Positive,
        Publish,
        Quality,
        Reconstruction,
        Report,
        RunParams,
        Source,
        TreesModel,
        Unique,
        VaeModel,
    )
    from prefect_augment.schema.experiment import Experiment
    from prefect_augment.schema.report import Release
    from prefect_augment.synthesis.reproduce import remake_records
    from prefect_augment.tasks.approve import decide_proposal, propose_dataset
    from prefect_augment.tasks.augment import augment_records
    from prefect_augment.tasks.check_policy import check_image_policy
    from prefect_augment.tasks.compare import (
        choose_strategy,
        confirm_choice,
        filter_candidates,
        measure_privacy,
        pilot_strategy,
        score_strategy,
    )
    from prefect_augment.tasks.ingest import ingest_dataset
    from prefect_augment.tasks.latents import (
        classify_records,
        denoise_records,
        embed_records,
        interpolate_records,
        open_version,
        reconstruct_records,
        score_anomalies,
        select_classes,
        shift_records,
    )
    from prefect_augment.tasks.plan import plan_balance
    from prefect_augment.tasks.publish import publish_dataset, write_report
    from prefect_augment.tasks.sample import import_synthetic, sample_classes
    from prefect_augment.tasks.train import train_model

_HOMES = {
    "flows.approve": ("approve",),
    "flows.augment": ("augment",),
    "flows.evaluate": ("evaluate",),
    "flows.latents": (
        "anomalies",
        "classify",
        "denoise",
        "embed",
        "interpolate",
        "reconstruct",
        "shift_attribute",
    ),
    "flows.rebalance": ("rebalance",),
    "flows.train": ("train",),
    "params": (
        "Anomalies",
        "Answer",
        "Approval",
        "AttributeShift",
        "AutoModel",
        "AutoencoderModel",
        "Balance",
        "Budget",
        "ClassAmount",
        "ClassTarget",
        "Classic",
        "Classification",
        "ColumnOverride",
        "Combination",
        "Compute",
        "Denoising",
        "Destination",
        "DiffusionModel",
        "FlowModel",
        "GanModel",
        "Evaluation",
        "Quality",
        "RunParams",
        "Inequality",
        "Interpolation",
        "NoModel",
        "Output",
        "PluginModel",
        "Positive",
        "Publish",
        "Reconstruction",
        "Report",
        "Source",
        "TreesModel",
        "Unique",
        "VaeModel",
    ),
    "loading.dataset": ("open_dataset",),
    "loading.latents": ("open_latents",),
    "estimators.recipe_classifier": ("RecipeClassifier",),
    "estimators.sampler": ("GenerativeSampler",),
    "schema.experiment": ("Experiment",),
    "schema.report": ("Release",),
    "tasks.approve": ("decide_proposal", "propose_dataset"),
    "synthesis.reproduce": ("remake_records",),
    "tasks.augment": ("augment_records",),
    "tasks.check_policy": ("check_image_policy",),
    "tasks.ingest": ("ingest_dataset",),
    "tasks.compare": (
        "choose_strategy",
        "filter_candidates",
        "measure_privacy",
        "pilot_strategy",
        "score_strategy",
        "confirm_choice",
    ),
    "tasks.latents": (
        "classify_records",
        "denoise_records",
        "embed_records",
        "interpolate_records",
        "open_version",
        "reconstruct_records",
        "score_anomalies",
        "select_classes",
        "shift_records",
    ),
    "tasks.plan": ("plan_balance",),
    "tasks.publish": ("publish_dataset", "write_report"),
    "tasks.sample": ("import_synthetic", "sample_classes"),
    "tasks.train": ("train_model",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Anomalies",
    "Answer",
    "Approval",
    "AttributeShift",
    "AutoModel",
    "AutoencoderModel",
    "Balance",
    "Budget",
    "ClassAmount",
    "ClassTarget",
    "Classic",
    "Classification",
    "ColumnOverride",
    "Combination",
    "Compute",
    "Denoising",
    "Destination",
    "DiffusionModel",
    "Evaluation",
    "Experiment",
    "FlowModel",
    "GanModel",
    "GenerativeSampler",
    "Inequality",
    "Interpolation",
    "NoModel",
    "Output",
    "PluginModel",
    "Positive",
    "Publish",
    "Quality",
    "RecipeClassifier",
    "Reconstruction",
    "Release",
    "Report",
    "RunParams",
    "Source",
    "TreesModel",
    "Unique",
    "VaeModel",
    "anomalies",
    "approve",
    "augment",
    "augment_records",
    "check_image_policy",
    "choose_strategy",
    "classify",
    "classify_records",
    "confirm_choice",
    "decide_proposal",
    "denoise",
    "denoise_records",
    "embed",
    "embed_records",
    "evaluate",
    "filter_candidates",
    "import_synthetic",
    "ingest_dataset",
    "interpolate",
    "interpolate_records",
    "measure_privacy",
    "open_dataset",
    "open_latents",
    "open_version",
    "pilot_strategy",
    "plan_balance",
    "propose_dataset",
    "publish_dataset",
    "rebalance",
    "reconstruct",
    "reconstruct_records",
    "remake_records",
    "sample_classes",
    "score_anomalies",
    "score_strategy",
    "select_classes",
    "shift_attribute",
    "shift_records",
    "train",
    "train_model",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
