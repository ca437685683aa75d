"""Parameters of a run: shown as the Prefect form, read from YAML, checked at once.

The text below each field is its description in the form. ``Optional`` and ``dict`` render badly there, so
"not set" is an empty string or list, and per-class parameters are lists of models.
"""

from prefect_augment.params.balance import Balance, Classic, ClassTarget
from prefect_augment.params.constraints import Combination, Constraint, Inequality, Positive, Unique
from prefect_augment.params.data import ColumnOverride, Destination, Source
from prefect_augment.params.encoder import Encoder
from prefect_augment.params.estimators import OwnEstimator
from prefect_augment.params.form import ImageSettings, TableSettings
from prefect_augment.params.latents import (
    Anomalies,
    AttributeShift,
    Classification,
    Denoising,
    Interpolation,
    Output,
    Reconstruction,
)
from prefect_augment.params.metrics import Metric, Mistake
from prefect_augment.params.models import (
    AutoencoderModel,
    AutoModel,
    DiffusionModel,
    FlowModel,
    GanModel,
    ModelParams,
    NoModel,
    PluginModel,
    PluginOption,
    TreesModel,
    VaeModel,
)
from prefect_augment.params.run import (
    Answer,
    Approval,
    Budget,
    ClassAmount,
    Compute,
    Evaluation,
    Publish,
    Quality,
    Report,
    RunParams,
)

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
    "Constraint",
    "Denoising",
    "Destination",
    "DiffusionModel",
    "Encoder",
    "Evaluation",
    "FlowModel",
    "GanModel",
    "ImageSettings",
    "Inequality",
    "Interpolation",
    "Metric",
    "Mistake",
    "ModelParams",
    "NoModel",
    "Output",
    "OwnEstimator",
    "PluginModel",
    "PluginOption",
    "Positive",
    "Publish",
    "Quality",
    "Reconstruction",
    "Report",
    "RunParams",
    "Source",
    "TableSettings",
    "TreesModel",
    "Unique",
    "VaeModel",
]
