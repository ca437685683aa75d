"""Results: frozen, small, and stored as JSON; only these travel between tasks.

A class is named by its label value as text, so the integer class 0 is ``"0"``. A stratum is a class, or a
class within one combination of the ``balance.by`` columns. Parameters are in :mod:`prefect_augment.params`.
"""

import json
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
    "ClassVerdict",
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
    "Look",
    "MeasureInfo",
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
SyntheticAnswer = Literal["proven", "preferred", "no gain shown", "harmful", "not tried"]
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
    compared: tuple[str, ...] = Field(
        validation_alias=AliasChoices("compared", "judged")
    )  # classes with records in all parts
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

    seconds: float
    output_bytes: int
    memory_bytes: int
    comparison_seconds: float = 0.0  # part of ``seconds`` for comparing the strategies, if known


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
    n_folds: int = 0  # of images: folds of the comparison, 1 for validation alone; 0 for tables
    n_settings: int = 8  # most settings tried of one strategy, see plan.search_space
    soft_labels: bool = False  # each synthetic record has a row per likely class, by weight

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


ClassVerdict = Annotated[
    Literal["safe", "unsafe", "not tested"],
    BeforeValidator(
        lambda verdict: "not tested" if verdict == "not judged" else verdict
    ),  # stored so before 0.2
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
    metrics: dict[str, float]  # of class_metrics: density, coverage, c2st_auc, …
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
    # Constraints on every candidate, and the share of draws that met them, by stratum.
    rules: dict[str, Any] = Field(default_factory=dict)
    # With soft labels, by the rows' class: rows of the kept records, and their effective count.
    rows: dict[str, int] = Field(default_factory=dict)
    shares: dict[str, float] = Field(default_factory=dict)

    @property
    def kept_counts(self) -> dict[str, int]:
        """Kept rows per stratum: one per record without soft labels."""
        return self.rows or {c.name: c.n_kept for c in self.classes}


# --- comparison -------------------------------------------------------------------------------


class Strategy(Result):
    """One way of treating the training part; all strategies train the estimators with equal steps.

    All but name and family are settings, searched on validation records for baselines and models alike.
    """

    name: str
    family: StrategyFamily
    amount: float = 1.0  # share of the way to the plan's target
    tune_threshold: bool = False
    classic_prob: float = 0.0  # above 0 records are augmented as they are drawn, none are written
    classic_strength: float = 1.0  # ranges of the policy times this
    per_real: float = 0.0  # most synthetic records per real one; 0: the plan's number
    synthetic_weight: float = 1.0  # of a synthetic record, a real one being 1
    real_only_finish: float = 1.0  # share of the steps, the first ones, with synthetic records

    @property
    def has_model(self) -> bool:
        """Whether the strategy trains on synthetic records."""
        return self.family in ("model", "mixture", "external")

    @property
    def setting(self) -> str:
        """The settings in words.

        Examples
        --------
        >>> Strategy(name="trees", family="model", amount=0.5, per_real=2.0).setting
        'amount 0.5, 2 per real'
        """
        words = []
        if self.family not in ("as_is", "threshold", "external"):
            words.append(f"amount {self.amount:g}")
        if self.per_real:
            words.append(f"{self.per_real:g} per real")
        if self.synthetic_weight != 1:
            words.append(f"synthetic counts {self.synthetic_weight:g}")
        if self.has_model and self.real_only_finish < 1:
            words.append(f"synthetic in the first {self.real_only_finish:.0%}")
        if self.classic_prob:
            words.append(f"p {self.classic_prob:g}")
            if self.classic_strength != 1:
                words.append(f"{self.classic_strength:g} times as strong")
        if self.tune_threshold:
            words.append("threshold tuned")
        return ", ".join(words) or "–"


class EstimatorScore(Result):
    """One estimator's scores over the compared classes; in [0, 1] but for ``metric`` and ``log_loss``."""

    balanced_accuracy: float
    macro_f1: float
    auprc: float  # macro-averaged over the classes other than the largest
    worst_recall: float
    worst_class: str
    brier: float
    recall: dict[str, float]
    # None where undefined, as of one class, and in earlier versions.
    metric: float | None = None  # the value of evaluation.metric
    roc_auc: float | None = None  # mean over the classes, each against the rest
    log_loss: float | None = None


class MeasureInfo(Result):
    """The measure that decides (``evaluation.metric``), in words."""

    title: str = "balanced accuracy"
    unit: Literal["points", "plain"] = "points"  # points: in [0, 1], shown times 100
    higher_is_better: bool = True

    @property
    def heading(self) -> str:
        """Title for a column, with the unit."""
        return f"{self.title[:1].upper()}{self.title[1:]}" + (", %" * (self.unit == "points"))

    def shown(self, score: float) -> float:
        """The value behind a score, of which higher is better."""
        return score if self.higher_is_better else -score


class StrategyScore(Result):
    """One strategy under one seed, on validation records only."""

    strategy: Strategy = Field(validation_alias=AliasChoices("strategy", "arm"))
    seed: int
    score: float  # by the measure, mean over the estimators; negative where lower is better
    measure: MeasureInfo = MeasureInfo()
    estimators: dict[str, EstimatorScore] = Field(
        validation_alias=AliasChoices("estimators", "learners")
    )
    # estimator -> class -> multiplier
    thresholds: dict[str, dict[str, float]] = Field(default_factory=dict)
    n_train: int
    n_validation: int = Field(validation_alias=AliasChoices("n_validation", "n_val"))
    seconds: float = 0.0
    path: str = ""  # the staged predictions behind the scores, relative to root
    folds: tuple[float, ...] = ()  # the score on each fold, if there are several


class Choice(Result):
    """The choice on validation records, fixed before the hold-out is read."""

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
    # With soft labels, effective count of a stratum's synthetic rows: each weighs class_weight times its share.
    shares: dict[str, float] = Field(default_factory=dict)
    classic: dict[str, int]
    copies: dict[str, int]
    thresholds: dict[str, dict[str, float]] = Field(default_factory=dict)
    estimators: dict[str, str] = Field(default_factory=dict)  # name -> digest, of the user's own
    loss: Literal["cross_entropy", "balanced_softmax"] = "cross_entropy"
    classic_policy: str = ""  # applied to records as they are drawn; empty for none
    # The policy's operations, its digest and the libraries' versions, also of written copies; empty for presets of
    # older versions.
    classic_config: dict[str, Any] = Field(default_factory=dict)
    classic_prob: float = 0.0  # share of the changed records
    real_only_finish: float = 1.0  # share of the steps, the first ones, with synthetic records
    synthetic_weight: float = 1.0  # of a synthetic record, a real one of its class being 1
    weights_from: int | None = (
        None  # version whose weights these are; None: computed for these records
    )
    # Class shares of the real training records, and in training by the recipe; empty if unknown. Probabilities times
    # prior_true / prior_train, normalised, are right for prior_true.
    prior_true: dict[str, float] = Field(default_factory=dict)
    prior_train: dict[str, float] = Field(default_factory=dict)
    sentence: str  # what was done and how to read it, for the log and the card

    def counted(self, name: str) -> float:
        """Effective count of a stratum's added records, before weighting."""
        synthetic = self.shares.get(name, self.synthetic.get(name, 0))
        return (
            self.synthetic_weight * synthetic + self.classic.get(name, 0) + self.copies.get(name, 0)
        )


class Difference(Result):
    """Balanced accuracy of one strategy minus another's on the hold-out."""

    strategy: str = Field(validation_alias=AliasChoices("strategy", "arm"))
    against: str
    interval: Interval


class Change(Result):
    """What a score is with the data as they are, and under the recipe that is published."""

    name: str  # "recall of cracked", "macro-F1"
    before: float
    after: float


class Look(Result):
    """One reading of the hold-out that can lead to a decision, among all of this dataset's."""

    number: int  # 1 for the first
    n_holdout: int  # records that it reads
    n_new: int  # records or groups that arrived since the look before; all of them at the first
    unit: Literal["record", "group"] = "record"
    level: float  # of the deciding interval, two-sided, in (0, 1)

    @property
    def alpha(self) -> float:
        """Chance of a false ``proven`` that the look may spend: one side of its interval."""
        return (1 - self.level) / 2

    @property
    def sentence(self) -> str:
        """Which look it was, what is new, and what it takes to be proven.

        Examples
        --------
        >>> Look(number=3, n_holdout=1400, n_new=212, level=0.989).sentence
        'Third look at this hold-out; 212 of 1,400 records are new since the last one; proven needs a 98.9 % interval.'
        """
        if self.number == 1:
            news = f"all {self.n_holdout:,} records are new"
        elif self.unit == "record":
            news = f"{self.n_new:,} of {self.n_holdout:,} records are new since the last one"
        else:
            news = f"{self.n_new:,} groups of its {self.n_holdout:,} records are new since the last one"
        return (
            f"{_ordinal(self.number)} look at this hold-out; {news}; "
            f"proven needs a {_level(self.level)} % interval."
        )


_ORDINALS = (
    "First", "Second", "Third", "Fourth", "Fifth", "Sixth", "Seventh", "Eighth", "Ninth", "Tenth",
)  # fmt: skip


def _ordinal(n: int) -> str:
    """The number as a word that starts a sentence, from 11 on with digits."""
    if n <= len(_ORDINALS):
        return _ORDINALS[n - 1]
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def _level(level: float) -> str:
    """A level in percent, with two significant digits of what is missing to 100 %."""
    digits = max(1, 1 - math.floor(math.log10(100 * (1 - level))))
    return f"{100 * level:.{digits}f}".rstrip("0").rstrip(".")


class EstimatorInfo(Result):
    """What a comparison trained, by its name in the results."""

    package: str  # scikit-learn, torch, or what the user's estimator comes from
    version: str = ""
    digest: str = (
        ""  # sha256 of class, parameters and versions of the user's own; empty for built-in ones
    )


class Verdict(Result):
    """The confirmation on hold-out records that nothing else has read."""

    decision: Decision  # of what is published, against the data as they are
    # Of the best strategy with synthetic records, against the best one without.
    synthetic: SyntheticAnswer = "not tried"
    answers: tuple[str, ...] = ()  # what to use and what it brings; whether synthetic records help
    reasons: tuple[str, ...]
    measure: MeasureInfo = MeasureInfo()  # of the answers
    gain: Difference | None = (
        None  # what is published less as is, by the measure; above 0 is better
    )
    by_estimator: dict[str, Interval] = Field(default_factory=dict)  # the same, on the hold-out
    price: tuple[Change, ...] = ()  # scores that the gain costs
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
    # Recall of the chosen strategy minus that of the one it is compared with; simultaneous over the classes.
    class_differences: dict[str, Interval] = Field(default_factory=dict)
    not_compared: dict[str, str] = Field(
        validation_alias=AliasChoices("not_compared", "not_judged")
    )  # class -> why
    n_holdout: int
    n_seeds: int
    estimators: dict[str, EstimatorInfo] = Field(default_factory=dict)  # by name
    without_twins: dict[str, float] = Field(default_factory=dict)  # strategy -> balanced accuracy
    n_without_twins: int = 0
    look: Look | None = None  # None without a comparison, and in versions before 0.2
    leaks: tuple[str, ...] = ()  # signs of training records in the hold-out
    diagnostics: str = Field(
        default="", validation_alias=AliasChoices("diagnostics", "further")
    )  # path of the HoldoutResult of the same reading, relative to the root

    @property
    def shown(self) -> str:
        """The strategy whose classes and groups are shown: what is published, or what was tried instead."""
        return self.published if self.gain else self.chosen

    @property
    def word(self) -> str:
        """The decision as people read it."""
        words = {"accept": "gain shown", "reject": "loss shown", "inconclusive": "no gain shown"}
        return words[self.decision]

    @property
    def headline(self) -> str:
        """The first answer; verdicts of 0.1 have their first reason instead."""
        return next(iter((*self.answers, *self.reasons)), self.decision)

    @property
    def details(self) -> tuple[str, ...]:
        """All other answers, then the reasons."""
        return tuple(s for s in (*self.answers, *self.reasons) if s != self.headline)

    def without_paths(self) -> "Verdict":
        """Return the verdict without a receipt's path, which depends on where records came from."""
        return self.model_copy(update={"diagnostics": ""})


# --- published --------------------------------------------------------------------------------


class ApprovalDecision(Result):
    """A person's final decision on a proposal."""

    decision: Literal["approve", "reject"]
    by: str = ""  # who, if known
    comment: str = ""
    amounts: dict[str, int] = Field(default_factory=dict)  # stratum -> records, where lowered
    decided_at: str  # UTC, ISO 8601
    run: str = ""  # the suspended flow run; empty if a command or another flow decided

    @property
    def sentence(self) -> str:
        """Who decided what and why, for the log, the card and the report."""
        who = f" by {self.by}" if self.by else ""
        word = "Approved" if self.decision == "approve" else "Rejected"
        text = f"{word}{who} on {self.decided_at[:10]}."
        if self.amounts:
            lowered = ", ".join(f"{name} to {n:,}" for name, n in sorted(self.amounts.items()))
            text += f" Lowered: {lowered}."
        # Quoted, because more sentences may follow.
        return f"{text} Comment: “{self.comment}”." if self.comment else text


class Commit(Result):
    """A published version."""

    root: str
    version: int
    manifest: str  # path relative to root
    content_digest: str
    created: bool  # False: the same inputs had been published before


class RunResult(Result):
    """Outcome of a run, as ``--json`` prints it."""

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
    # Of another tool's records: given, quarantined, filtered, and of those passed and kept.
    external: dict[str, int] = Field(default_factory=dict)
    privacy: str = ""  # result of the attack on the synthetic records: leak, gap, none shown …


class TrainResult(Result):
    """Outcome of a training run, as ``train --json`` prints it."""

    status: Literal["trained", "unchanged"]  # unchanged: the same model existed
    model: ModelRef
    plan: BalancePlan
    n_records: int  # of the source, hold-out included
    quarantined: int
    seconds: float
    peak_rss_bytes: int
    notes: tuple[str, ...] = ()


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
    numbers = [_number(name) for name in distinct]
    if any(number is None for number in numbers):
        return distinct
    return [name for _, name in sorted(zip(numbers, distinct, strict=True))]


def _number(name: str) -> float | None:
    """Return a name's finite number, or None."""
    try:
        value = float(name)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


INDEX = "index.json"
