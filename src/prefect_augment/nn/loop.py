"""The training loop that every network shares; a :class:`Phase` says what is trained and by which loss.

The loop owns the schedule, accumulation, clipping, averaging, progress and checkpoints. Everything
random in step ``k`` comes from one generator made of (seed, phase, k), so a resumed run draws the
same numbers and no random state is saved. Phases therefore use only that generator, and no
``nn.Dropout``, whose global generator other threads share.
"""

import copy
import hashlib
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prefect_augment.array_types import Array
from prefect_augment.errors import DivergedError, ParameterError
from prefect_augment.nn import ranks
from prefect_augment.nn.budget import Checkpoint, FitContext, calibrate
from prefect_augment.nn.devices import Device

logger = logging.getLogger(__name__)

Batch = tuple[Tensor, ...]

# Half-life as a share of the steps taken. EDM's fixed 500,000 images give "only noise" after a short
# run; 5 % was best on our data sets.
HALF_LIFE_FRACTION = 0.05
REPORT_SECONDS = 1.0
CURVE_POINTS = 100  # of the reported curves: means over equal windows of steps


class Phase(ABC):
    """One phase of training.

    ``name`` is part of every random stream, so two phases of a run draw different numbers.
    ``network`` holds everything trained, on the device already; it is averaged and saved as a
    whole. ``together`` is how many records the losses look at as one: packs, or one of so many. The
    loss leaves out the ``frozen`` parts (children of the network).
    """

    name: str
    network: nn.Module
    together: int = 1
    frozen: frozenset[str] = frozenset()
    # Half-life of the averaged weights as a share of the steps taken; 0 averages nothing.
    ema_fraction: float = 0.0
    max_norm: float = 1.0  # longer gradients are clipped to it; 0 clips none

    @abstractmethod
    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return optimisers by the name of their loss, taken in turn at every step.

        One entry for most models; generator and critic for a GAN.
        """

    @abstractmethod
    def batch(self, loss_name: str, rng: torch.Generator) -> Batch:
        """Return the records of one step and every random number about them; first axis: records."""

    @abstractmethod
    def loss(self, loss_name: str, batch: Batch) -> Tensor:
        """Return the mean loss over the records of a batch, or of a part of it."""

    def lr_factor(self, step: int, n_steps: int) -> float:
        """Return the learning rate of a step, as a share of the optimiser's own."""
        return warmup_cosine(step, n_steps)


def warmup_cosine(step: int, n_steps: int) -> float:
    """Share of the learning rate at a step (from 0): linear warm-up, then half a cosine down to 1 %.

    ``n_steps`` is the whole run, so every run ends annealed; a twentieth of it is warm-up.
    """
    n_warm, floor = max(1.0, 0.05 * n_steps), 0.01
    if step < n_warm:
        return (step + 1) / (n_warm + 1)
    place = (step - n_warm) / max(1.0, n_steps - n_warm)
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * place))


def step_generator(seed: int, name: str, step: int, device: torch.device) -> torch.Generator:
    """Generator of everything random in one step."""
    key = hashlib.blake2b(f"{seed}/{name}/{step}".encode(), digest_size=8).digest()
    # manual_seed takes a signed 64-bit number.
    return torch.Generator(device).manual_seed(int.from_bytes(key, "little") >> 1)


def train(
    phase: Phase, ctx: FitContext, device: Device, *, stop_after: int = 0
) -> tuple[nn.Module, int]:
    """Train a phase's network in place; return it, or its average, and the steps taken so far.

    ``ctx.report`` is called about every second and at the end with ``loss``, ``records_per_second``
    and ``seconds_left``; at every hundredth of the steps also with ``curve.<loss>``, the mean of
    each loss over that hundredth, which does not depend on the time. With ``stop_after`` it stops
    at this step with a last checkpoint, like an interrupted run.

    Raises
    ------
    DivergedError
        If the loss is not finite.
    ParameterError
        If ``ctx.steps`` is below 1, or the checkpoint belongs to another run.
    """
    if ctx.steps < 1:
        raise ParameterError(f"training needs at least 1 step, not {ctx.steps}; raise the budget.")
    with device.settings():
        run = _Run(phase, ctx, device)
        if ctx.restored is not None:
            run.restore(ctx.restored)
        progress = _Progress(run)
        saved = time.monotonic()
        while run.step < (stop_after or ctx.steps):
            run.take_step()
            progress.tick()
            if ctx.checkpoint is not None and time.monotonic() - saved >= ctx.checkpoint_seconds:
                run.check_loss()
                ctx.checkpoint(run.checkpoint())
                saved = time.monotonic()
        run.check_loss()
        if ctx.checkpoint is not None and run.step < ctx.steps:
            ctx.checkpoint(run.checkpoint())
        network = run.ema.network if run.ema is not None else phase.network
        return network.eval(), run.step


def seconds_per_step(phase: Phase, *, seed: int, device: Device) -> float:
    """Seconds of one training step; do not use the phase's network afterwards."""
    with device.settings():
        run = _Run(phase, FitContext(seed, steps=1_000_000), device)

        def step() -> None:
            run.take_step()
            device.synchronize()

        return calibrate(step)


def decay(step: int, *, fraction: float = HALF_LIFE_FRACTION) -> float:
    """Decay of the average at a step (from 1): ``0.5 ** (1 / (fraction * step))``.

    At most ``(1 + step) / (10 + step)``, so that the random start is forgotten at once: the
    half-life ramp-up of EDM (Karras et al. 2022), without an upper end.
    """
    return min(0.5 ** (1.0 / max(fraction * step, 1e-9)), (1.0 + step) / (10.0 + step))


class Ema:
    """Averaged copy of a network; its memory grows with the run."""

    def __init__(self, network: nn.Module, *, fraction: float = HALF_LIFE_FRACTION) -> None:
        self.source = network
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.fraction = fraction
        # Listed once: walking all modules takes longer than averaging a small network.
        self._averaged, self._current = list(self.network.parameters()), list(network.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the source network after ``step`` steps; copy its buffers."""
        weight = 1.0 - decay(step, fraction=self.fraction)
        torch._foreach_lerp_(self._averaged, self._current, weight)
        for own, new in zip(self.network.buffers(), self.source.buffers(), strict=True):
            own.copy_(new)


class _Run:
    """State of one call of :func:`train`."""

    def __init__(self, phase: Phase, ctx: FitContext, device: Device) -> None:
        self.phase, self.ctx, self.device = phase, ctx, device
        self.step = self.batch_size = 0
        self.micro_batch = 0  # 0: the whole batch
        self.loss_sum: Tensor | None = None  # kept on the device: reading it waits for the device
        self.loss_count = 0
        # By loss, since the last point of the curve: sum and steps.
        self.window: dict[str, tuple[Tensor, int]] = {}
        phase.network.train()
        self.optimizers = phase.make_optimizers()
        self.rates = {
            name: [group["lr"] for group in optimizer.param_groups]
            for name, optimizer in self.optimizers.items()
        }
        fraction = phase.ema_fraction
        self.ema = Ema(phase.network, fraction=fraction) if fraction else None

    def take_step(self) -> None:
        """Take one optimiser step per loss."""
        factor = self.phase.lr_factor(self.step, self.ctx.steps)
        for name, optimizer in self.optimizers.items():
            for group, rate in zip(optimizer.param_groups, self.rates[name], strict=True):
                group["lr"] = rate * factor
            stream = f"{self.phase.name}/{name}"
            rng = step_generator(self.ctx.seed, stream, self.step, self.device.torch)
            batch = self.phase.batch(name, rng)
            self.batch_size = len(batch[0])
            loss = self._backward(name, optimizer, batch)
            if self.phase.max_norm:
                nn.utils.clip_grad_norm_(_parameters(optimizer), self.phase.max_norm)
            optimizer.step()
            self.loss_sum = loss if self.loss_sum is None else self.loss_sum + loss
            self.loss_count += 1
            total, n = self.window.get(name, (torch.zeros_like(loss), 0))
            self.window[name] = (total + loss, n + 1)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.step)

    def _backward(self, name: str, optimizer: torch.optim.Optimizer, batch: Batch) -> Tensor:
        """Accumulate the gradients over micro-batches; halve these when memory runs out.

        Each rank does so by itself, since only the sum over its parts is exchanged.
        """
        own, share = ranks.own_part(batch, self.phase.together)
        n = len(own[0])
        while True:
            size = min(self.micro_batch or n, n)
            optimizer.zero_grad(set_to_none=True)
            try:
                parts = [tuple(t[i : i + size] for t in own) for i in range(0, n, size)]
                losses = [self._part(name, part, share * len(part[0]) / n) for part in parts]
                return ranks.summed(torch.stack(losses).sum(), _parameters(optimizer))
            except torch.cuda.OutOfMemoryError:
                if size == 1:
                    raise
                self.micro_batch = (size + 1) // 2
                optimizer.zero_grad(set_to_none=True)
                if self.device.name == "cuda":
                    torch.cuda.empty_cache()
                logger.warning(
                    "memory ran out with %d records at once; going on with %d at once and the same "
                    "batch of %d",
                    size, self.micro_batch, self.batch_size,
                )  # fmt: skip

    def _part(self, name: str, part: Batch, share: float) -> Tensor:
        with self.device.autocast():
            loss = self.phase.loss(name, part)
        (loss * share).backward()
        return loss.detach().float() * share

    def check_loss(self) -> float:
        """Mean loss since the last call, NaN without steps; raises DivergedError if it is not finite."""
        if self.loss_sum is None:
            return math.nan
        loss = float(self.loss_sum) / self.loss_count
        self.loss_sum, self.loss_count = None, 0
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss of phase {self.phase.name!r} is {loss} at step {self.step} of "
                f"{self.ctx.steps}: training diverged; lower the learning rate, or check the records "
                "for constant or extreme values.",
                step=self.step,
            )
        return loss

    def curve_point(self) -> dict[str, float]:
        """Mean of each loss where a window of the curve ends here; else nothing."""
        n_points = self.step * CURVE_POINTS // self.ctx.steps
        if n_points == (self.step - 1) * CURVE_POINTS // self.ctx.steps:
            return {}
        means = {f"curve.{name}": float(total) / n for name, (total, n) in self.window.items()}
        self.window = {}
        return means

    def checkpoint(self) -> Checkpoint:
        """Everything that the next step depends on."""
        config: dict[str, Any] = {
            "phase": self.phase.name,
            "step": self.step,
            "n_steps": self.ctx.steps,
            "seed": self.ctx.seed,
            "micro_batch": self.micro_batch,
            "window": {name: [float(total), n] for name, (total, n) in self.window.items()},
        }
        arrays = named_arrays("network", self.phase.network.state_dict())
        if self.ema is not None:
            arrays |= named_arrays("ema", self.ema.network.state_dict())
        for name, optimizer in self.optimizers.items():
            for i, values in optimizer.state_dict()["state"].items():
                arrays |= named_arrays(f"optimizer.{name}.{i}", values)
        return config, arrays

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint of the same run."""
        config, arrays = checkpoint
        ours = {"phase": self.phase.name, "n_steps": self.ctx.steps, "seed": self.ctx.seed}
        theirs = {name: config[name] for name in ours}
        if ours != theirs:
            raise ParameterError(
                f"the checkpoint is of {theirs} and this run is {ours}; delete it and train again."
            )
        self.step, self.micro_batch = int(config["step"]), int(config["micro_batch"])
        self.window = {
            name: (torch.tensor(total, device=self.device.torch), int(n))
            for name, (total, n) in config.get("window", {}).items()
        }
        self.phase.network.load_state_dict(tensors("network", arrays))
        if self.ema is not None:
            self.ema.network.load_state_dict(tensors("ema", arrays))
        for name, optimizer in self.optimizers.items():
            state = optimizer.state_dict()
            state["state"] = {
                i: {key: _laid_out_as(parameter, value) for key, value in values.items()}
                for i, parameter in enumerate(_parameters(optimizer))
                if (values := tensors(f"optimizer.{name}.{i}", arrays))
            }
            optimizer.load_state_dict(state)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """The value in the parameter's memory order.

    Fused optimisers walk both in memory order, and storage has lost that of channels-last weights.
    """
    if value.shape != parameter.shape:
        return value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


class _Progress:
    """Report progress about every second."""

    def __init__(self, run: _Run) -> None:
        self.run = run
        self.start = self.last = time.monotonic()
        self.first_step = self.last_step = run.step

    def tick(self) -> None:
        """Report if a second has passed, a point of the curve is complete, or this was the last step."""
        run, now, curve = self.run, time.monotonic(), self.run.curve_point()
        left = run.ctx.steps - run.step
        if now - self.last < REPORT_SECONDS and left and not curve:
            return
        n_records = (run.step - self.last_step) * run.batch_size
        scalars = {
            "loss": run.check_loss(),
            "records_per_second": n_records / max(now - self.last, 1e-9),
            "seconds_left": (now - self.start) / (run.step - self.first_step) * left,
            **curve,
        }
        self.last, self.last_step = now, run.step
        run.ctx.report(run.step, scalars)


def named_arrays(prefix: str, state: Mapping[str, Any]) -> dict[str, Array]:
    """Tensors as numpy arrays, each name prefixed with ``prefix`` and a dot."""
    return {
        f"{prefix}.{name}": np.array(value.detach().cpu().numpy())
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def tensors(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """Inverse of :func:`named_arrays`."""
    start = f"{prefix}."
    return {
        name.removeprefix(start): torch.from_numpy(np.array(array))
        for name, array in arrays.items()
        if name.startswith(start)
    }
