"""What a report is made of: the version that is proposed or published, and what was measured beside its verdict.

Each field of :class:`Findings` is a key of ``report.json`` and a section of the page.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from prefect_augment.params.keys import step_key
from prefect_augment.schema.base import (
    DatasetRef,
    Interval,
    ModelRef,
    Recipe,
    Result,
    StrategyScore,
    Verdict,
)
from prefect_augment.schema.experiment import (
    CalibrationResult,
    Experiment,
    RobustnessResult,
    SearchResult,
    SliceResult,
)
from prefect_augment.schema.privacy import Privacy

__all__ = [
    "ClassDrift",
    "Drift",
    "Findings",
    "OperationCheck",
    "PolicyCheck",
    "Release",
    "StrategyDrift",
    "Training",
    "TrainingCurve",
]


class ClassDrift(Result):
    """A class's real training records before and now."""

    name: str
    before: int  # 0: the class is new
    now: int  # 0: the class is gone
    noise: float  # how far its share moves by chance, between two samples
    changed: bool


class StrategyDrift(Result):
    """A strategy's balanced accuracy on the hold-out before and now."""

    name: str
    before: Interval | None = None
    now: Interval | None = None
    changed: bool = False  # by more than the two intervals allow


class Drift(Result):
    """What changed since the version before."""

    version: int  # the one before
    n_before: int
    n_now: int
    classes: tuple[ClassDrift, ...]
    strategies: tuple[StrategyDrift, ...] = ()
    recipe_before: str = ""
    recipe_now: str = ""
    verdict_before: str = ""
    verdict_now: str = ""
    sentence: str = ""  # the whole of it, for the artifact and the card


class OperationCheck(Result):
    """What became of validation records images under one operation, always applied."""

    name: str
    rate: float  # of images whose class the probe no longer sees
    low: float  # lower end of its 95 % interval
    worst_class: str  # the class that suffers most, by the lower end of its own interval
    worst_rate: float
    becomes: str  # what the probe takes that class for
    damages: bool


class PolicyCheck(Result):
    """What a probe says of a policy."""

    policy: str
    digest: str
    accuracy: float  # of the probe, on unchanged validation images
    n_images: int
    operations: tuple[OperationCheck, ...]
    picture: str  # path of a sheet, relative to the dataset
    note: str = ""  # why nothing can be said

    @property
    def damaging(self) -> tuple[OperationCheck, ...]:
        """Operations after which too many images are another class's."""
        return tuple(op for op in self.operations if op.damages)


class TrainingCurve(Result):
    """One loss over training: means over windows of equal steps."""

    loss: str
    points: tuple[tuple[int, float], ...]  # last step of the window, mean loss


class Training(Result):
    """The losses of the generative model, as they went down, or did not."""

    curves: tuple[TrainingCurve, ...]


class Findings(Result):
    """Measurements that a report shows where they were made; None where they were not."""

    drift: Drift | None = None
    search: SearchResult | None = None
    training: Training | None = None
    policy: PolicyCheck | None = None
    privacy: Privacy | None = None
    robustness: RobustnessResult | None = None
    slices: SliceResult | None = None
    calibration: CalibrationResult | None = None


class Release(Result):
    """A version before it is written: what it is made of, and the evidence for it.

    Parameters
    ----------
    experiment : Experiment
        Records, plan, parameters, and the synthetic records that were kept.
    recipe : Recipe, optional
        How many records of each kind, and their weights; None where nothing is to be published.
    verdict : Verdict, optional
        What the hold-out says; None where nothing was compared.
    scores : tuple of StrategyScore
        What the comparison before it says.
    models : tuple of ModelRef
        Whose records are among the synthetic ones.
    classic : DatasetRef, optional
        Classic records, where the recipe has some.
    findings : Findings
        What else was measured.
    requested : dict
        The run's parameters as JSON, for the manifest; without secrets.
    """

    experiment: Experiment
    recipe: Recipe | None = None
    verdict: Verdict | None = None
    scores: tuple[StrategyScore, ...] = ()
    models: tuple[ModelRef, ...] = ()
    classic: DatasetRef | None = None
    findings: Findings = Findings()
    requested: dict[str, Any] = Field(default_factory=dict)

    @property
    def dataset(self) -> DatasetRef:
        """The real records; their root is the destination."""
        return self.experiment.dataset

    @property
    def key(self) -> str:
        """Name of the version's inputs: equal inputs are published once.

        The report is left out: other pictures are no other dataset. So is where a copy goes.
        """
        dataset, candidates = self.dataset, self.experiment.candidates
        read = [dataset.key, dataset.digest, *sorted(m.digest for m in self.models)]
        read += [candidates.key] if candidates else []
        read += [self.classic.key, self.classic.digest] if self.classic else []
        found = [self.recipe, self.verdict and self.verdict.without_paths()]
        return step_key("publish", self.experiment.params, inputs=[read, found])
