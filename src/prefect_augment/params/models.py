"""Generative models: one class of params each, told apart by ``kind``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from prefect_augment.params.base import Params

__all__ = [
    "AutoModel",
    "AutoencoderModel",
    "DiffusionModel",
    "FlowModel",
    "GanModel",
    "ModelParams",
    "NoModel",
    "PluginModel",
    "PluginOption",
    "TreesModel",
    "VaeModel",
]


def _as_value(value: Any) -> str:
    """Write an option's value so that :attr:`PluginOption.parsed` gives it back."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value  # text that no JSON is stands for itself
    return json.dumps(value)


class AutoModel(Params):
    """Let the tool choose the generative model: sequential trees for tables, diffusion for images."""

    # The tab of the form.
    model_config = ConfigDict(json_schema_extra={"title": "auto"})

    kind: Literal["auto"] = "auto"


class NoModel(Params):
    """No generative model: baselines and classic augmentation only."""

    # The tab of the form.
    model_config = ConfigDict(json_schema_extra={"title": "none"})

    kind: Literal["none"] = "none"


# What several models ask for alike.
ClassPower = Annotated[
    float,
    Field(
        ge=0.0,
        le=1.0,
        description="Classes are learnt with p ∝ n^power: 1 as they come, 0 equally often, which copies rare records.",
    ),
]
EmaFraction = Annotated[
    float,
    Field(
        ge=0.0,
        le=1.0,
        description="Half-life of the averaged weights, as a share of the records seen; 0 averages nothing.",
    ),
]
LearningRate = Annotated[
    float, Field(gt=0.0, le=1.0, description="Largest learning rate of AdamW.")
]
WeightDecay = Annotated[
    float, Field(ge=0.0, le=10.0, description="AdamW's pull of the weights towards zero.")
]
LatentSize = Annotated[
    int,
    Field(
        ge=0,
        le=1024,
        description="Numbers that stand for a record; 0: as many as columns, at most 16.",
    ),
]
Width = Annotated[
    int,
    Field(
        ge=8, le=4096, description="Numbers in the networks' layers; time grows with its square."
    ),
]
Epochs = Annotated[
    int,
    Field(
        ge=1,
        le=100_000,
        description="At most so many passes over the records, however large the budget.",
    ),
]


class TableParams(Params):
    """What every model of tables can be asked for."""

    overlap: bool = Field(
        default=False,
        description="Learn records of the largest class that look like another one as a class of their own, which is "
        "not sampled: rare classes get clearer, the largest loses its border.",
    )


class TreesModel(TableParams):
    """Sequential trees (synthpop): each column drawn from a tree given the class and the columns before."""

    # The tab of the form.
    model_config = ConfigDict(json_schema_extra={"title": "trees"})

    kind: Literal["trees"] = "trees"
    min_leaf: int = Field(
        default=20,
        ge=2,
        le=1000,
        description="Records in a leaf; less where the smallest class is small, up to twice as many where what is "
        "drawn lies too near to the records.",
    )
    max_depth: int = Field(default=14, ge=1, le=40, description="Depth of each column's tree.")


class FlowModel(TableParams):
    """Flow matching for tables: categories drawn one given the others, numbers carried from noise."""

    # The tab of the form.
    model_config = ConfigDict(json_schema_extra={"title": "flow"})

    kind: Literal["flow"] = "flow"
    width: Width = 256
    depth: int = Field(default=3, ge=1, le=16, description="Blocks of two layers in each network.")
    epochs: int = Field(
        default=120,
        ge=1,
        le=100_000,
        description="At most so many passes over the records, however large the budget: beyond, small tables are "
        "learnt by heart.",
    )
    sampler_steps: int = Field(
        default=5,
        ge=1,
        le=100,
        description="Midpoint steps that carry numbers from noise, two evaluations each.",
    )
    class_power: ClassPower = 0.5
    ema_fraction: EmaFraction = 0.05
    learning_rate: LearningRate = 0.002
    weight_decay: WeightDecay = 0.01


class VaeModel(TableParams):
    """Variational autoencoder: a latent space with a prior per class, decoded column by column."""

    # The tab of the form.
    model_config = ConfigDict(json_schema_extra={"title": "vae"})

    kind: Literal["vae"] = "vae"
    n_latent: LatentSize = 0
    width: Width = 256
    depth: int = Field(
        default=2, ge=1, le=16, description="Blocks of two layers in encoder and decoder."
    )
    beta: float = Field(
        default=0.2,
        ge=0.0,
        le=100.0,
        description="Weight of the divergence from the prior: more orders the latent space and blurs records.",
    )
    kl_warmup: float = Field(
        default=0.2,
        ge=0.0,
        le=1.0,
        description="Share of the steps over which the divergence gains its weight.",
    )
    epochs: Epochs = 60
    class_power: ClassPower = 0.5
    ema_fraction: EmaFraction = 0.05
    learning_rate: LearningRate = 0.002
    weight_decay: WeightDecay = 0.01


class GanModel(TableParams):
    """Adversarial networks: a generator against a critic that tells its records from real ones."""

    # The tab of the form.
    model_config = ConfigDict(json_schema_extra={"title": "gan"})

    kind: Literal["gan"] = "gan"
    n_latent: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Numbers that a record is made of; 0: as many as columns, at most 16.",
    )
    width: Width = 192
    depth: int = Field(default=2, ge=1, le=16, description="Blocks of two layers in each network.")
    critic_steps: int = Field(
        default=2, ge=1, le=20, description="Steps of the critic for one of the generator."
    )
    gradient_penalty: float = Field(
        default=10.0,
        ge=0.0,
        le=1000.0,
        description="How firmly the critic's slopes are held to one.",
    )
    pack: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Records that the critic sees at a time: more keep the generator from repeating itself.",
    )
    reconstruction: float = Field(
        default=1.0,
        ge=0.0,
        le=100.0,
        description="How firmly generator and encoder are held to bring every record back.",
    )
    epochs: Epochs = 60
    class_power: ClassPower = 0.5
    ema_fraction: EmaFraction = 0.05
    learning_rate: LearningRate = 0.001
    weight_decay: WeightDecay = 0.0001


class AutoencoderModel(TableParams):
    """Autoencoder: records through a narrow place and back, drawn by the density of each class there."""

    # The tab of the form.
    model_config = ConfigDict(json_schema_extra={"title": "autoencoder"})

    kind: Literal["autoencoder"] = "autoencoder"
    variant: Literal["dense", "deep", "denoising", "sparse", "contractive"] = Field(
        default="denoising",
        description="dense: one hidden layer; deep: several; denoising: mends swapped values; sparse: few units "
        "active; contractive: small changes of a record change little.",
    )
    n_latent: LatentSize = 0
    width: Width = 256
    depth: int = Field(
        default=2,
        ge=1,
        le=16,
        description="Blocks of two layers in encoder and decoder; dense has none.",
    )
    noise: float = Field(
        default=0.1,
        ge=0.0,
        lt=1.0,
        description="denoising: share of a record's values that are another record's.",
    )
    sparsity: float = Field(
        default=0.1, gt=0.0, lt=1.0, description="sparse: mean activation of each unit."
    )
    penalty: float = Field(
        default=0.05,
        ge=0.0,
        le=100.0,
        description="Weight of the penalty of sparse and contractive.",
    )
    epochs: Epochs = 60
    class_power: ClassPower = 0.5
    ema_fraction: EmaFraction = 0.05
    learning_rate: LearningRate = 0.002
    weight_decay: WeightDecay = 0.01


class DiffusionModel(Params):
    """Flow matching in pixel space: a small U-Net carries noise to images of the class asked for."""

    # The tab of the form.
    model_config = ConfigDict(json_schema_extra={"title": "diffusion"})

    kind: Literal["diffusion"] = "diffusion"
    size: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Edge in pixels that images are learnt at; 0 goes by the images, at most 32.",
    )
    output_size: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="Longer edge of the images that go out, in pixels; 0: the dataset's most common size.",
    )
    width: int = Field(
        default=48,
        ge=16,
        le=512,
        multiple_of=16,
        description="Channels of the network's first level; time grows with its square.",
    )
    sampler_steps: int = Field(
        default=6,
        ge=1,
        le=100,
        description="Midpoint steps per image, two evaluations each.",
    )
    class_power: ClassPower = 0.5
    guidance: float = Field(
        default=1.0,
        ge=0.0,
        le=10.0,
        description="Above 1 images look more like their class and less like one another; doubles sampling time.",
    )
    label_dropout: float = Field(
        default=0.1,
        ge=0.0,
        le=1.0,
        description="Share of records learnt without their label, so that classes share what they have in common.",
    )
    shift_prob: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="Share of records learnt moved by up to a tenth of the size; the network is told the move.",
    )
    ema_fraction: float = Field(
        default=0.05,
        ge=0.0,
        le=1.0,
        description="Half-life of the averaged weights, as a share of the images seen; 0 averages nothing.",
    )
    learning_rate: float = Field(
        default=0.002, gt=0.0, le=1.0, description="Largest learning rate of Adam."
    )


class PluginOption(Params):
    """One parameter of a model from another package."""

    name: str = Field(min_length=1, description="The parameter's name.")
    value: str = Field(
        description="Its value: a number, true, false or text; anything else as JSON."
    )

    @property
    def parsed(self) -> Any:
        """The value as JSON says it, or else the text itself."""
        try:
            return json.loads(self.value)
        except ValueError:
            return self.value


class PluginModel(Params):
    """A model that another package registers under the entry-point group ``prefect_augment.models``."""

    # The tab of the form.
    model_config = ConfigDict(json_schema_extra={"title": "plugin"})

    kind: Literal["plugin"] = "plugin"
    name: str = Field(description="The entry point's name.")
    options: list[PluginOption] = Field(
        default_factory=list, description="Passed to the model's own parameters class."
    )

    @field_validator("options", mode="before")
    @classmethod
    def _from_mapping(cls, options: Any) -> Any:
        """Take a mapping too: in Python and YAML that is how options are written."""
        if not isinstance(options, Mapping):
            return options
        return [{"name": name, "value": _as_value(value)} for name, value in options.items()]

    @model_validator(mode="after")
    def _each_once(self) -> PluginModel:
        names = [option.name for option in self.options]
        if len(names) != len(set(names)):
            raise ValueError("options names the same parameter twice; keep one entry per name.")
        return self

    @property
    def option_values(self) -> dict[str, Any]:
        """The options by name."""
        return {option.name: option.parsed for option in self.options}


ModelParams = Annotated[
    AutoModel
    | NoModel
    | TreesModel
    | FlowModel
    | VaeModel
    | GanModel
    | AutoencoderModel
    | DiffusionModel
    | PluginModel,
    Field(discriminator="kind"),
]
