"""Results of a comparison: strategies with their scores, the choice, the verdict, the recipe."""

import math
from html import escape
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field

from prefect_augment.params.encoder import Encoder
from prefect_augment.schema.base import Interval, Result

StrategyFamily = Annotated[
    Literal[
        "as_is", "threshold", "weights", "loss", "resampling", "classic", "probe", "bagging", "soft_labels",
        "clean", "ensemble", "model", "mixture", "external",
    ],
    # Stored so before 0.2.
    BeforeValidator(lambda family: "external" if family == "given" else family),
]  # fmt: skip
Mixing = Literal["", "mixup", "cutmix"]
Mirroring = Literal["", "horizontal", "both"]  # left with right; and top with bottom
Decision = Literal["accept", "reject", "inconclusive"]
SyntheticAnswer = Literal["proven", "preferred", "no gain shown", "harmful", "not tried"]


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
    mixing: Mixing = ""  # of images in pairs, a rare class's with any other
    mixing_prob: float = 0.0  # share of the mixed records
    smoothing: float = 0.0  # of the largest class's label, the share that goes to the other classes
    deferred: float = 0.0  # share of the steps, the first ones, without weights
    # Of a record whose label the audit doubts; below 1 there is an audit.
    doubted_weight: float = 1.0
    C: float = 0.0  # of a linear probe or of patch features: the inverse of the L2 penalty
    patches: int = 0  # filters of patch features, whose classifier takes the network's place
    mirroring: Mirroring = ""  # patch features are means over the mirrored copies

    @property
    def has_model(self) -> bool:
        """Whether the strategy trains on synthetic records."""
        return self.family in ("model", "mixture", "external")

    @property
    def is_image_strategy(self) -> bool:
        """Whether it is one of ``classic.image_strategies``."""
        return bool(self.mixing or self.smoothing or self.deferred or self.patches)

    @property
    def is_control(self) -> bool:
        """Whether it only shows where a gain comes from: the ensemble behind soft labels, in the estimators' place."""
        return self.family == "ensemble"

    @property
    def setting(self) -> str:
        """The settings in words.

        Examples
        --------
        >>> Strategy(name="trees", family="model", amount=0.5, per_real=2.0).setting
        'amount 0.5, 2 per real'
        """
        doubted = f"count {self.doubted_weight:g}" if self.doubted_weight else "left out"
        mirrored = {"": "", "horizontal": " mirrored", "both": " mirrored both ways"}
        without_amount = ("as_is", "threshold", "external", "ensemble", "clean")
        words = {
            f"amount {self.amount:g}": self.family not in without_amount,
            f"doubted labels {doubted}": self.family == "clean",
            f"{self.patches} patches{mirrored[self.mirroring]}": self.patches,
            f"C {self.C:g}": self.C,
            f"{self.per_real:g} per real": self.per_real,
            f"synthetic counts {self.synthetic_weight:g}": self.synthetic_weight != 1,
            f"synthetic in the first {self.real_only_finish:.0%}": (
                self.has_model and self.real_only_finish < 1
            ),
            f"p {self.classic_prob:g}": self.classic_prob,
            f"{self.classic_strength:g} times as strong": (
                self.classic_prob and self.classic_strength != 1
            ),
            f"{self.mixing} p {self.mixing_prob:g}": self.mixing,
            f"smoothing {self.smoothing:g}": self.smoothing,
            f"after {self.deferred:.0%} of the steps": self.deferred,
            "threshold tuned": self.tune_threshold,
        }
        return ", ".join(word for word, applies in words.items() if applies) or "–"


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
    # Stratum -> records that were compared, where those are a sample of all.
    sampled: dict[str, int] = Field(default_factory=dict)


class Choice(Result):
    """The choice on validation records, fixed before the hold-out is read."""

    chosen: Strategy  # the best strategy
    baseline: Strategy  # the best strategy without synthetic records
    as_is: Strategy
    model: Strategy | None  # the best strategy with synthetic records
    scores: dict[str, float]  # strategy -> mean score over seeds
    reason: str


class EncoderInfo(Result):
    """A user's pretrained encoder of images: which weights, under which licence, and how images reach it."""

    name: str  # of the file
    uri: str  # where it was
    sha256: str
    licence: str  # SPDX
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size: int = 0  # 0: as the file says
    factory: str = ""  # of the network that a safetensors file is for
    output: str = ""

    @classmethod
    def of(cls, params: Encoder) -> "EncoderInfo":
        """Return the encoder that parameters name."""
        fields = params.model_dump(exclude={"storage_block", "mean", "std"})
        return cls(name=params.name, mean=tuple(params.mean), std=tuple(params.std), **fields)


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
    mixing: Mixing = ""  # of the records of a batch in pairs
    mixing_prob: float = 0.0  # share of the mixed records
    # Share of a class's label that goes to the other classes; empty for hard labels.
    smoothing: dict[str, float] = Field(default_factory=dict)
    deferred: float = 0.0  # share of the steps, the first ones, without class_weight
    # Version whose weights these are; None: computed for these records.
    weights_from: int | None = None
    # Class shares of the real training records, and in training by the recipe; empty if unknown. Probabilities times
    # prior_true / prior_train, normalised, are right for prior_true.
    prior_true: dict[str, float] = Field(default_factory=dict)
    prior_train: dict[str, float] = Field(default_factory=dict)
    # By aug_id, what a real record whose label the audit doubts counts, others counting 1; aug_weight has it.
    doubted: dict[str, float] = Field(default_factory=dict)
    encoder: EncoderInfo | None = None  # whose features a linear probe is trained on
    squares: tuple[int, int] = (0, 0)  # side and channels of the images that patches are cut from
    sentence: str  # what was done and how to read it, for the log and the card

    def _repr_html_(self) -> str:
        return f"<p><b>{escape(self.strategy.name)}</b>: {escape(self.sentence)}</p>"

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
    # sha256 of class, parameters and versions of the user's own; empty for built-in ones.
    digest: str = ""


class Verdict(Result):
    """The confirmation on hold-out records that nothing else has read."""

    decision: Decision  # of what is published, against the data as they are
    # Of the best strategy with synthetic records, against the best one without.
    synthetic: SyntheticAnswer = "not tried"
    answers: tuple[str, ...] = ()  # what to use and what it brings; whether synthetic records help
    reasons: tuple[str, ...]
    measure: MeasureInfo = MeasureInfo()  # of the answers
    gain: Difference | None = None  # published less as is, by the measure; above 0 is better
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
