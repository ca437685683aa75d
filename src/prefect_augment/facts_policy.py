"""What a probe says of a policy of classic augmentation: whether a changed image keeps its class."""

from __future__ import annotations

from prefect_augment.datatypes import Fact

__all__ = ["OperationCheck", "PolicyCheck"]


class OperationCheck(Fact):
    """What became of val images under one operation, always applied."""

    name: str
    rate: float  # of images whose class the probe no longer sees
    low: float  # lower end of its 95 % interval
    worst_class: str  # the class that suffers most, by the lower end of its own interval
    worst_rate: float
    becomes: str  # what the probe takes that class for
    damages: bool


class PolicyCheck(Fact):
    """What a probe says of a policy."""

    policy: str
    digest: str
    accuracy: float  # of the probe, on unchanged val images
    n_images: int
    operations: tuple[OperationCheck, ...]
    picture: str  # path of a sheet, relative to the dataset
    note: str = ""  # why nothing can be said

    @property
    def damaging(self) -> tuple[OperationCheck, ...]:
        """Operations after which too many images are another class's."""
        return tuple(op for op in self.operations if op.damages)
