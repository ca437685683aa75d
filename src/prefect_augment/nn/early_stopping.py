"""Train with early stopping on held-out records.

:func:`train_with_early_stopping` cuts :func:`.loop.train` into stretches and validates the averaged network
after each. Of every part (a direct child with a loss of its own) it returns the weights with the
best validation. A part that has not improved for a while is frozen, which leaves the time to the
others. Stretches are resumes, so checkpoints hold the validations too.
"""

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from torch import nn

from prefect_augment.array_types import Array
from prefect_augment.errors import ParameterError
from prefect_augment.nn import loop, ranks
from prefect_augment.nn.budget import Checkpoint, FitContext
from prefect_augment.nn.devices import Device

logger = logging.getLogger(__name__)

N_STRETCHES = 16
PATIENCE = 3  # stretches without improvement


@dataclass(frozen=True)
class Validation:
    """Result of validating a network on held-out records."""

    losses: dict[str, float]  # by child of the network
    memorised: bool = False  # it reproduces training records: rejected, and training ends
    # Another reason to reject it: ends training once there was a better one, or after `patience`.
    fault: str = ""


@dataclass(frozen=True)
class EarlyStopped:
    """Outcome of training with early stopping."""

    network: nn.Module  # every part at its best validation; the last one where nothing validates
    steps: int
    best: dict[str, int]  # step of each part's best validation
    reason: str = ""  # why training ended early; models store it, so its text is part of digests


@dataclass
class _History:
    """Validations so far, and the best weights of each part."""

    steps_compared: list[int] = field(default_factory=list)
    best: dict[str, tuple[int, float]] = field(default_factory=dict)
    weights: dict[str, dict[str, Array]] = field(default_factory=dict)
    reason: str = ""
    patience: int = PATIENCE

    def add(self, step: int, validation: Validation, network: nn.Module) -> None:
        self.steps_compared.append(step)
        if validation.memorised and self.best:
            self.reason = f"records were about to be learnt by heart at step {step}"
            return
        if validation.fault:
            if self.best or len(self.steps_compared) >= self.patience:
                self.reason = f"{validation.fault} at step {step}"
            return
        frozen = self.frozen
        for name, loss in validation.losses.items():
            if name in frozen:
                continue
            # A gain below 0.05 % does not count.
            if name not in self.best or loss < self.best[name][1] - 5e-4 * abs(self.best[name][1]):
                self.best[name] = step, loss
                child = network.get_submodule(name)
                self.weights[name] = loop.named_arrays(f"best.{name}", child.state_dict())
        if self.best and self.frozen == frozenset(self.best):
            newest = max(at for at, _ in self.best.values())
            self.reason = f"no part got better after step {newest}"
        if validation.memorised:
            self.reason = f"records were learnt by heart at step {step} already"

    @property
    def frozen(self) -> frozenset[str]:
        """Parts that have not improved for a while; they stay frozen."""
        return frozenset(
            name
            for name, (best, _) in self.best.items()
            if sum(at > best for at in self.steps_compared) >= self.patience
        )

    def to_checkpoint(self, state: Checkpoint) -> Checkpoint:
        config, arrays = state
        noted = {
            "compared": self.steps_compared,
            "best": {k: list(v) for k, v in self.best.items()},
        }
        weights = {k: v for part in self.weights.values() for k, v in part.items()}
        return {**config, "watch": {**noted, "reason": self.reason}}, {**arrays, **weights}

    @classmethod
    def from_checkpoint(cls, state: Checkpoint, patience: int) -> "_History":
        config, arrays = state
        if "watch" not in config:
            raise ParameterError(
                "the checkpoint is of a run without early stopping; delete it and train again."
            )
        noted = config["watch"]
        best = {name: (int(step), float(loss)) for name, (step, loss) in noted["best"].items()}
        weights = {
            name: {k: v for k, v in arrays.items() if k.startswith(f"best.{name}.")}
            for name in best
        }
        return cls(list(noted["compared"]), best, weights, noted["reason"], patience)


def train_with_early_stopping(
    phase: loop.Phase,
    ctx: FitContext,
    device: Device,
    *,
    validate: Callable[[nn.Module], Validation] | None,
    patience: int = PATIENCE,
) -> EarlyStopped:
    """Train a phase's network in place and return the parts with the best validation.

    ``validate`` takes the averaged network and is deterministic; without one (too few records to
    hold any out) training takes all its steps. ``patience`` is the number of stretches (of 16)
    without improvement after which a part is frozen. The rest is that of :func:`.loop.train`.
    """
    history = _History(patience=patience)
    if ctx.restored is not None:
        history = _History.from_checkpoint(ctx.restored, patience)
    steps, state, saved = ctx.steps, ctx.restored, time.monotonic()
    network, step = phase.network, int(state[0]["step"]) if state else 0

    def keep(new_state: Checkpoint) -> None:
        """Called by the loop at intervals and at a stretch's end."""
        nonlocal state, saved
        state = new_state
        if ctx.checkpoint is not None and time.monotonic() - saved >= ctx.checkpoint_seconds:
            ctx.checkpoint(history.to_checkpoint(new_state))
            saved = time.monotonic()

    def compare() -> None:
        if validate is not None:
            with device.settings():
                history.add(step, ranks.of_first(partial(validate, network)), network)

    # Resume: validate the end of a stretch, if its checkpoint was saved before that.
    every = max(1, -(-steps // N_STRETCHES)) if validate is not None else steps
    if validate is not None and state and step % every == 0 and step not in history.steps_compared:
        network = copy.deepcopy(phase.network).eval()
        averaged = loop.tensors("ema", state[1]) or loop.tensors("network", state[1])
        network.load_state_dict(averaged)
        compare()
    # Train a stretch, validate, repeat.
    while step < steps and not history.reason:
        end = min(steps, (step // every + 1) * every)
        phase.frozen = history.frozen
        local = replace(ctx, checkpoint=keep, restored=state)
        network, step = loop.train(phase, local, device, stop_after=end)
        compare()
    reason = history.reason if step < steps else ""
    if reason:
        logger.info("Training ended after %d of %d steps: %s.", step, steps, reason)
    # Give every part the weights of its best validation.
    network = copy.deepcopy(network)
    for name, weights in history.weights.items():
        network.get_submodule(name).load_state_dict(loop.tensors(f"best.{name}", weights))
    return EarlyStopped(
        network=network.requires_grad_(False).eval(),
        steps=step,
        best={name: at for name, (at, _) in history.best.items()},
        reason=reason,
    )
