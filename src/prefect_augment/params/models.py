"""Generative models: one class of params each, told apart by ``kind``."""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from prefect_augment.errors import ParameterError
from prefect_augment.params.base import Params


def _as_value(value: Any) -> str:
    """Write an option's value so that :attr:`PluginOption.parsed` returns it."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value  # text that is no JSON
    return json.dumps(value)


class AutoModel(Params):
    """Let the tool choose the generative model and how many records of it: by a search on validation records.

    Tables: sequential trees or flow matching, by pilots where validation can tell; images: diffusion, where it
    is worth its time.
    """

    kind: Literal["auto"] = "auto"


class NoModel(Params):
    """No generative model: baselines and classic augmentation only."""

    kind: Literal["none"] = "none"


# Parameters that several models share.
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
Width = Annotated[
    int,
    Field(
        ge=8, le=4096, description="Numbers in the networks' layers; time grows with its square."
    ),
]
# Of models of tables and of images, which differ in size.
CodeSize = Annotated[
    int,
    Field(
        ge=0,
        le=1024,
        description="Numbers that stand for a record; 0 goes by the data: as many as a table has columns, at most 16; "
        "32 to 256 for images, by their size.",
    ),
]
CodecWidth = Annotated[
    int,
    Field(
        ge=0,
        le=4096,
        description="Numbers in the networks' layers, channels in convolutions (a multiple of 16); 0 goes by the "
        "data. Time grows with its square.",
    ),
]
Epochs = Annotated[
    int,
    Field(
        ge=1,
        le=100_000,
        description="Tables: at most so many passes over the records, however large the budget. Of images the budget "
        "alone decides.",
    ),
]


NDraws = Annotated[
    int,
    Field(
        ge=1,
        le=64,
        description="Tables: draws of which one becomes the record, more likely one that is like the real ones; 1 "
        "takes them as they come. Below 1,000 records there is always one.",
    ),
]


class ImageParams(Params):
    """Parameters of every model of images."""

    size: int = Field(default=0, ge=0, le=256, multiple_of=4)
    """Edge in pixels that images are learnt at, a multiple of 4 from 8 on; 0 goes by the images, at most 32."""

    @field_validator("size")
    @classmethod
    def _is_a_resolution(cls, size: int) -> int:
        if 0 < size < 8:
            raise ValueError(
                "a network needs 8 pixels at least; give 0, or a multiple of 4 from 8 on"
            )
        return size

    output_size: int = Field(default=0, ge=0, le=4096)
    """Longer edge of the images that go out, in pixels; 0: the dataset's most common size."""


class TreesModel(Params):
    """Sequential trees (synthpop): each column drawn from a tree given the class and the columns before."""

    kind: Literal["trees"] = "trees"
    min_leaf: int = Field(default=20, ge=2, le=1000)
    """Records in a leaf; less where the smallest class is small, up to twice as many where what is drawn lies too near
    to the records."""
    max_depth: int = Field(default=14, ge=1, le=40)
    """Depth of each column's trees."""


class ColumnBounds(Params):
    """The public range of a numeric column, from what it can be and not from the records."""

    column: str = Field(min_length=1)
    """The column's name."""
    low: float
    """Smallest value; of dates the day since 1970, of timestamps the ticks. Smaller ones are learnt as this one."""
    high: float
    """Largest value."""

    @model_validator(mode="after")
    def _has_a_width(self) -> "ColumnBounds":
        if not self.low < self.high:
            raise ValueError(
                f"bounds of {self.column!r} go from {self.low:g} to {self.high:g}; low has to be smaller."
            )
        return self


class MstModel(Params):
    """MST under differential privacy: noisy counts of columns and pairs, drawn along a tree. Tables; extra dp."""

    kind: Literal["mst"] = "mst"
    epsilon: float = Field(default=1.0, ge=0.01, le=100.0)
    """Privacy loss of the training towards each record; smaller is more private."""
    delta: float = Field(default=1e-6, gt=0.0, lt=0.01)
    """Chance that the loss is larger; keep it well below one over the number of records."""
    bins: int = Field(default=16, ge=2, le=256)
    """Bins of about equal shares that a number is cut into, by its noisy counts."""
    bounds: list[ColumnBounds] = Field(default_factory=list)
    """Public range of each numeric column."""
    bounds_from: Literal["given", "data"] = "given"
    """given refuses a number without bounds. data reads ranges and levels off the training records, which the guarantee
    then does not cover."""

    def check_bounds(self, numbers: Sequence[str]) -> None:
        """Raise ParameterError if one of these columns needs bounds and has none."""
        lacking = sorted(set(numbers) - {bound.column for bound in self.bounds})
        if self.bounds_from == "given" and lacking:
            raise ParameterError(
                f"model.bounds lacks {', '.join(map(repr, lacking[:5]))}: with differential privacy the range of a "
                "number must be public, not read off the records. Give low and high of each, from what the column "
                "can be; or set model.bounds_from to 'data', and the guarantee does not cover the ranges."
            )


class FlowModel(Params):
    """Flow matching for tables: categories drawn one given the others, numbers carried from noise."""

    kind: Literal["flow"] = "flow"
    width: Width = 128
    depth: int = Field(default=2, ge=1, le=16)
    """Blocks of two layers in each network."""
    epochs: int = Field(default=90, ge=1, le=100_000)
    """At most so many passes over the records, however large the budget: beyond, small tables are learnt by heart."""
    sampler_steps: int = Field(default=5, ge=1, le=100)
    """Midpoint steps that carry numbers from noise, two evaluations each."""
    class_power: ClassPower = 0.5
    ema_fraction: EmaFraction = 0.05
    learning_rate: LearningRate = 0.002
    weight_decay: WeightDecay = 0.3


class VaeModel(ImageParams):
    """Variational autoencoder: a latent space with a prior per class, decoded to columns or pixels."""

    kind: Literal["vae"] = "vae"
    n_latent: CodeSize = 0
    width: CodecWidth = 0
    depth: int = Field(default=2, ge=1, le=16)
    """Blocks of two layers in encoder and decoder; of tables alone."""
    beta: float = Field(default=0.2, ge=0.0, le=100.0)
    """Weight of the divergence from the prior: more orders the latent space and blurs records."""
    kl_warmup: float = Field(default=0.2, ge=0.0, le=1.0)
    """Share of the steps over which the divergence gains its weight."""
    epochs: Epochs = 60
    n_draws: NDraws = 4
    class_power: ClassPower = 0.5
    ema_fraction: EmaFraction = 0.05
    learning_rate: LearningRate = 0.002
    weight_decay: WeightDecay = 0.01


class GanModel(ImageParams):
    """Adversarial networks: a generator against a critic that tells its records from real ones."""

    kind: Literal["gan"] = "gan"
    n_latent: int = Field(default=0, ge=0, le=1024)
    """Numbers that a record is made of; 0: as many as columns, at most 16, and 64 for images."""
    width: int = Field(default=0, ge=0, le=4096)
    """Numbers in the networks' layers, channels for images; time grows with its square. 0: 192 for tables, 32 for
    images."""
    depth: int = Field(default=0, ge=0, le=16)
    """Blocks of two layers in each network, for images at each resolution; 0: 2 for tables, 1 for images."""
    critic_steps: int = Field(default=0, ge=0, le=20)
    """Steps of the critic for one of the generator; 0: 2 for tables, 1 for images."""
    gradient_penalty: float = Field(default=0.0, ge=0.0, le=1000.0)
    """How firmly the critic's slopes are held, to one for tables and to zero for images; 0: 10 for tables, 1 for
    images."""
    pack: int = Field(default=1, ge=1, le=64)
    """Tables: records that the critic sees at a time; more keep the generator from repeating itself."""
    reconstruction: float = Field(default=1.0, ge=0.0, le=100.0)
    """Tables: how firmly generator and encoder are held to bring every record back."""
    augment_prob: float = Field(default=0.3, ge=0.0, le=0.8)
    """Images: chance of each kind of move (shift, cover, light, contrast) before the critic sees real and made images;
    helps where there are few."""
    epochs: Epochs = 60
    n_draws: NDraws = 4
    class_power: ClassPower = 0.5
    ema_fraction: EmaFraction = 0.05
    learning_rate: float = Field(default=0.0, ge=0.0, le=1.0)
    """Largest learning rate of AdamW; 0: 0.001 for tables, 0.002 for images."""
    weight_decay: WeightDecay = 0.0001


class AutoencoderModel(ImageParams):
    """Autoencoder: records through a narrow place and back, drawn by the density of each class there."""

    kind: Literal["autoencoder"] = "autoencoder"
    variant: Literal["dense", "conv", "deep", "denoising", "sparse", "contractive"] = "denoising"
    """dense: one hidden layer; conv: convolutions (images); deep: several layers, for images trained one after the
    other first; denoising: restores swapped values or noisy pixels; sparse: few units active; contractive: small
    changes of a record change little."""
    n_latent: CodeSize = 0
    width: CodecWidth = 0
    layers: Literal["auto", "dense", "conv"] = "auto"
    """Images: what denoising, sparse and contractive are made of; auto: convolutions."""
    depth: int = Field(default=2, ge=1, le=16)
    """Blocks of two layers in encoder and decoder; dense has none."""
    noise: float = Field(default=0.0, ge=0.0, lt=1.0)
    """denoising: share of a table's values that are another record's; of images the largest deviation of noise, black
    to white being 1. 0 goes by the data: 0.1 or 0.5."""
    sparsity: float = Field(default=0.1, gt=0.0, lt=1.0)
    """sparse: mean activation of each unit."""
    sparse_by: Literal["kl", "l1"] = "kl"
    """sparse, images: hold each unit's mean activation (kl), or the sum of activations (l1)."""
    pretraining: float = Field(default=0.3, ge=0.0, lt=1.0)
    """deep, images: share of the steps for layers one by one, as restricted Boltzmann machines."""
    drawn_by: Literal["density", "neighbours"] = "density"
    """density: by the density of the class's codes; neighbours: between a record's code and a neighbour's of its class
    (DeepSMOTE), which lies nearer to single records."""
    penalty: float = Field(default=0.05, ge=0.0, le=100.0)
    """Weight of the penalty of sparse and contractive."""
    epochs: Epochs = 60
    n_draws: NDraws = 4
    class_power: ClassPower = 0.5
    ema_fraction: EmaFraction = 0.05
    learning_rate: LearningRate = 0.002
    weight_decay: WeightDecay = 0.01


class DiffusionModel(ImageParams):
    """Flow matching in pixel space: a small U-Net turns noise into images of the requested class."""

    kind: Literal["diffusion"] = "diffusion"
    width: int = Field(default=48, ge=16, le=512, multiple_of=16)
    """Channels of the network's first level; time grows with its square."""
    sampler_steps: int = Field(default=6, ge=1, le=100)
    """Steps per image, two evaluations of the network each."""
    sampler: Literal["midpoint", "heun"] = "midpoint"
    """Rule of a step; heun is EDM's."""
    class_power: ClassPower = 0.5
    guidance: float = Field(default=1.0, ge=0.0, le=10.0)
    """Above 1 images look more like their class and less like one another; doubles sampling time."""
    guide: Literal["unlabelled", "early"] = "unlabelled"
    """What guidance moves away from: the network without a label, or as it was after a quarter of the steps
    (autoguidance), which costs less variety."""
    label_dropout: float = Field(default=0.1, ge=0.0, le=1.0)
    """Share of records learnt without their label, so that classes share what they have in common."""
    shift_prob: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of records learnt moved by up to a tenth of the size; the network is told the move."""
    flip_prob: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of records learnt mirrored; the network is told. For images with no left and right."""
    turn_prob: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of records learnt turned by up to 11 degrees and scaled by up to 15 %; the network is told."""
    class_balance: float = Field(default=0.0, ge=0.0, le=100.0)
    """Weight of CBDM's regulariser, which draws what is learnt of a class towards all; 0: none. It takes time, and is
    for long runs."""
    compile: bool = False
    """Compile the network before training (torch.compile): minutes that only long runs on a GPU get back. Where it
    cannot be done, training goes on without."""
    ema_fraction: float = Field(default=0.05, ge=0.0, le=1.0)
    """Half-life of the averaged weights, as a share of the images seen; 0 averages nothing."""
    learning_rate: float = Field(default=0.002, gt=0.0, le=1.0)
    """Largest learning rate of Adam."""

    @model_validator(mode="after")
    def _guide_is_learnt(self) -> "DiffusionModel":
        if self.guidance != 1.0 and self.guide == "unlabelled" and not self.label_dropout:
            raise ValueError(
                "guidance moves away from the network without a label, which label_dropout 0 never trains; "
                "give label_dropout (0.1), or guide 'early'."
            )
        return self


class PluginOption(Params):
    """One parameter of a model from another package."""

    name: str = Field(min_length=1)
    """The parameter's name."""
    value: str
    """Its value: a number, true, false or text; anything else as JSON."""

    @property
    def parsed(self) -> Any:
        """The value as JSON, or else the text itself."""
        try:
            return json.loads(self.value)
        except ValueError:
            return self.value


def _from_mapping(options: Any) -> Any:
    """Also take a mapping, as options are written in Python and YAML."""
    if not isinstance(options, Mapping):
        return options
    return [{"name": name, "value": _as_value(value)} for name, value in options.items()]


PluginOptions = Annotated[list[PluginOption], BeforeValidator(_from_mapping)]


class PluginModel(Params):
    """A model that another package registers under the entry-point group ``prefect_augment.models``."""

    kind: Literal["plugin"] = "plugin"
    name: str
    """The entry point's name."""
    options: PluginOptions = Field(default_factory=list)
    """Passed to the model's own parameters class."""

    @model_validator(mode="after")
    def _each_once(self) -> "PluginModel":
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
    | MstModel
    | VaeModel
    | GanModel
    | AutoencoderModel
    | DiffusionModel
    | PluginModel,
    Field(discriminator="kind"),
]
