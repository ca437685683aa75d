"""Training that is watched: judged now and then on records held back, ended when it only gets worse.

:func:`train_watched` cuts :func:`.loop.train` into stretches. After each the averaged network is
judged; of every part of it (a direct child that has a loss of its own) the weights of the best
judgement are what the caller gets. A part that has not got better for a while is trained no longer,
which leaves the time to the others. Stretches are resumes, so checkpoints hold the judgements too.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from numpy.typing import NDArray
from torch import nn

from prefect_augment.errors import ParameterError
from prefect_augment.nn import loop
from prefect_augment.nn.devices import Device

__all__ = ["N_STRETCHES", "PATIENCE", "Validation", "Watched", "WatchedPhase", "train_watched"]

logger = logging.getLogger(__name__)

N_STRETCHES = 16
PATIENCE = 3  # stretches without a better judgement, of one part or of all


class WatchedPhase(loop.Phase, Protocol):
    """A phase whose network has parts.

    Attributes
    ----------
    resting : frozenset of str
        Parts that the loss leaves out from now on; set between stretches.
    """

    resting: frozenset[str]


@dataclass(frozen=True)
class Validation:
    """What the records held back say of a network.

    Parameters
    ----------
    losses : dict of str to float
        By the name of a child of the network.
    memorised : bool
        The network gives back records that it was trained on: it is not taken, and training ends.
    fault : str
        What else is wrong with the network: it is not taken, and training ends once there was a
        better one, or after ``patience`` judgements without.
    """

    losses: dict[str, float]
    memorised: bool = False
    fault: str = ""


@dataclass(frozen=True)
class Watched:
    """The outcome.

    Parameters
    ----------
    network : nn.Module
        Every part as it was judged best; as it ended where nothing judged.
    steps : int
        Steps taken.
    best : dict of str to int
        Step of each part's best judgement.
    reason : str
        Why training ended before its last step; empty where it did not.
    """

    network: nn.Module
    steps: int
    best: dict[str, int]
    reason: str = ""


@dataclass
class _Book:
    """Judgements so far, and the best weights of each part."""

    compared: list[int] = field(default_factory=list)
    best: dict[str, tuple[int, float]] = field(default_factory=dict)
    weights: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)
    reason: str = ""
    patience: int = PATIENCE

    def enter(self, step: int, validation: Validation, network: nn.Module) -> None:
        self.compared.append(step)
        if validation.memorised and self.best:
            self.reason = f"records were about to be learnt by heart at step {step}"
            return
        if validation.fault:
            if self.best or len(self.compared) >= self.patience:
                self.reason = f"{validation.fault} at step {step}"
            return
        resting = self.resting
        for name, loss in validation.losses.items():
            if name in resting:
                continue
            # Half a thousandth: less is no gain.
            if name not in self.best or loss < self.best[name][1] - 5e-4 * abs(self.best[name][1]):
                self.best[name] = step, loss
                child = network.get_submodule(name)
                self.weights[name] = loop.named_arrays(f"best.{name}", child.state_dict())
        if self.best and self.resting == frozenset(self.best):
            newest = max(at for at, _ in self.best.values())
            self.reason = f"no part got better after step {newest}"
        if validation.memorised:
            self.reason = f"records were learnt by heart at step {step} already"

    @property
    def resting(self) -> frozenset[str]:
        """Parts that have not got better for a while; they do not come back."""
        return frozenset(
            name
            for name, (best, _) in self.best.items()
            if sum(at > best for at in self.compared) >= self.patience
        )

    def to_checkpoint(self, state: loop.Checkpoint) -> loop.Checkpoint:
        config, arrays = state
        noted = {"compared": self.compared, "best": {k: list(v) for k, v in self.best.items()}}
        weights = {k: v for part in self.weights.values() for k, v in part.items()}
        return {**config, "watch": {**noted, "reason": self.reason}}, {**arrays, **weights}

    @classmethod
    def from_checkpoint(cls, state: loop.Checkpoint, patience: int) -> _Book:
        config, arrays = state
        if "watch" not in config:
            raise ParameterError(
                "the checkpoint is of a run that was not watched; delete it and train again."
            )
        noted = config["watch"]
        best = {name: (int(step), float(loss)) for name, (step, loss) in noted["best"].items()}
        weights = {
            name: {k: v for k, v in arrays.items() if k.startswith(f"best.{name}.")}
            for name in best
        }
        return cls(list(noted["compared"]), best, weights, noted["reason"], patience)


def train_watched(
    phase: WatchedPhase,
    *,
    steps: int,
    seed: int,
    device: Device,
    judge: Callable[[nn.Module], Validation] | None,
    ema_fraction: float = 0.0,
    patience: int = PATIENCE,
    on_progress: loop.Report | None = None,
    checkpoint: Callable[[loop.Checkpoint], None] | None = None,
    checkpoint_seconds: float = loop.CHECKPOINT_SECONDS,
    restored: loop.Checkpoint | None = None,
) -> Watched:
    """Train a phase's network in place, and return the best that records held back have seen.

    Parameters
    ----------
    phase, steps, seed, device, ema_fraction, on_progress, checkpoint, checkpoint_seconds, restored
        As for :func:`.loop.train`.
    judge : callable, optional
        Takes the averaged network; the same network gives the same judgement. Without one (too few
        records to hold any back) training goes to its last step.
    patience : int
        Sixteenths of the steps without a better judgement after which a part rests.

    Raises
    ------
    DivergedError, ParameterError
        As :func:`.loop.train`.
    """
    book = _Book(patience=patience)
    if restored is not None:
        book = _Book.from_checkpoint(restored, patience)
    state = restored
    saved = time.monotonic()
    network, step = phase.network, int(state[0]["step"]) if state else 0

    def keep(found: loop.Checkpoint) -> None:
        """Called by the loop now and then and at a stretch's end."""
        nonlocal state, saved
        state = found
        if checkpoint is not None and time.monotonic() - saved >= checkpoint_seconds:
            checkpoint(book.to_checkpoint(found))
            saved = time.monotonic()

    every = max(1, -(-steps // N_STRETCHES)) if judge is not None else steps
    if judge is not None and state and step % every == 0 and step not in book.compared:
        # The checkpoint at the end of a stretch is older than the judgement on it.
        network = _averaged(phase.network, state)
        with device.settings():
            book.enter(step, judge(network), network)
    while step < steps and not book.reason:
        end = min(steps, (step // every + 1) * every)
        phase.resting = book.resting
        result = loop.train(
            phase,
            steps=steps,
            seed=seed,
            device=device,
            ema_fraction=ema_fraction,
            on_progress=on_progress,
            checkpoint=keep,
            checkpoint_seconds=checkpoint_seconds,
            restored=state,
            stop_after=end,
        )
        network, step = result.network, result.steps
        if judge is not None:
            with device.settings():
                book.enter(step, judge(network), network)
    reason = book.reason if step < steps else ""
    if reason:
        logger.info("Training ended after %d of %d steps: %s.", step, steps, reason)
    network = copy.deepcopy(network)
    for name, weights in book.weights.items():
        network.get_submodule(name).load_state_dict(loop.tensors(f"best.{name}", weights))
    return Watched(
        network=network.requires_grad_(False).eval(),
        steps=step,
        best={name: at for name, (at, _) in book.best.items()},
        reason=reason,
    )


def _averaged(network: nn.Module, state: loop.Checkpoint) -> nn.Module:
    """Return the network that a checkpoint would be judged by."""
    found = copy.deepcopy(network).eval()
    averaged = loop.tensors("ema", state[1])
    found.load_state_dict(averaged or loop.tensors("network", state[1]))
    return found
