"""Resume: checkpoints in the middle of training, below the stage that trains.

Training curves: what a network's losses did, kept beside its model for the report.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from prefect_augment.errors import IntegrityError
from prefect_augment.genmodels.base import Arrays, Config
from prefect_augment.nn.checkpoints import CheckpointRef, load_checkpoint, save_checkpoint
from prefect_augment.schema.base import ModelRef
from prefect_augment.schema.report import Training, TrainingCurve
from prefect_augment.storage.staging import Stage, read_result
from prefect_augment.storage.store import Store

__all__ = ["CurveKeeper", "Resume", "read_training"]

logger = logging.getLogger(__name__)


class Resume:
    """The newest checkpoint of a training stage; each is whole before its receipt names it.

    Parameters
    ----------
    stage : Stage
        Checkpoints lie in its folder ``resume``.
    """

    def __init__(self, stage: Stage) -> None:
        self.store = stage.store
        self.prefix = f"{stage.prefix}/resume"

    def save(self, state: tuple[Config, Arrays]) -> None:
        """Keep a state that has a ``step``, then drop the older ones."""
        config, arrays = state
        folder = f"{self.prefix}/{config['step']:09d}"
        digest, (checkpoint, written) = save_checkpoint(self.store, folder, config, arrays)
        ref = CheckpointRef(digest=digest, checkpoint=checkpoint, config=written)
        self.store.put(f"{folder}.json", ref.to_json())
        for path in self.store.list(self.prefix):
            if not path.startswith(folder):
                self.store.delete(path)

    def load(self) -> tuple[Config, Arrays] | None:
        """Return the newest state that is whole, or None where training starts afresh."""
        receipts = [p for p in self.store.list(self.prefix) if p.count("/") == self._depth]
        for path in sorted(receipts, reverse=True):
            try:
                ref = read_result(self.store, path, CheckpointRef)
                if ref is not None:
                    config, arrays = load_checkpoint(self.store, ref)
                    logger.info("Training goes on from step %d.", config["step"])
                    return config, arrays
            except IntegrityError as exc:
                logger.warning("A checkpoint cannot be used and is passed over: %s", exc)
        return None

    def clear(self) -> None:
        """Drop all: the model itself is kept."""
        for path in self.store.list(self.prefix):
            self.store.delete(path)

    @property
    def _depth(self) -> int:
        """Slashes in a receipt's path; the states lie one folder deeper."""
        return self.prefix.count("/") + 1


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
    return read_result(store, f"{model.path.rsplit('/', 1)[0]}/{FILE}", Training)
