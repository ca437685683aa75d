"""The form of the `rebalance` deployment: what few people change, in a group for tables and one for images."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from prefect_augment.params.balance import Balance, Classic
from prefect_augment.params.base import Params
from prefect_augment.params.data import Destination, Source
from prefect_augment.params.encoder import Encoder
from prefect_augment.params.models import (
    AutoencoderModel,
    AutoModel,
    DiffusionModel,
    FlowModel,
    GanModel,
    ModelParams,
    MstModel,
    NoModel,
    PluginModel,
    TreesModel,
    VaeModel,
)
from prefect_augment.params.run import (
    Approval,
    Budget,
    Compute,
    Evaluation,
    Publish,
    Quality,
    Report,
)


@dataclass(frozen=True)
class Without:
    """Leaves fields of a section out of the form: they are asked elsewhere, or mean nothing for such data."""

    fields: tuple[str, ...]

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        form = deepcopy(handler.resolve_ref_schema(handler(core_schema)))
        form["properties"] = {n: p for n, p in form["properties"].items() if n not in self.fields}
        return form


SHOWN_ABOVE = ("uri", "label")
OF_IMAGES = Without((*SHOWN_ABOVE, "encoding", "separator", "decimal"))
OF_TABLES = Without((*SHOWN_ABOVE, "include", "exclude", "max_megapixels", "group_pattern"))
# fmt: off
POLICY = (
    "image", "policy", "plugin", "on_label_damage", "max_label_damage", "min_visibility", "image_prob",
    "image_strategies",
)
SMOTE = ("table", "shrinkage", "jitter", "text", "text_plugin", "k_neighbors", "max_memory_mib")
# fmt: on


class _Settings(Params):
    """The sections in the order of work, folded in the form; what tables or images do not have is left out below."""

    source: Source | None = None
    destination: Annotated[Destination, Without(("uri",))] | None = None
    """Credentials of the destination."""
    balance: Annotated[Balance, Without(("unit",))] | None = None
    """How many records each class should have."""
    model: ModelParams = AutoModel()
    classic: Classic | None = None
    budget: Budget | None = None
    """How much time the run may take."""
    evaluation: Evaluation | None = None
    """Which classifiers and which metric decide, and what happens without a gain."""
    quality: Quality | None = None
    """What synthetic records have to meet."""
    approval: Annotated[Approval, Without(("ask",))] | None = None
    """How long the run waits for an answer."""
    publish: Publish | None = None
    """What is written, and how."""
    report: Report | None = None
    """Whether the report shows records."""
    compute: Compute | None = None
    """Where tasks run, and how many at the same time."""
    seed: int = 0
    """Seed of everything random; the same input, parameters and seed give the same bytes."""


class TableSettings(_Settings):
    """Everything else, where the records are rows of a table."""

    model_config = ConfigDict(title="Tables")

    source: Annotated[Source, OF_TABLES] | None = None
    """How files are read, and how records are split."""
    model: Annotated[
        AutoModel
        | NoModel
        | TreesModel
        | FlowModel
        | MstModel
        | VaeModel
        | GanModel
        | AutoencoderModel
        | PluginModel,
        Field(discriminator="kind"),
    ] = AutoModel()
    """The generative model; auto compares those that suit the data."""
    classic: Annotated[Classic, Without(POLICY)] | None = None
    """The SMOTE family, and changes of texts."""
    publish: Annotated[Publish, Without(("format",))] | None = None
    """What is written, and how."""


class ImageSettings(_Settings):
    """Everything else, where the records are images."""

    model_config = ConfigDict(title="Images")

    source: Annotated[Source, OF_IMAGES] | None = None
    """Which files are read, and how images are split."""
    model: Annotated[
        AutoModel | NoModel | DiffusionModel | VaeModel | GanModel | AutoencoderModel | PluginModel,
        Field(discriminator="kind"),
    ] = AutoModel()
    """The generative model; auto compares those that suit the data."""
    classic: Annotated[Classic, Without(SMOTE)] | None = None
    """What is done to images, and further strategies."""
    encoder: Encoder | None = None
    """A pretrained network of your own, whose features are used."""
    quality: Annotated[Quality, Without(("labels", "constraints"))] | None = None
    """What synthetic images have to meet."""
