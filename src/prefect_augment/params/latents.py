"""Uses of a model's latent space: where results go, and the parameters of each use."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from prefect_augment.params.base import Params
from prefect_augment.params.locations import Location


class Output(Params):
    """Which records are used, and where the result goes."""

    parts: list[Literal["training", "validation", "holdout"]] = Field(
        default=["training", "validation", "holdout"], min_length=1
    )
    """Parts of the records: those the model learns from, those that thresholds come from, the hold-out."""
    uri: Location = ""
    """Folder or URL for the result. Empty: beside the dataset, e.g. in its folder _embeddings."""
    storage_block: str = ""
    """Name of a saved Prefect block with the credentials for uri."""


class Anomalies(Params):
    """What counts as normal, and how much of it may be flagged."""

    train_on: list[str] = Field(default_factory=list)
    """Classes that are normal: the model learns them alone and all records are scored. Empty: all classes."""
    normal_share: float = Field(default=0.05, gt=0.0, lt=1.0)
    """Share of normal validation records above the threshold: what is flagged where nothing is wrong."""


class Reconstruction(Params):
    """The class that vectors are decoded as."""

    as_class: str = ""
    """A class that all records are reconstructed as, also those of classes that the model does not know. Empty: each as
    its own."""


class Denoising(Params):
    """How much noise is removed."""

    noise: float = Field(default=0.1, gt=0.0, le=1.0)
    """Standard deviation of the noise that the images hold, white being 1."""


class Interpolation(Params):
    """The two ends, and the number of steps."""

    start: str = ""
    """A class (its most typical record is taken), or a record's aug_id. Empty: the largest class."""
    end: str = ""
    """The same for the end. Empty: the smallest class."""
    n_steps: int = Field(default=9, ge=2, le=1000)
    """Records made, the two ends included."""
    path: Literal["class", "straight"] = "class"
    """class: what is the records' own changes step by step, and the class in the middle; straight: all along one line,
    on which a third class may lie."""


class AttributeShift(Params):
    """Which attribute is added to which records, and how much of it."""

    column: str = ""
    """The column that holds the attribute, e.g. one of balance.by. Empty: the label."""
    start: str = ""
    """The value that the direction leads away from. Empty: the most frequent one."""
    end: str = ""
    """The value that it leads to. Empty: the rarest one that has enough training records."""
    strengths: list[Annotated[float, Field(allow_inf_nan=False)]] = Field(
        default=[0.0, 0.5, 1.0, 1.5], min_length=1, max_length=32
    )
    """How much of the direction is added, each making one record: 0 reconstructs the record as it is, 1 adds the whole
    difference of the two values, below 0 leads away from it."""
    only: list[str] = Field(default_factory=list)
    """The records that are shifted: classes, or records by their aug_id. Empty: those with the value that the direction
    leads away from."""
    as_class: str = ""
    """A class that all are decoded as, also records of classes that the model does not know. Empty: each as its own."""


class Classification(Params):
    """The prior of the classes."""

    prior: Literal["balanced", "observed"] = "balanced"
    """balanced takes all classes for equally likely; observed as they come in the training records."""


@dataclass(frozen=True)
class LatentCommand:
    """A use of a model's latents, as people meet it."""

    name: str  # of its flow and its command
    does: str  # a sentence for both
    params: type[Params] | None = None
    section: str = ""  # name of its parameters in flows and keys, if any


#: By the name of the use.
LATENT_COMMANDS: dict[str, LatentCommand] = {
    "embeddings": LatentCommand(
        "embed", "Write a vector per record, for search, clustering and classifiers."
    ),
    "anomalies": LatentCommand(
        "anomalies",
        "Score how anomalous every record is, and flag those beyond what is normal on validation records.",
        *(Anomalies, "anomalies"),
    ),
    "reconstructions": LatentCommand(
        "reconstruct",
        "Write every record beside what the model makes of its vector, with the error per column.",
        *(Reconstruction, "reconstruction"),
    ),
    "denoised": LatentCommand(
        "denoise", "Write every image without its noise.", Denoising, "denoising"
    ),
    "interpolations": LatentCommand(
        "interpolate",
        "Make the records between one and another, or between two classes.",
        *(Interpolation, "interpolation"),
    ),
    "shifts": LatentCommand(
        "shift-attribute",
        "Add an attribute to records, in several strengths: arithmetic on their latent vectors.",
        *(AttributeShift, "attribute_shift"),
    ),
    "classes": LatentCommand(
        "classify",
        "Write the class in which the model itself finds every record most likely.",
        *(Classification, "classification"),
    ),
}
