"""Checkpoints in the middle of training, and the training curves kept for the report."""

import logging
from collections.abc import Mapping
from dataclasses import replace

from prefect_augment.errors import IntegrityError
from prefect_augment.nn.budget import Checkpoint, FitContext
from prefect_augment.nn.checkpoints import CheckpointRef, load_checkpoint, save_checkpoint
from prefect_augment.schema import ModelRef, Training, TrainingCurve
from prefect_augment.storage import Stage, Store, read_result

logger = logging.getLogger(__name__)

FILE = "training.json"
_PREFIX = "curve."


class Resume:
    """Checkpoints and curves of a training stage; a resumed training continues both.

    Each checkpoint is complete before its receipt names it.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.store = stage.store
        self.prefix = f"{stage.prefix}/resume"
        self.restored = self._load()
        curves = self.restored[0].get("curve", {}) if self.restored else {}
        self.points: dict[str, list[tuple[int, float]]] = {
            name: [(int(step), float(loss)) for step, loss in points]
            for name, points in curves.items()
        }

    def context(self, ctx: FitContext) -> FitContext:
        """The context of a training that continues the newest complete state, where there is one."""

        def report(step: int, scalars: Mapping[str, float]) -> None:
            for name, value in scalars.items():
                if name.startswith(_PREFIX):
                    self.points.setdefault(name.removeprefix(_PREFIX), []).append((step, value))
            ctx.report(step, scalars)

        return replace(ctx, report=report, checkpoint=self._save, restored=self.restored)

    def finish(self) -> None:
        """Store the curves beside the model; nothing where training had none."""
        if self.points:
            curves = tuple(
                TrainingCurve(loss=name, points=tuple(points))
                for name, points in sorted(self.points.items())
            )
            self.stage.item(FILE.removesuffix(".json"), Training, lambda: Training(curves=curves))

    def clear(self) -> None:
        """Delete all checkpoints; the model itself is stored elsewhere."""
        for path in self.store.list(self.prefix):
            self.store.delete(path)

    def _save(self, state: Checkpoint) -> None:
        """Save a state that has a ``step`` with the points so far, then delete the older ones."""
        config, arrays = state
        curve = {name: [list(point) for point in points] for name, points in self.points.items()}
        folder = f"{self.prefix}/{config['step']:09d}"
        ref = save_checkpoint(self.store, folder, {**config, "curve": curve}, arrays)
        self.store.put(f"{folder}.json", ref.to_json())
        for path in self.store.list(self.prefix):
            if not path.startswith(folder):
                self.store.delete(path)

    def _load(self) -> Checkpoint | None:
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


def read_training(model: ModelRef | None, store: Store) -> Training | None:
    """Curves of a model; None where it has none or predates them."""
    if model is None:
        return None
    return read_result(store, f"{model.path.rsplit('/', 1)[0]}/{FILE}", Training)
