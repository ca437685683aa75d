"""Checkpoints in the middle of training, and the training curves kept for the report."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from prefect_augment.errors import IntegrityError
from prefect_augment.genmodels.base import Arrays, Config
from prefect_augment.nn.checkpoints import CheckpointRef, load_checkpoint, save_checkpoint
from prefect_augment.schema import ModelRef, Training, TrainingCurve
from prefect_augment.storage import Stage, Store, read_result

logger = logging.getLogger(__name__)

FILE = "training.json"
_PREFIX = "curve."
State = tuple[dict[str, Any], Any]
Report = Callable[[int, Mapping[str, float]], None]


class Resume:
    """Checkpoints of a training stage; each is complete before its receipt names it."""

    def __init__(self, stage: Stage) -> None:
        self.store = stage.store
        self.prefix = f"{stage.prefix}/resume"

    def save(self, state: tuple[Config, Arrays]) -> None:
        """Save a state that has a ``step``, then delete the older ones."""
        config, arrays = state
        folder = f"{self.prefix}/{config['step']:09d}"
        digest, (checkpoint, config_path) = save_checkpoint(self.store, folder, config, arrays)
        ref = CheckpointRef(digest=digest, checkpoint=checkpoint, config=config_path)
        self.store.put(f"{folder}.json", ref.to_json())
        for path in self.store.list(self.prefix):
            if not path.startswith(folder):
                self.store.delete(path)

    def load(self) -> tuple[Config, Arrays] | None:
        """Newest complete state, or None to start training from scratch."""
        depth = self.prefix.count("/") + 1  # of receipts; states lie one folder deeper
        receipts = [p for p in self.store.list(self.prefix) if p.count("/") == depth]
        for path in sorted(receipts, reverse=True):
            try:
                ref = read_result(self.store, path, CheckpointRef)
                if ref is not None:
                    config, arrays = load_checkpoint(self.store, ref)
                    logger.info("Training goes on from step %d.", config["step"])
                    return config, arrays
            except IntegrityError as exc:
                logger.warning("A checkpoint cannot be read and is skipped: %s", exc)
        return None

    def clear(self) -> None:
        """Delete all checkpoints; the model itself is stored elsewhere."""
        for path in self.store.list(self.prefix):
            self.store.delete(path)


class CurveRecorder:
    """Records the curves that a model reports in training; continues those of ``restored``."""

    def __init__(self, restored: State | None) -> None:
        curves = restored[0].get("curve", {}) if restored else {}
        self.points: dict[str, list[tuple[int, float]]] = {
            name: [(int(step), float(loss)) for step, loss in points]
            for name, points in curves.items()
        }

    def recording(self, report: Report) -> Report:
        """A report callback that also records the points of the curves."""

        def record(step: int, scalars: Mapping[str, float]) -> None:
            for name, value in scalars.items():
                if name.startswith(_PREFIX):
                    self.points.setdefault(name.removeprefix(_PREFIX), []).append((step, value))
            report(step, scalars)

        return record

    def checkpointing(self, save: Callable[[State], None]) -> Callable[[State], None]:
        """A checkpoint callback that adds the points so far."""

        def keep(state: State) -> None:
            config, arrays = state
            curve = {
                name: [list(point) for point in points] for name, points in self.points.items()
            }
            save(({**config, "curve": curve}, arrays))

        return keep

    def store(self, stage: Stage) -> None:
        """Store the curves beside the model; nothing where training had none."""
        if self.points:
            curves = tuple(
                TrainingCurve(loss=name, points=tuple(points))
                for name, points in sorted(self.points.items())
            )
            stage.item(FILE.removesuffix(".json"), Training, lambda: Training(curves=curves))


def read_training(model: ModelRef | None, store: Store) -> Training | None:
    """Curves of a model; None where it has none or predates them."""
    if model is None:
        return None
    return read_result(store, f"{model.path.rsplit('/', 1)[0]}/{FILE}", Training)
