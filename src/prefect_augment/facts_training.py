"""How the training of a network went."""

from __future__ import annotations

from prefect_augment.datatypes import Fact

__all__ = ["Training", "TrainingCurve"]


class TrainingCurve(Fact):
    """One loss over training: means over windows of equal steps."""

    loss: str
    points: tuple[tuple[int, float], ...]  # last step of the window, mean loss


class Training(Fact):
    """The losses of the generative model, as they went down, or did not."""

    curves: tuple[TrainingCurve, ...]
