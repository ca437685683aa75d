"""Parameters of a run: shown as the Prefect form, read from YAML, checked at once.

The text below each field is its description in the form. ``Optional`` and ``dict`` render badly there, so
"not set" is an empty string or list, and per-class parameters are lists of models.
"""

from prefect_augment.params.balance import (
    Balance as Balance,
    Classic as Classic,
    ClassTarget as ClassTarget,
)
from prefect_augment.params.data import (
    ColumnOverride as ColumnOverride,
    Destination as Destination,
    Source as Source,
)
from prefect_augment.params.encoder import Encoder as Encoder
from prefect_augment.params.estimators import OwnEstimator as OwnEstimator
from prefect_augment.params.form import (
    ImageSettings as ImageSettings,
    TableSettings as TableSettings,
)
from prefect_augment.params.latents import (
    Anomalies as Anomalies,
    AttributeShift as AttributeShift,
    Classification as Classification,
    Denoising as Denoising,
    Interpolation as Interpolation,
    Output as Output,
    Reconstruction as Reconstruction,
)
from prefect_augment.params.metrics import Metric as Metric, Mistake as Mistake
from prefect_augment.params.models import (
    AutoencoderModel as AutoencoderModel,
    AutoModel as AutoModel,
    ColumnBounds as ColumnBounds,
    DiffusionModel as DiffusionModel,
    FlowModel as FlowModel,
    GanModel as GanModel,
    ModelParams as ModelParams,
    MstModel as MstModel,
    NoModel as NoModel,
    PluginModel as PluginModel,
    PluginOption as PluginOption,
    TreesModel as TreesModel,
    VaeModel as VaeModel,
)
from prefect_augment.params.run import (
    Answer as Answer,
    Approval as Approval,
    Budget as Budget,
    ClassAmount as ClassAmount,
    Combination as Combination,
    Compute as Compute,
    Constraint as Constraint,
    Evaluation as Evaluation,
    Inequality as Inequality,
    Positive as Positive,
    Publish as Publish,
    Quality as Quality,
    Report as Report,
    RunParams as RunParams,
    Unique as Unique,
)
