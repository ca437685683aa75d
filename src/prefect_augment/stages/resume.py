"""Resume: checkpoints in the middle of training, below the stage that trains."""

from __future__ import annotations

import logging

from prefect_augment.errors import IntegrityError
from prefect_augment.genmodels.base import Arrays, Config
from prefect_augment.staging import Stage, read_fact
from prefect_augment.training.checkpoints import CheckpointRef, load_checkpoint, save_checkpoint

__all__ = ["Resume"]

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
                ref = read_fact(self.store, path, CheckpointRef)
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
