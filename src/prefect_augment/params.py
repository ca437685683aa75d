"""Wishes: what somebody asks of a run. Shown as the Prefect form, read from YAML, checked at once.

Facts (what happened) live in :mod:`prefect_augment.datatypes`. Descriptions sit on fields one level
deep because Prefect's form shows those and drops others; ``Optional`` and ``dict`` render badly
there, so "not given" is an empty string or list, and per-class wishes are lists of models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = [
    "Answer",
    "Approval",
    "AutoModel",
    "Balance",
    "Budget",
    "ClassAmount",
    "ClassTarget",
    "Classic",
    "ColumnWish",
    "Combination",
    "Compute",
    "Constraint",
    "Destination",
    "DiffusionModel",
    "FlowModel",
    "Gate",
    "Inequality",
    "ModelParams",
    "NoModel",
    "PluginModel",
    "PluginOption",
    "Positive",
    "Publish",
    "Report",
    "Source",
    "TreesModel",
    "Unique",
]

Learner = Literal["boosting", "logistic"]


def _as_value(value: Any) -> str:
    """Write an option's value so that :attr:`PluginOption.parsed` gives it back."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value  # text that no JSON is stands for itself
    return json.dumps(value)


def _title(name: str, info: object) -> str:
    """Return a field's name as the form shows it: ``holdout_uri`` is the hold-out URI."""
    words = [_WORDS.get(word, word) for word in name.removeprefix("n_").split("_")]
    return words[0][:1].upper() + " ".join(words)[1:]


_WORDS = {"uri": "URI", "mib": "MiB", "holdout": "hold-out", "prob": "probability"}


class Params(BaseModel):
    """Base of all wishes: unknown names are refused, so that a typing error is not ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, field_title_generator=_title)


class ColumnWish(Params):
    """What a column is, where the tool's own reading of it is wrong."""

    name: str = Field(description="The column's name.")
    kind: Literal["numeric", "category", "identifier", "opaque", "drop"] = Field(
        description="numeric or category: learnt by models. identifier: left out, synthetic records get a "
        "fresh one. opaque: kept in real records, null in synthetic ones. drop: not published."
    )


class Source(Params):
    """Where the labelled records come from, and how they are split."""

    uri: str = Field(
        default="",
        description="A file, folder or glob: a local path or any fsspec URL (s3://…). Several files are one "
        "dataset; a Hugging Face dataset folder is its train split. Images: a folder with a folder per class, a zip "
        "or tar of one, WebDataset tars, annotated images, or Parquet. Leave empty for the built-in example table.",
    )
    label: str = Field(
        default="",
        description="The column that holds the class. Empty: found where only one column can be it.",
    )
    format: Literal[
        "auto", "parquet", "csv", "jsonl", "arrow", "folder", "webdataset", "coco", "voc", "yolo"
    ] = Field(
        default="auto",
        description="auto goes by the files' names; csv covers TSV and semicolons; jsonl is one JSON object per line; "
        "arrow covers Feather; folder is a folder (or zip, or tar) with a folder of images per class; coco, voc and "
        "yolo are annotations beside images.",
    )
    include: list[str] = Field(
        default_factory=list,
        description="Image files to read, as glob patterns: *.jpg looks at names, train/**/*.jpg at paths. "
        "Empty: all of them.",
    )
    exclude: list[str] = Field(
        default_factory=list,
        description="Image files to leave out, as glob patterns, e.g. *.png where masks lie beside the images.",
    )
    max_megapixels: float = Field(
        default=50.0,
        gt=0.0,
        le=1000.0,
        description="Larger images go to quarantine before they are decoded (decompression bombs).",
    )
    encoding: str = Field(
        default="auto", description="Text encoding of CSV files; auto looks at the bytes."
    )
    separator: str = Field(
        default="auto", description="Separator of CSV files; auto looks at the first lines."
    )
    decimal: Literal["auto", ".", ","] = Field(
        default="auto", description="Decimal mark of CSV files."
    )
    columns: list[ColumnWish] = Field(
        default_factory=list,
        description="Columns that the tool would read wrongly, and what they are.",
    )
    holdout_fraction: float = Field(
        default=0.2,
        gt=0.0,
        lt=0.9,
        description="Share of each class kept aside for the last comparison, where no column or URI is given.",
    )
    holdout_column: str = Field(
        default="",
        description="A column that marks hold-out records: true/1, or one of holdout, test. It is not published.",
    )
    holdout_uri: str = Field(
        default="", description="Hold-out records of their own; never copied, never trained on."
    )
    on_overlap: Literal["error", "drop"] = Field(
        default="error",
        description="Records of the source that are also in the hold-out URI: stop, or quarantine them.",
    )
    val_fraction: float = Field(
        default=0.2,
        gt=0.0,
        lt=0.9,
        description="Share of the training records that choose between arms.",
    )
    group_column: str = Field(
        default="",
        description="Records with the same value (a patient, a machine) stay on one side of the split.",
    )
    group_pattern: str = Field(
        default="",
        description="The same for images, from their paths: a regular expression with one group, e.g. "
        "'(smear\\d+)_'. Empty, and no group column: near-duplicate images stay together.",
    )
    storage_block: str = Field(
        default="",
        description="Name of a saved Prefect storage block with the credentials, e.g. remote-file-system/lake.",
    )

    @model_validator(mode="after")
    def _one_holdout(self) -> Source:
        if self.holdout_column and self.holdout_uri:
            raise ValueError("holdout_column and holdout_uri are both given; keep one of them.")
        return self

    @model_validator(mode="after")
    def _one_group(self) -> Source:
        if not self.group_pattern:
            return self
        if self.group_column:
            raise ValueError("group_column and group_pattern are both given; keep one of them.")
        try:
            n_groups = re.compile(self.group_pattern).groups
        except re.error as exc:
            raise ValueError(f"group_pattern is not a regular expression: {exc}.") from exc
        if n_groups != 1:
            raise ValueError(
                f"group_pattern has {n_groups} groups; put parentheses around the one part of the path that names "
                "the group, and write (?:…) for others."
            )
        return self


class Destination(Params):
    """Where the balanced dataset is published."""

    uri: str = Field(
        default="",
        description="A folder: a local path or any fsspec URL. Versions accumulate in it; work in progress is "
        "kept under _staging. Leave empty for a folder below prefect-augment in the home folder.",
    )
    storage_block: str = Field(
        default="", description="Name of a saved Prefect storage block with the credentials."
    )


class ClassTarget(Params):
    """The target of one class, instead of the general one."""

    name: str = Field(description="The class, as the label column spells it.")
    target: int = Field(
        default=-1, ge=-1, description="Training records wanted; -1 keeps the general target."
    )
    max_synthetic_per_real: float = Field(
        default=-1.0,
        ge=-1.0,
        description="Cap for this class; -1 keeps the general cap; 0 forbids synthetic records.",
    )


class Balance(Params):
    """How many records each class should have."""

    target: Literal["median", "majority", "sqrt", "count"] = Field(
        default="median",
        description="median or majority of the class counts; sqrt: halfway to the majority on a log scale; "
        "count: the number below. No class is ever made smaller.",
    )
    count: int = Field(default=0, ge=0, description="Training records per class for target=count.")
    max_synthetic_per_real: float = Field(
        default=1.0,
        ge=0.0,
        description="At most so many synthetic records per real one; the rest of the way to the target is "
        "resampling. Above 5 a warning says that this has been seen to hurt.",
    )
    max_per_class: int = Field(
        default=0, ge=0, description="No class is brought above this; 0 for no such cap."
    )
    by: list[str] = Field(
        default_factory=list,
        description="Further columns to balance within, e.g. a site or a sex: each combination is balanced by itself.",
    )
    classes: list[ClassTarget] = Field(
        default_factory=list, description="Classes with a target or cap of their own."
    )

    @model_validator(mode="after")
    def _count_is_given(self) -> Balance:
        if self.target == "count" and self.count < 1:
            raise ValueError(
                "target is 'count' but count is 0; say how many records each class should have."
            )
        names = [c.name for c in self.classes]
        if len(names) != len(set(names)):
            raise ValueError("classes names the same class twice; keep one entry per class.")
        return self


class Classic(Params):
    """Classic augmentation: the SMOTE family on tables, small changes of pictures on images."""

    table: Literal["smote", "none"] = Field(
        default="smote",
        description="smote interpolates between neighbours of a class (SMOTENC with categories).",
    )
    k_neighbors: int = Field(
        default=5, ge=1, le=50, description="Neighbours to interpolate with; fewer in tiny classes."
    )
    max_memory_mib: int = Field(
        default=2048,
        ge=64,
        description="Refuse, with advice, when the estimate of the memory needed is above this.",
    )
    image: Literal["safe", "none"] = Field(
        default="safe",
        description="safe turns by up to 10 degrees, scales by up to a tenth, shifts by up to 7 %, and changes "
        "brightness and contrast by up to a tenth; it never flips.",
    )
    image_prob: float = Field(
        default=0.5,
        gt=0.0,
        le=1.0,
        description="How many of the images that a classifier sees are changed at all.",
    )


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


class TreesModel(Params):
    """Sequential trees (synthpop): each column drawn from a tree given the class and the columns before."""

    # The tab of the form.
    model_config = ConfigDict(json_schema_extra={"title": "trees"})

    kind: Literal["trees"] = "trees"
    min_leaf: int = Field(
        default=20,
        ge=2,
        le=1000,
        description="Records in a leaf; less where the smallest class is small.",
    )
    max_depth: int = Field(default=14, ge=1, le=40, description="Depth of each column's tree.")


class FlowModel(Params):
    """Flow matching for tables: categories drawn one given the others, numbers carried from noise."""

    # The tab of the form.
    model_config = ConfigDict(json_schema_extra={"title": "flow"})

    kind: Literal["flow"] = "flow"
    width: int = Field(
        default=256,
        ge=8,
        le=4096,
        description="Numbers in the networks' layers; time grows with its square.",
    )
    depth: int = Field(default=3, ge=1, le=16, description="Blocks of two layers in each network.")
    epochs: int = Field(
        default=90,
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
    class_power: float = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        description="Classes are learnt with p ∝ n^power: 1 as they come, 0 equally often, which copies rare records.",
    )
    ema_fraction: float = Field(
        default=0.05,
        ge=0.0,
        le=1.0,
        description="Half-life of the averaged weights, as a share of the records seen; 0 averages nothing.",
    )
    learning_rate: float = Field(
        default=0.002, gt=0.0, le=1.0, description="Largest learning rate of AdamW."
    )
    weight_decay: float = Field(
        default=0.01, ge=0.0, le=10.0, description="AdamW's pull of the weights towards zero."
    )


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
    class_power: float = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        description="Classes are learnt with p ∝ n^power: 1 as they come, 0 equally often, which copies rare records.",
    )
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
    AutoModel | NoModel | TreesModel | FlowModel | DiffusionModel | PluginModel,
    Field(discriminator="kind"),
]


class Inequality(Params):
    """One column is below or above another: a start before its end."""

    # The tab of the form.
    model_config = ConfigDict(json_schema_extra={"title": "inequality"})

    kind: Literal["inequality"] = "inequality"
    left: str = Field(min_length=1, description="The column before the sign.")
    operator: Literal["<", "<=", ">", ">="] = Field(
        default="<=", description="How left compares with right where both have a value."
    )
    right: str = Field(min_length=1, description="The column behind the sign.")


class Positive(Params):
    """Columns have no value below zero."""

    # The tab of the form.
    model_config = ConfigDict(json_schema_extra={"title": "positive"})

    kind: Literal["positive"] = "positive"
    columns: list[str] = Field(min_length=1, description="Columns of numbers or durations.")
    zero: bool = Field(default=False, description="Whether zero is allowed too.")


class Combination(Params):
    """Columns occur together only as in the real records: a city in its own country."""

    # The tab of the form.
    model_config = ConfigDict(json_schema_extra={"title": "combination"})

    kind: Literal["combination"] = "combination"
    columns: list[str] = Field(
        min_length=2, description="Columns whose values, nulls included, belong together."
    )


class Unique(Params):
    """No two records have the same values, real ones included."""

    # The tab of the form.
    model_config = ConfigDict(json_schema_extra={"title": "unique"})

    kind: Literal["unique"] = "unique"
    columns: list[str] = Field(
        min_length=1,
        description="Columns that together tell records apart; records with a null there are not compared.",
    )


Constraint = Annotated[Inequality | Positive | Combination | Unique, Field(discriminator="kind")]


class Budget(Params):
    """How much effort training may take."""

    minutes: float = Field(
        default=10.0,
        gt=0.0,
        description="Minutes for the whole run; judging takes at most half. Ignored where steps is set.",
    )
    steps: int = Field(
        default=0,
        ge=0,
        description="Training steps instead of minutes: what makes a run repeatable to the byte.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto takes a GPU where there is one."
    )
    batch_size: int = Field(
        default=0, ge=0, description="Records per step; 0 lets the model choose."
    )
    checkpoint_seconds: float = Field(
        default=60.0,
        ge=0.0,
        description="Seconds between the checkpoints that a run goes on from after a crash.",
    )
    reuse_growth: float = Field(
        default=0.2,
        ge=0.0,
        description="A model trained before serves for as long as no class has grown by more than this share; "
        "0 trains anew whenever the source has changed.",
    )


class Gate(Params):
    """What synthetic records and recipes must pass."""

    on_no_gain: Literal["recipe", "fail", "publish"] = Field(
        default="recipe",
        description="When the model does not help: publish the best baseline's recipe, fail, or publish anyway.",
    )
    purpose: Literal["utility", "faithful"] = Field(
        default="utility",
        description="utility keeps the third of the candidates that a classifier finds most like their class (for "
        "training); faithful keeps them as the class is (for sharing and testing).",
    )
    learners: list[Learner] = Field(
        default=["boosting", "logistic"],
        min_length=1,
        description="Classifiers that judge each arm: gradient boosting, logistic regression.",
    )
    n_seeds: int = Field(
        default=3, ge=1, le=20, description="Seeds for the best three arms and the last comparison."
    )
    max_recall_loss: float = Field(
        default=0.02,
        ge=0.0,
        le=1.0,
        description="Worst-class recall may not fall by more than this.",
    )
    near_copy_quantile: float = Field(
        default=0.05,
        ge=0.0,
        lt=1.0,
        description="A synthetic record nearer to a training record than this quantile of val's distances is dropped.",
    )
    fidelity_quantile: float = Field(
        default=0.05,
        ge=0.0,
        lt=1.0,
        description="A synthetic record that looks less like its class than this quantile of val's records is dropped.",
    )
    n_bootstrap: int = Field(
        default=2000, ge=100, le=100_000, description="Resamples behind each interval."
    )


class Approval(Params):
    """Whether a person has to say yes before anything is published."""

    # Not called `required`: Prefect drops a property of that name from the schema it checks.
    ask: bool = Field(
        default=False,
        description="Stop after the report and ask: a deployed run is suspended until somebody approves, lowers the "
        "amounts or rejects; any other run ends with a proposal that `prefect-augment approve` publishes.",
    )
    timeout_hours: float = Field(
        default=24.0,
        gt=0.0,
        le=8760.0,
        description="How long a suspended run waits. Without an answer by then nothing is published.",
    )
    ask_again: bool = Field(
        default=False,
        description="Ask again where the very same version was rejected before; else the rejection stands.",
    )


class ClassAmount(Params):
    """A lower number of added records for one class."""

    name: str = Field(description="The class, as the proposal spells it.")
    records: int = Field(
        ge=0,
        description="Records to add: at most the proposal's number; 0 adds none to this class.",
    )


class Answer(Params):
    """What somebody says to a proposal."""

    decision: Literal["approve", "reject"] = Field(
        default="approve", description="approve publishes the version; reject publishes nothing."
    )
    amounts: list[ClassAmount] = Field(
        default_factory=list, description="Classes that get fewer records than proposed."
    )
    comment: str = Field(default="", description="Why; kept in the manifest.")
    by: str = Field(default="", description="Who decides; kept in the manifest.")
    again: bool = Field(
        default=False, description="Decide anew where the proposal was rejected before."
    )

    @model_validator(mode="after")
    def _once_per_class(self) -> Answer:
        names = [a.name for a in self.amounts]
        if len(names) != len(set(names)):
            raise ValueError("amounts names the same class twice; keep one entry per class.")
        if names and self.decision == "reject":
            raise ValueError(
                "amounts are given and decision is 'reject'; leave them out, or approve."
            )
        return self


class Publish(Params):
    """What is written, and how."""

    format: Literal["parquet", "webdataset"] = Field(
        default="parquet",
        description="parquet is read by everything; webdataset writes images as tar shards, for loaders that stream "
        "them. It pays for images of 10 kB and more.",
    )
    materialise: Literal["auto", "copies"] = Field(
        default="auto",
        description="auto expresses resampling in the column aug_weight; copies also writes the duplicates, for "
        "readers that know nothing of weights.",
    )
    origins: list[Literal["real", "copy", "classic", "synthetic"]] = Field(
        default=["real", "copy", "classic", "synthetic"],
        min_length=1,
        description="Kinds of records to publish; only synthetic is for sharing.",
    )
    shard_records: int = Field(
        default=1_000_000, ge=1, description="At most so many records in a shard."
    )
    shard_mib: int = Field(default=128, ge=1, le=4096, description="About so many MiB in a shard.")
    export: str = Field(
        default="",
        description="Also write the newest version to this folder or URL, as a plain tree for engines that read by "
        "glob (<split>/part-….parquet). The folder holds nothing else; an earlier export is replaced.",
    )


class Report(Params):
    """What the report may show."""

    pictures: Literal["real", "synthetic", "none"] = Field(
        default="real",
        description="real shows real records beside synthetic ones; none shows no record.",
    )


class Compute(Params):
    """How many workers; changes the time a run takes, never its bytes."""

    workers: int = Field(
        default=2, ge=1, le=256, description="Arms judged and shards written at the same time."
    )
