"""What a run found beside its verdict: each field is a key of ``report.json`` and a section of the page.

A further measurement is a frozen fact in ``facts_<name>.py``, a field here, a function
``evaluation/section_<name>.py`` that writes its part of the page, and its line in
:data:`.report_sections.SECTIONS`.

What a probe says of a policy of classic augmentation: whether a changed image keeps its class.

How the training of a network went.
"""

from __future__ import annotations

from prefect_augment.schema.base import Result
from prefect_augment.schema.drift import Contents, Drift
from prefect_augment.schema.experiment import (
    CalibrationResult,
    RobustnessResult,
    SearchResult,
    SliceResult,
)
from prefect_augment.schema.privacy import Privacy

__all__ = ["Findings", "OperationCheck", "PolicyCheck", "Training", "TrainingCurve"]


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

    contents: Contents | None = None  # for the next version; no section
    drift: Drift | None = None
    search: SearchResult | None = None
    training: Training | None = None
    policy: PolicyCheck | None = None
    privacy: Privacy | None = None
    robustness: RobustnessResult | None = None
    slices: SliceResult | None = None
    calibration: CalibrationResult | None = None
