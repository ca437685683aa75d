"""What a run may spend, what records have to satisfy, how strategies are compared, who approves, what is written."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from prefect_augment.params.balance import Balance, Classic
from prefect_augment.params.base import Params
from prefect_augment.params.encoder import Encoder
from prefect_augment.params.estimators import Estimator, OwnEstimator
from prefect_augment.params.locations import Location
from prefect_augment.params.metrics import Metric
from prefect_augment.params.models import AutoModel, ModelParams


class Inequality(Params):
    """One column is below or above another: a start before its end."""

    kind: Literal["inequality"] = "inequality"
    left: str = Field(min_length=1)
    """The column before the sign."""
    operator: Literal["<", "<=", ">", ">="] = "<="
    """How left compares with right where both have a value."""
    right: str = Field(min_length=1)
    """The column behind the sign."""


class Positive(Params):
    """Columns have no value below zero."""

    kind: Literal["positive"] = "positive"
    columns: list[str] = Field(min_length=1)
    """Columns of numbers or durations."""
    zero: bool = False
    """Whether zero is allowed too."""


class Combination(Params):
    """Columns occur together only as in the real records: a city in its own country."""

    kind: Literal["combination"] = "combination"
    columns: list[str] = Field(min_length=2)
    """Columns whose values, nulls included, belong together."""


class Unique(Params):
    """No two records have the same values, real ones included."""

    kind: Literal["unique"] = "unique"
    columns: list[str] = Field(min_length=1)
    """Columns that together tell records apart; records with a null there are not compared."""


Constraint = Annotated[Inequality | Positive | Combination | Unique, Field(discriminator="kind")]


class Budget(Params):
    """How much effort training may take."""

    minutes: float = Field(default=10.0, gt=0.0)
    """Minutes for the whole run; comparing takes at most half, 70 % where no network is trained. Ignored where steps is
    set."""
    steps: int = Field(default=0, ge=0)
    """Training steps instead of minutes: what makes a run repeatable to the byte."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""
    devices: int = Field(default=1, ge=1, le=64)
    """Processes of one machine that train one network together, each on a GPU of its own; on a CPU they share the
    cores. Models without a network ignore it."""
    batch_size: int = Field(default=0, ge=0)
    """Records per step; 0 lets the model choose."""
    checkpoint_seconds: float = Field(default=60.0, ge=0.0)
    """Seconds between the checkpoints from which a run continues after a crash."""
    reuse_growth: float = Field(default=0.2, ge=0.0)
    """An earlier model is reused as long as no class has grown by more than this share; 0 trains anew whenever the
    source has changed."""


class Evaluation(Params):
    """How strategies are compared, and what the comparison decides."""

    estimators: list[Annotated[Estimator, Field(title="by name")] | OwnEstimator] = Field(
        default=["boosting", "logistic"], min_length=1
    )
    """Classifiers that score each strategy. Tables: names (lightgbm, xgboost and catboost have to be installed), or one
    of your own, which then decides alone. Images: a network of your own, or else a small convolutional one."""
    metric: Metric = Metric()
    """The measure that decides; the others are reported."""
    n_seeds: int = Field(default=3, ge=1, le=20)
    """Seeds for the best two strategies. The hold-out is compared with as many of images, of tables with one less
    than twice as many: three give five."""
    n_settings: int = Field(default=0, ge=0, le=8)
    """Settings of each strategy that are tried on validation records; 0: four; of images eight or two, by the
    time that scoring them takes."""
    max_recall_loss: float = Field(default=0.02, ge=0.0, le=1.0)
    """Synthetic records count as harmful where the worst class is shown to lose more recall than this."""
    n_bootstrap: int = Field(default=2000, ge=100, le=100_000)
    """Resamples behind each interval."""
    on_no_gain: Literal["recipe", "fail", "publish"] = "recipe"
    """When synthetic records do not help: publish the best recipe without them, fail, or publish them anyway."""

    @field_validator("estimators", mode="before")
    @classmethod
    def _from_objects(cls, estimators: Any) -> Any:
        """Also take scikit-learn classifiers and factories of torch modules, from Python."""
        if not isinstance(estimators, list | tuple):
            return estimators
        plain = (str, Mapping, OwnEstimator)
        return [e if isinstance(e, plain) else OwnEstimator.of(e) for e in estimators]

    @model_validator(mode="after")
    def _own_decides_alone(self) -> Self:
        own = self.own_estimators
        names = [e if isinstance(e, str) else e.title for e in self.estimators]
        if own and len(own) < len(names):
            raise ValueError(
                f"estimators has {own[0].title!r} of your own, which decides alone; leave out "
                f"{next(e for e in self.estimators if isinstance(e, str))!r} and the other names."
            )
        if len(names) != len(set(names)):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"estimators names {twice!r} twice; give each its own name.")
        return self

    @property
    def own_estimators(self) -> list[OwnEstimator]:
        """The estimators that are not built in."""
        return [e for e in self.estimators if isinstance(e, OwnEstimator)]


class Quality(Params):
    """What synthetic records have to meet."""

    purpose: Literal["utility", "faithful"] = "utility"
    """utility makes records for training (see labels); faithful keeps them as the class is (for sharing and
    testing)."""
    labels: Literal["soft", "hard"] = "soft"
    """For utility. soft (tables): a record has a row for each class that an ensemble finds likely, and aug_weight says
    how likely. hard: the third of the candidates that a classifier finds most like their class."""
    near_copy_quantile: float = Field(default=0.05, ge=0.0, lt=1.0)
    """A synthetic record nearer to a training record than this quantile of validation records' own distances is
    dropped."""
    fidelity_quantile: float = Field(default=0.05, ge=0.0, lt=1.0)
    """A synthetic record that looks less like its class than this quantile of validation records is dropped."""
    on_unsafe_class: Literal["report", "drop"] = "report"
    """When a class's synthetic records as a whole are unsafe (copies, other labels, noise, collapse): report it and use
    those that passed one by one, or use none of them."""
    false_alarm: float = Field(default=0.01, gt=0.0, lt=1.0)
    """Chance that any class of a sound generator is called unsafe."""
    max_fault_share: float = Field(default=0.1, ge=0.0, le=1.0)
    """A class is unsafe where by this share more synthetic than real records break the domain, lie far from all
    training records, or look like another class."""
    min_coverage: float = Field(default=0.5, ge=0.0, le=1.0)
    """A class is unsafe where its synthetic records cover less than this share of what as many real ones would."""
    min_level_records: int = Field(default=5, ge=1, le=1000)
    """Tables: a level of a category comes out of a generator where so many training records have it; records with a
    rarer one are learnt with a frequent one, and a column without a frequent one is null. From 2 on, a number that a
    single record has does not come out either. 1 lets every value out."""
    constraints: list[Constraint] = Field(default_factory=list)
    """Tables: what every synthetic record keeps (an inequality, positive numbers, combinations that there are, no two
    alike). Other draws are dropped; SMOTE, which keeps none, is left out."""
    on_leak: Literal["warn", "fail"] = "warn"
    """When synthetic records show which real records they were made from: warn, or publish nothing and fail."""


class Approval(Params):
    """Whether a person has to approve a version before it is published."""

    # Not called `required`: Prefect drops a property of that name from the schema it checks.
    ask: bool = False
    """Stop after the report and ask: a deployed run is suspended until somebody approves, lowers the amounts or
    rejects; any other run ends with a proposal that `prefect-augment approve` publishes."""
    timeout_hours: float = Field(default=24.0, gt=0.0, le=8760.0)
    """How long a suspended run waits. Without an answer by then nothing is published."""
    ask_again: bool = False
    """Ask again where the very same version was rejected before; else the rejection stands."""


class ClassAmount(Params):
    """A lower number of added records for one class."""

    name: str
    """The class, as the proposal spells it."""
    records: int = Field(ge=0)
    """Records to add: at most the proposal's number; 0 adds none to this class."""


class Answer(Params):
    """The decision on a proposal."""

    decision: Literal["approve", "reject"] = "approve"
    """approve publishes the version; reject publishes nothing."""
    amounts: list[ClassAmount] = Field(default_factory=list)
    """Classes that get fewer records than proposed."""
    comment: str = ""
    """Why; kept in the manifest."""
    by: str = ""
    """Who decides; kept in the manifest."""
    labels: str = ""
    """Labels to correct, one record in a line: aug_id = label. suggested takes the audit's for all that it doubts. They
    count from the next run on."""
    again: bool = False
    """Decide anew where the proposal was rejected before."""

    @model_validator(mode="after")
    def _once_per_class(self) -> "Answer":
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

    format: Literal["parquet", "webdataset"] = "parquet"
    """parquet is read by everything; webdataset writes images as tar shards, for loaders that stream them. It pays for
    images of 10 kB and more."""
    materialise: Literal["auto", "copies"] = "auto"
    """auto expresses resampling in the column aug_weight; copies also writes the duplicates, for readers that use no
    weights."""
    origins: list[Literal["real", "copy", "classic", "synthetic"]] = Field(
        default=["real", "copy", "classic", "synthetic"], min_length=1
    )
    """Kinds of records to publish. With synthetic alone the destination is for sharing: everything that holds real
    records lies in destination.workspace."""
    shard_records: int = Field(default=1_000_000, ge=1)
    """At most so many records in a shard."""
    shard_mib: int = Field(default=128, ge=1, le=4096)
    """About so many MiB in a shard."""
    require: Literal["proven", "preferred"] = "preferred"
    """What synthetic records need before they are published. preferred: a gain over the best way without them is
    likely, and a loss of a point has a chance below 10 %. proven: the gain lies above chance."""
    export: Location = ""
    """Also write the newest version to this folder or URL, as a plain tree for engines that read by glob
    (<split>/part-….parquet). The folder holds nothing else; an earlier export is replaced."""
    licence: str = ""
    """Licence of what you publish, for croissant.json: an SPDX identifier, e.g. CC-BY-4.0, or a URL. The source's
    terms decide what it may be."""

    @model_validator(mode="after")
    def _copies_are_let_out(self) -> "Publish":
        if self.materialise == "copies" and "copy" not in self.origins:
            raise ValueError(
                "materialise is 'copies' but origins leaves 'copy' out; add it, or use 'auto'."
            )
        return self


class Report(Params):
    """What the report may show."""

    pictures: Literal["real", "synthetic", "none"] = "real"
    """real shows real records beside synthetic ones; none shows no record."""


class Compute(Params):
    """Where tasks run, and how many at the same time. It changes bytes only with budget.minutes."""

    engine: Literal["threads", "processes", "dask", "ray"] = "threads"
    """threads of the flow's own process; processes of its machine; a Dask or Ray cluster (extras dask and ray)."""
    address: Location = ""
    """Of a running cluster, whose workers see source and destination: tcp://host:8786 (Dask), ray://host:10001, or
    auto (Ray on this machine). Empty: a cluster of this machine, for the run alone."""
    workers: int = Field(default=0, ge=0, le=256)
    """Tasks at the same time, such as strategies that are scored. 0: two, or with an address all that its workers
    can do."""

    @model_validator(mode="after")
    def _address_of_a_cluster(self) -> "Compute":
        if self.address and self.engine not in ("dask", "ray"):
            raise ValueError(
                f"address is {self.address!r} and engine is {self.engine!r}, which has none; set engine to 'dask' or "
                "'ray', or leave the address out."
            )
        return self


class RunParams(Params):
    """What a run does with its records, from the plan to the published version."""

    balance: Balance = Balance()
    model: ModelParams = AutoModel()
    classic: Classic = Classic()
    encoder: Encoder = Encoder()
    budget: Budget = Budget()
    evaluation: Evaluation = Evaluation()
    quality: Quality = Quality()
    publish: Publish = Publish()
    report: Report = Report()
    seed: int = 0
