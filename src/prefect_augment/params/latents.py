"""Uses of a model's latent space: where results go, and what each use asks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prefect_augment.params.base import Params

__all__ = [
    "Anomalies",
    "Classification",
    "Denoising",
    "Interpolation",
    "Output",
    "Reconstruction",
]


class Output(Params):
    """Which records are used, and where the result goes."""

    parts: list[Literal["fit", "val", "holdout"]] = Field(
        default=["fit", "val", "holdout"],
        min_length=1,
        description="Parts of the records: those the model learns from, those that thresholds come from, the "
        "hold-out.",
    )
    uri: str = Field(
        default="",
        description="Folder or URL for the result. Empty: beside the dataset, e.g. in its folder _embeddings.",
    )
    storage_block: str = Field(
        default="", description="Name of a saved Prefect block with the credentials for uri."
    )


class Anomalies(Params):
    """What counts as normal, and how much of it may be called strange."""

    train_on: list[str] = Field(
        default_factory=list,
        description="Classes that are normal: the model learns them alone and all records are scored. Empty: all "
        "classes.",
    )
    normal_share: float = Field(
        default=0.05,
        gt=0.0,
        lt=1.0,
        description="Share of normal val records above the threshold: what is flagged where nothing is wrong.",
    )


class Reconstruction(Params):
    """As what vectors are turned into records."""

    as_class: str = Field(
        default="",
        description="A class that all records are reconstructed as, also those of classes that the model does not "
        "know. Empty: each as its own.",
    )


class Denoising(Params):
    """How much noise is taken out."""

    noise: float = Field(
        default=0.1,
        gt=0.0,
        le=1.0,
        description="Standard deviation of the noise that the images hold, white being 1.",
    )


class Interpolation(Params):
    """From where to where, in how many steps."""

    start: str = Field(
        default="",
        description="A class (its most typical record is taken), or a record's aug_id. Empty: the largest class.",
    )
    end: str = Field(default="", description="The same for the end. Empty: the smallest class.")
    n_steps: int = Field(
        default=9, ge=2, le=1000, description="Records made, the two ends included."
    )


class Classification(Params):
    """How likely classes are before a record is seen."""

    prior: Literal["balanced", "observed"] = Field(
        default="balanced",
        description="balanced takes all classes for equally likely; observed as they come in the fit records.",
    )
