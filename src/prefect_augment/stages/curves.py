"""Training curves: what a network's losses did, kept beside its model for the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prefect_augment.datatypes import ModelRef
from prefect_augment.facts_training import Training, TrainingCurve
from prefect_augment.staging import Stage, read_fact
from prefect_augment.storage import Store

__all__ = ["CurveKeeper", "read_training"]

FILE = "training.json"
_PREFIX = "curve."

State = tuple[dict[str, Any], Any]
Report = Callable[[int, Mapping[str, float]], None]


class CurveKeeper:
    """Hears what a model reports in training and keeps the points of its curves.

    Parameters
    ----------
    restored : tuple, optional
        The state that training goes on from, with the points up to there.
    """

    def __init__(self, restored: State | None) -> None:
        points = restored[0].get("curve", {}) if restored else {}
        self.points: dict[str, list[tuple[int, float]]] = {
            name: [(int(step), float(loss)) for step, loss in found]
            for name, found in points.items()
        }

    def heard(self, report: Report) -> Report:
        """Return a report that keeps points of the curves on their way."""

        def hear(step: int, scalars: Mapping[str, float]) -> None:
            for name, value in scalars.items():
                if name.startswith(_PREFIX):
                    self.points.setdefault(name.removeprefix(_PREFIX), []).append((step, value))
            report(step, scalars)

        return hear

    def kept(self, save: Callable[[State], None]) -> Callable[[State], None]:
        """Return a keeper of checkpoints that hold the points so far, too."""

        def keep(state: State) -> None:
            config, arrays = state
            curve = {name: [list(point) for point in found] for name, found in self.points.items()}
            save(({**config, "curve": curve}, arrays))

        return keep

    def leave(self, stage: Stage) -> None:
        """Put the curves beside the model; nothing where training had none."""
        if self.points:
            curves = tuple(
                TrainingCurve(loss=name, points=tuple(found))
                for name, found in sorted(self.points.items())
            )
            stage.item(FILE.removesuffix(".json"), Training, lambda: Training(curves=curves))


def read_training(model: ModelRef | None, store: Store) -> Training | None:
    """Return the curves of a model; None where it has none, or was trained before they were kept."""
    if model is None:
        return None
    return read_fact(store, f"{model.path.rsplit('/', 1)[0]}/{FILE}", Training)
