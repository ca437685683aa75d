"""Results: frozen, small, and stored as JSON; only these travel between tasks.

A class is named by its label value as text, so the integer class 0 is ``"0"``. A stratum is a class, or a
class within one combination of the ``balance.by`` columns. Parameters are in :mod:`prefect_augment.params`.
"""

import json
import math
from collections.abc import Collection, Iterable, Sequence
from html import escape
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

Part = Literal["training", "validation", "holdout"]
Split = Literal["train", "holdout"]
Origin = Literal["real", "copy", "classic", "synthetic"]
Modality = Literal["table", "image"]
ColumnKind = Literal["numeric", "category", "identifier", "constant", "empty", "opaque", "image"]
CheckName = Literal["domain", "copies", "noise", "labels", "collapse"]
LatentUse = Literal[
    "embeddings", "anomalies", "reconstructions", "denoised", "interpolations", "shifts", "classes"
]


class Result(BaseModel):
    """Base of all results."""

    # A field with a second alias was stored under that one by versions before 0.2.
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True
    )

    def to_json(self) -> bytes:
        """Return JSON with sorted keys, for storage and digests: equal results give equal bytes."""
        values = self.model_dump(mode="json")
        return (json.dumps(values, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def html_table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table for a notebook; whatever stands in a cell is escaped."""
    lines = [
        "".join(f"<{tag}>{escape(str(cell))}</{tag}>" for cell in row)
        for tag, part in (("th", [head]), ("td", rows))
        for row in part
    ]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


class Interval(Result):
    """An estimate with its 95 % interval."""

    estimate: float
    low: float
    high: float


# --- datasets ---------------------------------------------------------------------------------


class ColumnInfo(Result):
    """One column of the source."""

    name: str
    arrow_type: str
    kind: ColumnKind
    n_null: int
    n_unique: int
    note: str = ""  # why it is an identifier, what happens to it in synthetic records …


class ImageInfo(Result):
    """The images of a source, without a hold-out that has its own URI.

    Sizes are those of the upright image (EXIF orientation applied), as ``widthxheight``.
    """

    column: str
    modes: dict[str, int]  # Pillow's mode -> images: L, RGB, RGBA, P, CMYK, I;16 …
    formats: dict[str, int]  # JPEG, PNG … -> images
    sizes: dict[str, int]  # the most common ones, "28x28" -> images
    n_sizes: int  # distinct ones
    most_common_size: tuple[int, int]  # width, height; ties go to the larger area
    smallest_side: int
    largest_side: int
    n_channels: int  # 1 where every image is gray, else 3
    n_animated: int = 0
    n_rotated: int = 0  # with an EXIF orientation other than upright
    n_clusters: int = 0  # near-duplicate clusters of two images or more
    n_clustered: int = 0  # images in them
    largest_cluster: int = 0
    n_near_holdout: int = 0  # images with a near-duplicate in a separate hold-out


class SourceFile(Result):
    """One listed object of the source; of loose image files, the files of one folder."""

    path: str
    n_bytes: int
    etag: str  # or size and modification time
    n_records: int
    n_quarantined: int
    batch: int = 1  # version whose ingest first read it; of a folder the newest file's


class BatchInfo(Result):
    """The records of the source files that one version read first, staged separately."""

    batch: int
    index: str  # path of the record index for the split, relative to root
    n_records: int  # usable ones, including those that the split leaves out
    columns: dict[str, tuple[int | None, ...]]  # column -> additive counts
    notes: tuple[tuple[str, str, int], ...] = ()  # note, first file, number of files


class ShardInfo(Result):
    """One immutable object of records."""

    path: str  # relative to the root it lies under
    split: str  # train | holdout in a published dataset; a part, or candidates, in staging
    origin: Origin
    n_records: int
    n_bytes: int
    sha256: str
    class_counts: dict[str, int]


class DatasetRef(Result):
    """A reference to staged records, for tasks; the :class:`DatasetInfo` at ``path`` has the details."""

    root: str  # URI of the destination under whose _staging the records lie
    path: str  # of the stage's outcome, relative to root
    key: str  # step key
    digest: str  # sha256 over the shards' digests
    label: str
    n_records: int
    n_quarantined: int = 0
    class_counts: dict[str, int]
    block: str = ""  # name of the Prefect block that opens root, if needed
    modality: Modality = "table"


class DatasetInfo(Result):
    """All details of staged records; the outcome of an ingest or sampling stage."""

    stage: str
    key: str
    digest: str
    label: str
    label_type: str
    schema_digest: str  # of the source's columns, in order, with their types
    columns: tuple[ColumnInfo, ...]  # without the label
    shards: tuple[ShardInfo, ...]
    part_counts: dict[str, dict[str, int]]  # part -> class -> records
    # Classes with records in all parts.
    compared: tuple[str, ...] = Field(validation_alias=AliasChoices("compared", "judged"))
    n_quarantined: int = 0
    quarantine: tuple[ShardInfo, ...] = ()
    sources: tuple[SourceFile, ...] = ()
    holdout_uri: str = ""  # of a separate hold-out, which is not copied
    holdout_digest: str = ""
    ledger: str = ""  # path of the staged split ledger, relative to root
    group_column: str = ""
    n_twins: int = 0  # records whose feature values occur more than once
    modality: Modality = "table"
    image: ImageInfo | None = None  # of images
    notes: tuple[str, ...] = ()
    extra: dict[str, Any] = Field(default_factory=dict)
    batches: tuple[BatchInfo, ...] = ()
    files: str = ""  # path of the list of all source files with their batches, relative to root


class Profile(Result):
    """The content of a source, for people; nothing is staged."""

    source: str
    format: str
    label: str  # empty if no column can be the label
    is_valid: bool  # whether ingest would accept it
    n_files: int
    n_bytes: int
    n_records: int
    columns: tuple[ColumnInfo, ...]
    class_counts: dict[str, int]
    imbalance_ratio: float  # 0 without classes
    n_quarantined: int
    quarantine: dict[str, int]  # reason -> records
    modality: Modality = "table"
    image: ImageInfo | None = None
    notes: tuple[str, ...] = ()  # problems first


# --- plan -------------------------------------------------------------------------------------


class ClassPlan(Result):
    """What one stratum has and gets, in training records (training and validation)."""

    name: str  # the stratum: the class, or "class | column=value" with balance.by
    label: str  # the class
    by: dict[str, str] = Field(default_factory=dict)
    n_real: int
    target: int
    n_synthetic: int  # at most: dropped candidates are not replaced
    n_classic: int  # target - n_real - n_synthetic: copies, SMOTE records or weight, by the recipe
    compared: bool = Field(validation_alias=AliasChoices("compared", "judged"))
    note: str = ""


class Estimate(Result):
    """Rough cost of a run before it starts."""

    seconds: float  # of one core, or of the GPU that trains
    output_bytes: int
    memory_bytes: int
    comparison_seconds: float = 0.0  # part of ``seconds`` for comparing the strategies
    writes: int = 0  # requests to a store of objects that put or list
    reads: int = 0  # those that get or ask for a size


class BalancePlan(Result):
    """Real, target, classic and synthetic records per stratum."""

    rule: str
    classes: tuple[ClassPlan, ...]
    estimate: Estimate
    warnings: tuple[str, ...] = ()
    classifier_steps: int = Field(
        default=0, validation_alias=AliasChoices("classifier_steps", "learner_steps")
    )  # of the classifier of images; 0 for tables
    classifier_width: float = Field(
        default=1.0, validation_alias=AliasChoices("classifier_width", "learner_width")
    )  # times its channels
    classifier_input: tuple[int, int] = (0, 0)  # side and channels of the images that it gets
    n_folds: int = 0  # of images: folds of the comparison, 1 for validation alone; 0 for tables
    n_settings: int = 8  # most settings tried of one strategy, see plan.search_space
    soft_labels: bool = False  # each synthetic record has a row per likely class, by weight
    max_compared: int = 0  # most training and validation images that are compared; 0 for all

    def _repr_html_(self) -> str:
        rows = [(c.name, c.n_real, c.target, c.n_synthetic, c.n_classic) for c in self.classes]
        return html_table(("class", "real", "target", "synthetic", "classic"), rows)

    @classmethod
    def without_amounts(cls) -> "BalancePlan":
        """Return the plan of a run that adds no record."""
        nothing = Estimate(seconds=0.0, output_bytes=0, memory_bytes=0)
        return cls(rule="", classes=(), estimate=nothing)

    @property
    def identity(self) -> list[Any]:
        """The content of the plan that changes bytes of later steps."""
        amounts = [c.model_dump(mode="json") for c in self.classes]
        classifier = [self.classifier_steps, self.classifier_width, self.n_folds]
        return [amounts, *classifier, self.n_settings, self.soft_labels]

    @property
    def n_synthetic(self) -> int:
        """Planned synthetic records over all strata."""
        return sum(c.n_synthetic for c in self.classes)

    @property
    def real_counts(self) -> dict[str, int]:
        """Real training records per class."""
        return real_counts(self.classes)


def real_counts(strata: Iterable[ClassPlan]) -> dict[str, int]:
    """Real training records per class, over its strata."""
    counts: dict[str, int] = {}
    for stratum in strata:
        counts[stratum.label] = counts.get(stratum.label, 0) + stratum.n_real
    return counts


# --- models and candidates --------------------------------------------------------------------


class PrivacyGuarantee(Result):
    """Differential privacy of one training: what is promised, how it is counted, and what is not covered."""

    epsilon: float
    delta: float
    rho: float  # zero-concentrated loss that is spent
    mechanism: str
    bounds_from: Literal["given", "data"]  # ranges of the numbers

    @property
    def sentences(self) -> tuple[str, ...]:
        """The guarantee in words, for manifest, card and report."""
        domain = "which levels a category has, which columns have missing values, how many records each class has"
        if self.bounds_from == "data":
            domain = f"the numbers' ranges, which were read off the records, {domain}"
        promise = (
            f"The training is differentially private towards one record added or removed: epsilon {self.epsilon:g}, "
            f"delta {self.delta:g}, which is rho {self.rho:.4g} of zero-concentrated privacy. {self.mechanism}."
        )
        return (
            promise,
            f"The guarantee does not cover {domain}.",
            "Nor does it cover the split, the filter and the choice among strategies, which read real records again.",
            "Nor the preparation of columns, rare values that decoding avoids, and further trainings.",
            "It is about one record, not about all records of one person.",
        )


class ModelRef(Result):
    """A trained model: checkpoint and encoder by digest."""

    root: str
    path: str  # of the stage's outcome, relative to root
    key: str
    kind: str
    digest: str  # sha256 of the checkpoint: weights and configuration; aug_model of its records
    encoder_digest: str
    checkpoint: str  # path of the safetensors file, relative to root
    config: str  # path of its JSON
    strata: tuple[str, ...]  # strata that can be sampled, in the model's order
    n_training: int = Field(validation_alias=AliasChoices("n_training", "n_fit"))
    steps: int
    notes: tuple[str, ...] = ()
    guarantee: PrivacyGuarantee | None = None  # of a training under differential privacy
    block: str = ""


ClassVerdict = Annotated[
    Literal["safe", "unsafe", "not tested"],
    # Stored so before 0.2.
    BeforeValidator(lambda verdict: "not tested" if verdict == "not judged" else verdict),
]


class ClassCheck(Result):
    """Whether a stratum's candidates as a whole resemble real records, in one respect."""

    name: CheckName
    # Share of the candidates; for collapse, of the covered real records.
    observed: float = Field(validation_alias=AliasChoices("observed", "found"))
    expected: float  # of unseen real records
    p_value: float | None  # over all tests; None if there is none
    passed: bool


class ClassFilter(Result):
    """What the filter did to one stratum's candidates."""

    name: str
    n_candidates: int
    n_passed: int
    n_kept: int  # after the utility filter, at most the plan's n_synthetic
    reasons: dict[str, int]  # reason -> dropped candidates
    metrics: dict[str, float]  # density, coverage, c2st_auc, …
    checks: tuple[ClassCheck, ...] = ()  # those with enough records
    verdict: ClassVerdict = "not tested"


class FilterResult(Result):
    """The candidates that pass, per stratum and reason; the rows are in ``kept`` and ``dropped``."""

    root: str
    path: str
    key: str
    purpose: str
    classes: tuple[ClassFilter, ...]
    kept: tuple[ShardInfo, ...]
    dropped: tuple[ShardInfo, ...]
    feature_space: str
    notes: tuple[str, ...] = ()
    metrics: dict[str, float] = Field(default_factory=dict)  # of all classes together
    # Constraints on every candidate, and the share of draws that met them, by stratum.
    rules: dict[str, Any] = Field(default_factory=dict)
    # With soft labels, by the rows' class: rows of the kept records, and their effective count.
    rows: dict[str, int] = Field(default_factory=dict)
    shares: dict[str, float] = Field(default_factory=dict)

    @property
    def kept_counts(self) -> dict[str, int]:
        """Kept rows per stratum: one per record without soft labels."""
        return self.rows or {c.name: c.n_kept for c in self.classes}


# --- uses of a model's latents ----------------------------------------------------------------


class LatentInfo(Result):
    """Result of one use of a model's latents: ``index.json``, the last object of its folder.

    Paths are relative to that folder, which may be moved.
    """

    use: LatentUse
    key: str
    digest: str  # sha256 over the shards' digests
    dataset: DatasetRef
    version: int | None = None  # of published records
    model: ModelRef
    label: str
    params: dict[str, Any]
    shards: tuple[ShardInfo, ...]
    pictures: tuple[str, ...] = ()  # paths of PNGs
    summary: dict[str, Any] = Field(validation_alias=AliasChoices("summary", "found"))
    notes: tuple[str, ...] = ()


class LatentRef(Result):
    """A reference to one use of a model's latents, for tasks."""

    use: LatentUse
    root: str  # URI that the folder lies under
    folder: str  # of index.json, relative to root
    key: str
    digest: str
    n_records: int
    summary: dict[str, Any] = Field(validation_alias=AliasChoices("summary", "found"))
    notes: tuple[str, ...] = ()
    block: str = ""  # name of the Prefect block that opens root, if needed


class LatentResult(Result):
    """Outcome of a run that uses a model's latents, as ``--json`` prints it."""

    uri: str  # of the folder with index.json and data/
    latents: LatentRef
    model: ModelRef
    seed: int
    seconds: float
    peak_rss_bytes: int
    notes: tuple[str, ...] = ()


class ReportRef(Result):
    """A finished report, staged; publishing copies its files to ``_reports/v…``."""

    root: str
    prefix: str  # folder of the files, relative to root
    files: tuple[str, ...]  # report.html, report.json, recipe.json, PNGs
    notes: tuple[str, ...] = ()  # also for the manifest and the card


def class_order(names: Collection[str]) -> list[str]:
    """Return the distinct names, by number if all are finite numbers, else by text.

    Examples
    --------
    >>> class_order(["10", "9", "1"]), class_order(["b", "10", "9"])
    (['1', '9', '10'], ['10', '9', 'b'])
    """
    distinct = sorted(set(names))
    try:
        numbers = [float(name) for name in distinct]
    except ValueError:
        return distinct
    if not all(map(math.isfinite, numbers)):
        return distinct
    return [name for _, name in sorted(zip(numbers, distinct, strict=True))]


INDEX = "index.json"
