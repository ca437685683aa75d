"""Facts: what happened. Frozen, small, written to storage as JSON; the only things that travel.

Params live in :mod:`prefect_augment.params`. A class is named by its label value cast to text, so
the integer class 0 is ``"0"``; a stratum is a class, or a class within one combination of the
``balance.by`` columns.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

__all__ = [
    "INDEX",
    "ApprovalDecision",
    "BalancePlan",
    "BatchInfo",
    "Choice",
    "ClassCheck",
    "ClassFilter",
    "ClassPlan",
    "ColumnInfo",
    "Commit",
    "DatasetInfo",
    "DatasetRef",
    "Difference",
    "Estimate",
    "EstimatorScore",
    "FilterResult",
    "ImageInfo",
    "Interval",
    "LatentInfo",
    "LatentRef",
    "LatentResult",
    "LatentUse",
    "Modality",
    "ModelRef",
    "Origin",
    "Part",
    "Profile",
    "Recipe",
    "ReportRef",
    "RunResult",
    "ShardInfo",
    "SourceFile",
    "Strategy",
    "StrategyScore",
    "TrainResult",
    "Verdict",
    "class_order",
]

Part = Literal["training", "validation", "holdout"]
Split = Literal["train", "holdout"]
Origin = Literal["real", "copy", "classic", "synthetic"]
Modality = Literal["table", "image"]
ColumnKind = Literal["numeric", "category", "identifier", "constant", "empty", "opaque", "image"]
StrategyFamily = Annotated[
    Literal[
        "as_is",
        "threshold",
        "weights",
        "loss",
        "resampling",
        "classic",
        "model",
        "mixture",
        "external",
    ],
    BeforeValidator(
        lambda family: "external" if family == "given" else family
    ),  # stored so before 0.2
]
Decision = Literal["accept", "reject", "inconclusive"]
CheckName = Literal["domain", "copies", "noise", "labels", "collapse"]
LatentUse = Literal[
    "embeddings", "anomalies", "reconstructions", "denoised", "interpolations", "shifts", "classes"
]


class Result(BaseModel):
    """Base of all facts."""

    # A field with a second alias was stored under that one by versions before 0.2.
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True
    )

    def to_json(self) -> bytes:
        """JSON with sorted keys, for storage and digests: equal facts give equal bytes."""
        import json

        return (
            json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1, ensure_ascii=False)
            + "\n"
        ).encode()


class Interval(Result):
    """An estimate with its 95 % interval."""

    estimate: float
    low: float
    high: float


# --- datasets ---------------------------------------------------------------------------------


class ColumnInfo(Result):
    """What was found about one column of the source."""

    name: str
    arrow_type: str
    kind: ColumnKind
    n_null: int
    n_unique: int
    note: str = ""  # why it is an identifier, what happens to it in synthetic records …


class ImageInfo(Result):
    """What was found about the images of a source, hold-out left out where it has a URI of its own.

    Sizes are those of the upright image (EXIF orientation applied), as ``widthxheight``.
    """

    column: str
    modes: dict[str, int]  # Pillow's mode -> images: L, RGB, RGBA, P, CMYK, I;16 …
    formats: dict[str, int]  # JPEG, PNG … -> images
    sizes: dict[str, int]  # the most common ones, "28x28" -> images
    n_sizes: int  # how many different ones there are
    most_common_size: tuple[int, int]  # width, height; ties go to the larger area
    smallest_side: int
    largest_side: int
    n_channels: int  # 1 where every image is gray, else 3
    n_animated: int = 0
    n_rotated: int = 0  # with an EXIF orientation other than upright
    n_clusters: int = 0  # near-duplicate clusters of two images or more
    n_clustered: int = 0  # images in them
    largest_cluster: int = 0
    n_near_holdout: int = 0  # images with a near-duplicate in a hold-out of its own


class SourceFile(Result):
    """One object of the source, as it was listed; for loose image files, the files of one folder."""

    path: str
    n_bytes: int
    etag: str  # the store's etag, or size and modification time where there is none
    n_records: int
    n_quarantined: int
    batch: int = 1  # the version whose ingest first saw it; of a folder's files the newest


class BatchInfo(Result):
    """The records of the source files that one version saw first, staged apart from others."""

    batch: int
    index: str  # path of what the split needs of each record, relative to root
    n_records: int  # that can be used; those left out by the split too
    columns: dict[str, tuple[int | None, ...]]  # column -> counts that can be added up
    notes: tuple[
        tuple[str, str, int], ...
    ] = ()  # what was said of files: note, first file, how many


class ShardInfo(Result):
    """One immutable object of records."""

    path: str  # relative to the root it lies under
    split: str  # train | holdout in a published dataset; fit | validation | holdout | candidates in staging
    origin: Origin
    n_records: int
    n_bytes: int
    sha256: str
    class_counts: dict[str, int]


class DatasetRef(Result):
    """A reference to staged records: what travels between tasks.

    The details (columns, shards, split, quarantine) are in the :class:`DatasetInfo` at ``path``.
    """

    root: str  # URI of the destination under whose _staging the records lie
    path: str  # of the stage's outcome, relative to root
    key: str  # stage key
    digest: str  # sha256 over the shards' digests
    label: str
    n_records: int
    n_quarantined: int = 0
    class_counts: dict[str, int]
    block: str = ""  # name of the Prefect block that opens root, where one is needed
    modality: Modality = "table"


class DatasetInfo(Result):
    """Everything known about staged records; the outcome of an ingest or sampling stage."""

    stage: str
    key: str
    digest: str
    label: str
    label_type: str
    schema_digest: str  # of the source's columns, in order, with their types
    columns: tuple[ColumnInfo, ...]  # without the label
    shards: tuple[ShardInfo, ...]
    part_counts: dict[str, dict[str, int]]  # part -> class -> records
    compared: tuple[str, ...] = Field(
        validation_alias=AliasChoices("compared", "judged")
    )  # classes that stand in all parts
    n_quarantined: int = 0
    quarantine: tuple[ShardInfo, ...] = ()
    sources: tuple[SourceFile, ...] = ()
    holdout_uri: str = ""  # where the hold-out was given and not copied
    holdout_digest: str = ""
    ledger: str = ""  # path of the staged split ledger, relative to root
    group_column: str = ""
    n_twins: int = 0  # records whose feature values occur more than once
    modality: Modality = "table"
    image: ImageInfo | None = None  # where the modality is image
    notes: tuple[str, ...] = ()
    extra: dict[str, Any] = Field(default_factory=dict)
    batches: tuple[BatchInfo, ...] = ()
    files: str = ""  # path of the list of all source files with their batches, relative to root


class Profile(Result):
    """What was found in a source without writing anything."""

    source: str
    format: str
    label: str  # empty where no column could be found or used as the label
    usable: bool  # whether ingest would take it
    n_files: int
    n_bytes: int
    n_records: int
    columns: tuple[ColumnInfo, ...]
    class_counts: dict[str, int]
    imbalance_ratio: float  # 0 where there are no classes
    n_quarantined: int
    quarantine: dict[str, int]  # reason -> records
    modality: Modality = "table"
    image: ImageInfo | None = None
    notes: tuple[str, ...] = ()  # troubles first


# --- plan -------------------------------------------------------------------------------------


class ClassPlan(Result):
    """What one stratum has and should have, in training records (fit + validation)."""

    name: str  # the stratum: the class, or "class | column=value" with balance.by
    label: str  # the class
    by: dict[str, str] = Field(default_factory=dict)
    n_real: int
    target: int
    n_synthetic: int  # at most; what the gate drops is not replaced beyond the candidates drawn
    n_classic: (
        int  # target - n_real - n_synthetic: copies, SMOTE records or weight, as the recipe has it
    )
    compared: bool = Field(validation_alias=AliasChoices("compared", "judged"))
    note: str = ""


class Estimate(Result):
    """What a run will take, roughly, before it starts."""

    seconds: float
    output_bytes: int
    memory_bytes: int
    comparison_seconds: float = (
        0.0  # of ``seconds``, what comparing the strategies takes, where known apart
    )


class BalancePlan(Result):
    """Per stratum: real, target, classic, synthetic."""

    rule: str
    classes: tuple[ClassPlan, ...]
    estimate: Estimate
    warnings: tuple[str, ...] = ()
    # Steps of the classifier that compares strategies of images; 0 for tables.
    classifier_steps: int = Field(
        default=0, validation_alias=AliasChoices("classifier_steps", "learner_steps")
    )
    classifier_width: float = Field(
        default=1.0, validation_alias=AliasChoices("classifier_width", "learner_width")
    )  # times its channels
    n_folds: int = 0  # of images: parts that strategies are compared on in turn, 1 for validation alone; 0 for tables
    n_settings: int = 8  # settings of one strategy that are tried at most, see plan.search_space
    # Synthetic records are of every class and stand for each that they may be of, by weight.
    soft_labels: bool = False

    @classmethod
    def without_amounts(cls) -> BalancePlan:
        """Return the plan of a run that adds no record."""
        return cls(
            rule="", classes=(), estimate=Estimate(seconds=0.0, output_bytes=0, memory_bytes=0)
        )

    @property
    def identity(self) -> list[Any]:
        """What of the plan changes bytes of the steps after it."""
        amounts = [c.model_dump(mode="json") for c in self.classes]
        classifier = [self.classifier_steps, self.classifier_width, self.n_folds]
        return [amounts, *classifier, self.n_settings, self.soft_labels]

    @property
    def n_synthetic(self) -> int:
        """Synthetic records wanted over all strata."""
        return sum(c.n_synthetic for c in self.classes)


# --- models and candidates --------------------------------------------------------------------


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
    block: str = ""


class ClassCheck(Result):
    """Whether all candidates of a stratum together are as real records would be, in one respect."""

    name: CheckName
    found: float  # a share: of the candidates; for collapse, of the real records that are covered
    expected: float  # what unseen real records give
    p_value: (
        float | None
    )  # of so much by chance, over all ways of looking; None where none is taken
    passed: bool


class ClassFilter(Result):
    """What the gate did to one stratum's candidates."""

    name: str
    n_candidates: int
    n_passed: int
    n_kept: int  # after the utility filter, at most the plan's n_synthetic
    reasons: dict[str, int]  # reason -> candidates dropped for it
    metrics: dict[str, float]  # of evaluation.class_metrics: density, coverage, c2st_auc, …
    checks: tuple[ClassCheck, ...] = ()  # those that could be made
    verdict: Literal["safe", "unsafe", "not judged"] = "not judged"


class FilterResult(Result):
    """Which candidates pass, per stratum and reason. The rows themselves are in ``kept`` and ``dropped``."""

    root: str
    path: str
    key: str
    purpose: str
    classes: tuple[ClassFilter, ...]
    kept: tuple[ShardInfo, ...]
    dropped: tuple[ShardInfo, ...]
    feature_space: str
    notes: tuple[str, ...] = ()
    # What was asked of every candidate, and which share of the draws kept to it, by stratum.
    rules: dict[str, Any] = Field(default_factory=dict)
    # With soft labels: the rows that the kept records became, and what they count, by what they stand for.
    rows: dict[str, int] = Field(default_factory=dict)
    shares: dict[str, float] = Field(default_factory=dict)

    @property
    def kept_counts(self) -> dict[str, int]:
        """Rows kept per stratum: one a record, but with soft labels."""
        return self.rows or {c.name: c.n_kept for c in self.classes}


# --- judging ----------------------------------------------------------------------------------


class Strategy(Result):
    """One way of treating the training part; all strategies train the estimators with equal steps.

    ``amount`` scales the way to the plan's target: 0.5 goes half of it, 1 all of it. With
    ``classic_prob`` above 0, classic augmentation changes records as they are drawn, ``classic_strength``
    times as far as its policy says, and none are written. Of a model, at most ``per_real`` synthetic
    records go with a real one (0: as many as the plan has), each counts ``synthetic_weight`` of a real
    one, and they are drawn in the first ``real_only_finish`` of the steps only. All of these are settings
    that are searched on validation records, for baselines and models alike.
    """

    name: str
    family: StrategyFamily
    amount: float = 1.0
    tune_threshold: bool = False
    classic_prob: float = 0.0
    classic_strength: float = 1.0
    per_real: float = 0.0
    synthetic_weight: float = 1.0
    real_only_finish: float = 1.0

    @property
    def has_model(self) -> bool:
        """Whether the strategy trains on synthetic records."""
        return self.family in ("model", "mixture", "external")

    @property
    def setting(self) -> str:
        """What is set about the strategy, for people.

        Examples
        --------
        >>> Strategy(name="trees", family="model", amount=0.5, per_real=2.0).setting
        'amount 0.5, 2 per real'
        """
        found = []
        if self.family not in ("as_is", "threshold", "external"):
            found.append(f"amount {self.amount:g}")
        if self.per_real:
            found.append(f"{self.per_real:g} per real")
        if self.synthetic_weight != 1:
            found.append(f"synthetic counts {self.synthetic_weight:g}")
        if self.has_model and self.real_only_finish < 1:
            found.append(f"synthetic in the first {self.real_only_finish:.0%}")
        if self.classic_prob:
            found.append(f"p {self.classic_prob:g}")
            if self.classic_strength != 1:
                found.append(f"{self.classic_strength:g} times as strong")
        if self.tune_threshold:
            found.append("threshold tuned")
        return ", ".join(found) or "–"


class EstimatorScore(Result):
    """One estimator's scores over the judged classes; all in [0, 1]."""

    balanced_accuracy: float
    macro_f1: float
    auprc: float  # macro-averaged over the classes other than the largest
    worst_recall: float
    worst_class: str
    brier: float
    recall: dict[str, float]


class StrategyScore(Result):
    """One strategy under one seed, on validation records only."""

    strategy: Strategy = Field(validation_alias=AliasChoices("strategy", "arm"))
    seed: int
    score: float  # balanced accuracy, mean over the estimators
    estimators: dict[str, EstimatorScore] = Field(
        validation_alias=AliasChoices("estimators", "learners")
    )
    thresholds: dict[str, dict[str, float]] = Field(
        default_factory=dict
    )  # estimator -> class -> multiplier
    n_train: int
    n_validation: int = Field(validation_alias=AliasChoices("n_validation", "n_val"))
    seconds: float = 0.0
    path: str = ""  # the staged predictions behind the scores, relative to root
    folds: tuple[float, ...] = ()  # the score on each fold by itself, where there are several


class Choice(Result):
    """What validation says: fixed before the hold-out is read."""

    chosen: Strategy  # the best strategy
    baseline: Strategy  # the best strategy without synthetic records
    as_is: Strategy
    model: Strategy | None  # the best strategy with synthetic records
    scores: dict[str, float]  # strategy -> mean score over seeds
    reason: str


class Recipe(Result):
    """How to train on the published data: the winner of the comparison."""

    strategy: Strategy = Field(validation_alias=AliasChoices("strategy", "arm"))
    class_weight: dict[str, float]  # weight of a real record of the stratum; mean 1 over train
    synthetic: dict[str, int]  # records written per stratum
    # With soft labels, what the synthetic ones of a stratum count together: each weighs class_weight times its share.
    shares: dict[str, float] = Field(default_factory=dict)
    classic: dict[str, int]
    copies: dict[str, int]
    thresholds: dict[str, dict[str, float]] = Field(default_factory=dict)
    loss: Literal["cross_entropy", "balanced_softmax"] = "cross_entropy"
    classic_policy: str = ""  # applied on the fly to records as they are drawn; empty for none
    # What the policy does, its digest and the versions of the libraries that did it, of copies that are written too;
    # empty where the name is a preset of old.
    classic_config: dict[str, Any] = Field(default_factory=dict)
    classic_prob: float = 0.0  # to what share of them
    real_only_finish: float = 1.0  # synthetic records are drawn in this share of the steps only
    synthetic_weight: float = 1.0  # what a synthetic record counts, a real one of its class being 1
    weights_from: int | None = None  # version whose weights these are; None: made for these records
    # Class shares of the real training records, and those that training by the recipe has; empty where not known.
    # A probability times the first over the second, scaled to sum to 1, is right where the first hold.
    prior_true: dict[str, float] = Field(default_factory=dict)
    prior_train: dict[str, float] = Field(default_factory=dict)
    sentence: str  # what was done and how to read it, for the log and the card

    def counted(self, name: str) -> float:
        """What the records that are added to a stratum count, before they are weighted."""
        synthetic = self.shares.get(name, self.synthetic.get(name, 0))
        return (
            self.synthetic_weight * synthetic + self.classic.get(name, 0) + self.copies.get(name, 0)
        )


class Difference(Result):
    """Balanced accuracy of one strategy less another's on the hold-out."""

    strategy: str = Field(validation_alias=AliasChoices("strategy", "arm"))
    against: str
    interval: Interval


class Verdict(Result):
    """The last comparison, on hold-out records that nothing else has read."""

    decision: Decision
    reasons: tuple[str, ...]
    chosen: str
    baseline: str
    published: str
    strategies: dict[str, dict[str, EstimatorScore]] = Field(
        validation_alias=AliasChoices("strategies", "arms")
    )  # strategy -> estimator -> scores
    balanced_accuracy: dict[str, Interval]  # strategy -> mean over estimators and seeds
    differences: tuple[Difference, ...]
    minimum_detectable_effect: float
    class_recall: dict[str, dict[str, Interval]]  # strategy -> class
    class_decisions: dict[str, str]
    # Recall of the chosen strategy less that of the strategy it is compared with; hold together over the classes.
    class_differences: dict[str, Interval] = Field(default_factory=dict)
    not_compared: dict[str, str] = Field(
        validation_alias=AliasChoices("not_compared", "not_judged")
    )  # class -> why
    n_holdout: int
    n_seeds: int
    without_twins: dict[str, float] = Field(default_factory=dict)  # strategy -> balanced accuracy
    n_without_twins: int = 0
    leaks: tuple[str, ...] = ()  # what points to training records in the hold-out
    # Path of what the same reading says of robustness, groups and calibration, relative to the root.
    diagnostics: str = Field(default="", validation_alias=AliasChoices("diagnostics", "further"))

    def without_paths(self) -> Verdict:
        """Return the verdict as reports and manifests hold it: a receipt's path depends on where records came from."""
        return self.model_copy(update={"diagnostics": ""})


# --- published --------------------------------------------------------------------------------


class ApprovalDecision(Result):
    """What a person said to a proposal, once and for good."""

    decision: Literal["approve", "reject"]
    by: str = ""  # who, where known
    comment: str = ""
    amounts: dict[str, int] = Field(default_factory=dict)  # stratum -> records, where lowered
    decided_at: str  # UTC, ISO 8601
    run: str = ""  # the flow run that asked; empty where a command or another flow answered

    @property
    def sentence(self) -> str:
        """Who decided what and why, for the log, the card and the report."""
        who = f" by {self.by}" if self.by else ""
        word = "Approved" if self.decision == "approve" else "Rejected"
        text = f"{word}{who} on {self.decided_at[:10]}."
        if self.amounts:
            lowered = ", ".join(f"{name} to {n:,}" for name, n in sorted(self.amounts.items()))
            text += f" Lowered: {lowered}."
        # Quoted: more sentences may follow, and it may end in anything.
        return f"{text} Comment: “{self.comment}”." if self.comment else text


class Commit(Result):
    """A published version."""

    root: str
    version: int
    manifest: str  # path relative to root
    content_digest: str
    created: bool  # False: the same inputs had been published before


class RunResult(Result):
    """What a run says of itself: the object that ``--json`` prints."""

    status: Literal[
        "published", "unchanged", "evaluated", "planned", "awaiting_approval", "rejected"
    ]
    version: int | None
    manifest: str
    counts: dict[str, dict[str, dict[str, int]]]  # split -> class -> origin -> records
    quarantined: int
    plan: BalancePlan
    strategies: tuple[StrategyScore, ...]
    recipe: Recipe | None
    verdict: Verdict | None
    report: str
    seconds: float
    peak_rss_bytes: int
    notes: tuple[str, ...] = ()
    proposal: str = ""  # id, where one was made
    approval: ApprovalDecision | None = None
    # Of records that another tool made: given, quarantined, filtered, and of those passed and kept.
    external: dict[str, int] = Field(default_factory=dict)
    privacy: str = ""  # what the attack on the synthetic records found: leak, gap, none shown …


class TrainResult(Result):
    """What a training run says of itself: the object that ``train --json`` prints."""

    status: Literal["trained", "unchanged"]  # unchanged: the same model was there already
    model: ModelRef  # checkpoint and encoder by digest, and the classes that it can sample
    plan: BalancePlan
    n_records: int  # of the source, hold-out included
    quarantined: int
    seconds: float
    peak_rss_bytes: int
    notes: tuple[str, ...] = ()


# --- uses of a model's latents ----------------------------------------------------------------


class LatentInfo(Result):
    """What a model said of records, or made of them: ``index.json``, the last object of its folder.

    Paths are relative to that folder, which may be moved.
    """

    use: LatentUse
    key: str
    digest: str  # sha256 over the shards' digests
    dataset: DatasetRef
    version: int | None = None  # where the records are those of a published version
    model: ModelRef
    label: str
    params: dict[str, Any]
    shards: tuple[ShardInfo, ...]
    pictures: tuple[str, ...] = ()  # paths of PNGs
    found: dict[str, Any]  # numbers and names that sum it up
    notes: tuple[str, ...] = ()


class LatentRef(Result):
    """A reference to one use of a model's latents: what travels between tasks."""

    use: LatentUse
    root: str  # URI that the folder lies under
    folder: str  # of index.json, relative to root
    key: str
    digest: str
    n_records: int
    found: dict[str, Any]
    notes: tuple[str, ...] = ()
    block: str = ""  # name of the Prefect block that opens root, where one is needed


class LatentResult(Result):
    """What a run that uses a model's latents says of itself: the object that ``--json`` prints."""

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
    notes: tuple[str, ...] = ()  # what the manifest and the card say too


def class_order(names: Collection[str]) -> list[str]:
    """Return the distinct names in their natural order.

    Parameters
    ----------
    names : collection of str
        Class names; repeats are dropped.

    Returns
    -------
    list of str
        By number where every name is a finite number, else by text; the order given never matters.

    Examples
    --------
    >>> class_order(["10", "9", "1"]), class_order(["b", "10", "9"])
    (['1', '9', '10'], ['10', '9', 'b'])
    """
    distinct = sorted(set(names))
    numbers = [_number(name) for name in distinct]
    if any(number is None for number in numbers):
        return distinct
    return [name for _, name in sorted(zip(numbers, distinct, strict=True))]


def _number(name: str) -> float | None:
    """Return the finite number a name spells, or None."""
    try:
        value = float(name)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


INDEX = "index.json"
