"""Content of a report: the proposed or published version, and measurements besides its verdict.

Each field of :class:`Findings` is a key of ``report.json`` and a section of the page.
"""

from typing import Any

from pydantic import ConfigDict, Field, model_validator

from prefect_augment.params.keys import step_key
from prefect_augment.schema.base import DatasetRef, ModelRef, Result
from prefect_augment.schema.comparison import Recipe, StrategyScore, Verdict
from prefect_augment.schema.experiment import (
    CalibrationResult,
    Experiment,
    SearchResult,
    SliceResult,
    without_removed,
)
from prefect_augment.schema.privacy import Privacy


class ClassDrift(Result):
    """A class's real training records before and now; 0 where it is new or gone."""

    model_config = ConfigDict(extra="ignore")  # noise and changed, up to 0.2

    name: str
    before: int
    now: int


class Drift(Result):
    """Records per class since the version before."""

    model_config = ConfigDict(extra="ignore")  # recipe, verdict and strategies, up to 0.2

    version: int  # the one before
    n_before: int
    n_now: int
    classes: tuple[ClassDrift, ...]
    sentence: str = ""  # a summary, for the artifact and the card


class OperationCheck(Result):
    """Validation images under one operation, always applied, as a classifier sees them."""

    name: str
    rate: float  # of images that the classifier puts into another class
    low: float  # lower end of its 95 % interval
    worst_class: str  # by the lower end of its own interval
    worst_rate: float
    becomes: str  # the class that worst_class is mostly taken for
    damages: bool


class PolicyCheck(Result):
    """Check of an image policy by a classifier."""

    policy: str
    digest: str
    accuracy: float  # of the classifier, on unchanged validation images
    n_images: int
    operations: tuple[OperationCheck, ...]
    picture: str  # path of an image sheet, relative to the dataset
    note: str = ""  # why the check says nothing

    @property
    def damaging(self) -> tuple[OperationCheck, ...]:
        """Operations that change the class of too many images."""
        return tuple(op for op in self.operations if op.damages)


class TrainingCurve(Result):
    """One loss over training: means over windows of equal steps."""

    loss: str
    points: tuple[tuple[int, float], ...]  # last step of the window, mean loss


class Training(Result):
    """The losses of the generative model."""

    curves: tuple[TrainingCurve, ...]


class Findings(Result):
    """Measurements of a report; None if not made."""

    drift: Drift | None = None
    search: SearchResult | None = None
    training: Training | None = None
    policy: PolicyCheck | None = None
    privacy: Privacy | None = None
    slices: SliceResult | None = None
    calibration: CalibrationResult | None = None

    _ignore_removed = model_validator(mode="before")(without_removed)


class Release(Result):
    """A version before it is written: its content, and the evidence for it."""

    experiment: Experiment  # with the kept synthetic records
    recipe: Recipe | None = None  # records of each origin and weights; None: nothing is published
    verdict: Verdict | None = None  # None if nothing was compared
    scores: tuple[StrategyScore, ...] = ()  # on validation records
    models: tuple[ModelRef, ...] = ()  # of the synthetic records
    classic: DatasetRef | None = None  # classic records, if the recipe has some
    findings: Findings = Findings()
    requested: dict[str, Any] = Field(default_factory=dict)  # parameters as JSON, without secrets

    @property
    def dataset(self) -> DatasetRef:
        """The real records; their root is the destination."""
        return self.experiment.dataset

    @property
    def lets_synthetic_out(self) -> bool:
        """Whether synthetic records are published, or are themselves what is evaluated.

        Where they are not, nothing is said of what they give away: nobody gets them.
        """
        if self.recipe is None:
            return True
        origins = self.experiment.params.publish.origins
        return "synthetic" in origins and any(self.recipe.synthetic.values())

    @property
    def key(self) -> str:
        """Name of the version's inputs: equal inputs are published once.

        The report is left out, as are the paths of copies: they change no record.
        """
        dataset, candidates = self.dataset, self.experiment.candidates
        read = [dataset.key, dataset.digest, *sorted(m.digest for m in self.models)]
        read += [candidates.key] if candidates else []
        read += [self.classic.key, self.classic.digest] if self.classic else []
        results = [self.recipe, self.verdict and self.verdict.without_paths()]
        return step_key("publish", self.experiment.params, inputs=[read, results])
