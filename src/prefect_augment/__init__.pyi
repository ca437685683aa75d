"""The public names, which are loaded on first use."""

from .estimators.recipe_classifier import RecipeClassifier as RecipeClassifier
from .estimators.sampler import GenerativeSampler as GenerativeSampler
from .evaluation.classifiers.linear_probe import LinearProbe as LinearProbe
from .evaluation.classifiers.patch_features import PatchClassifier as PatchClassifier
from .flows.approve import approve as approve
from .flows.augment import augment as augment
from .flows.evaluate import evaluate as evaluate
from .flows.latents import (
    anomalies as anomalies,
    classify as classify,
    denoise as denoise,
    embed as embed,
    interpolate as interpolate,
    reconstruct as reconstruct,
    shift_attribute as shift_attribute,
)
from .flows.rebalance import rebalance as rebalance
from .flows.train import train as train
from .genmodels.contract import check_model as check_model
from .loading.dataset import open_dataset as open_dataset
from .loading.encoder import open_encoder as open_encoder
from .loading.latents import open_latents as open_latents
from .params import (
    Anomalies as Anomalies,
    Answer as Answer,
    Approval as Approval,
    AttributeShift as AttributeShift,
    AutoencoderModel as AutoencoderModel,
    AutoModel as AutoModel,
    Balance as Balance,
    Budget as Budget,
    ClassAmount as ClassAmount,
    Classic as Classic,
    Classification as Classification,
    ClassTarget as ClassTarget,
    ColumnOverride as ColumnOverride,
    Combination as Combination,
    Compute as Compute,
    Denoising as Denoising,
    Destination as Destination,
    DiffusionModel as DiffusionModel,
    Encoder as Encoder,
    Evaluation as Evaluation,
    FlowModel as FlowModel,
    GanModel as GanModel,
    Inequality as Inequality,
    Interpolation as Interpolation,
    Metric as Metric,
    Mistake as Mistake,
    MstModel as MstModel,
    NoModel as NoModel,
    Output as Output,
    OwnEstimator as OwnEstimator,
    PluginModel as PluginModel,
    Positive as Positive,
    Publish as Publish,
    Quality as Quality,
    Reconstruction as Reconstruction,
    Report as Report,
    RunParams as RunParams,
    Source as Source,
    TreesModel as TreesModel,
    Unique as Unique,
    VaeModel as VaeModel,
)
from .schema.experiment import Experiment as Experiment
from .schema.report import Release as Release
from .synthesis.reproduce import remake_records as remake_records
from .tasks.approve import decide_proposal as decide_proposal, propose_dataset as propose_dataset
from .tasks.augment import (
    augment_part as augment_part,
    augment_records as augment_records,
    check_image_policy as check_image_policy,
)
from .tasks.compare import (
    choose_strategy as choose_strategy,
    confirm_choice as confirm_choice,
    filter_candidates as filter_candidates,
    fit_part as fit_part,
    measure_privacy as measure_privacy,
    pilot_strategy as pilot_strategy,
    score_strategy as score_strategy,
)
from .tasks.ingest import (
    ingest_dataset as ingest_dataset,
    ingest_part as ingest_part,
    near_part as near_part,
)
from .tasks.latents import (
    open_version as open_version,
    select_classes as select_classes,
    use_latents as use_latents,
)
from .tasks.plan import plan_balance as plan_balance
from .tasks.publish import (
    publish_dataset as publish_dataset,
    publish_part as publish_part,
    write_report as write_report,
)
from .tasks.sample import (
    draw_part as draw_part,
    import_synthetic as import_synthetic,
    sample_classes as sample_classes,
)
from .tasks.train import train_model as train_model
