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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from prefect_augment.array_types import Array
from prefect_augment.errors import DivergedError, ParameterError
from prefect_augment.nn import ranks
from prefect_augment.nn.budget import calibrate
from prefect_augment.nn.devices import Device

logger = logging.getLogger(__name__)

Batch = tuple[Tensor, ...]
# Plain JSON and named arrays.
Checkpoint = tuple[dict[str, Any], dict[str, Array]]
Report = Callable[[int, Mapping[str, float]], None]

# Half-life as a share of the steps taken. EDM's fixed 500,000 images give "only noise" after a short
# run; 5 % was best on our data sets.
HALF_LIFE_FRACTION = 0.05
REPORT_SECONDS = 1.0
CHECKPOINT_SECONDS = 60.0
HISTORY_POINTS = 200  # of the loss curve in a result
CURVE_POINTS = 100  # of the reported curves: means over equal windows of steps


class Phase(Protocol):
    """One phase of training.

    ``name`` is part of every random stream, so two phases of a run draw different numbers.
    ``network`` holds everything trained, on the device already; it is averaged and saved as a
    whole. ``together``, where a phase has it, is how many records its losses look at as one: packs,
    or one of so many.
    """

    name: str
    network: nn.Module

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Optimisers by the name of their loss, taken in turn at every step.

        One entry for most models; generator and critic for a GAN.
        """
        ...

    def batch(self, loss_name: str, rng: torch.Generator) -> Batch:
        """Records of one step and every random number about them; first axis: records."""
        ...

    def loss(self, loss_name: str, batch: Batch) -> Tensor:
        """Mean loss over the records of a batch, or of a part of it."""
        ...

    def lr_factor(self, step: int, n_steps: int) -> float:
        """Learning rate of a step, as a share of the optimiser's own."""
        ...


@dataclass(frozen=True)
class TrainResult:
    """Outcome of :func:`train`."""

    network: nn.Module  # the averaged network, or the trained one without averaging
    steps: int  # including those before a resume
    n_images: int
    micro_batch: int  # records computed at once; below the batch where memory ran out
    seconds: float  # of this call
    losses: tuple[tuple[int, float], ...] = ()  # (step, mean loss since the point before)


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
    phase: Phase,
    *,
    steps: int,
    seed: int,
    device: Device,
    ema_fraction: float = 0.0,
    max_norm: float = 1.0,
    on_progress: Report | None = None,
    checkpoint: Callable[[Checkpoint], None] | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    restored: Checkpoint | None = None,
    stop_after: int = 0,
) -> TrainResult:
    """Train a phase's network in place.

    Parameters
    ----------
    phase : Phase
        What is trained.
    steps : int
        Of the whole phase; the schedule depends on it.
    seed : int
        Seed of everything random.
    device : Device
        Where to compute; its settings hold inside this call only.
    ema_fraction : float
        Half-life of the averaged weights as a share of the steps taken; 0 averages nothing.
    max_norm : float
        Clips longer gradients to this norm; 0 does not clip.
    on_progress : callable, optional
        Called about every second and at the end with the step and ``loss``, ``records_per_second``
        and ``seconds_left``. At every hundredth of the steps also with ``curve.<loss>``, the mean of
        each loss over that hundredth, which does not depend on the time.
    checkpoint : callable, optional
        Called every ``checkpoint_seconds`` with everything that a resume needs.
    restored : Checkpoint, optional
        State of an interrupted call; the run continues with the same bits.
    stop_after : int
        Stop at this step with a last checkpoint, like an interrupted run; 0 runs to the end.

    Raises
    ------
    DivergedError
        If the loss is not finite.
    ParameterError
        If ``steps`` is below 1, or the checkpoint belongs to another run.
    """
    if steps < 1:
        raise ParameterError(f"training needs at least 1 step, not {steps}; raise the budget.")
    with device.settings():
        run = _Run(phase, steps, seed, device, ema_fraction, max_norm)
        if restored is not None:
            run.restore(restored)
        progress = _Progress(run, on_progress)
        saved = time.monotonic()
        end = min(steps, stop_after) if stop_after else steps
        while run.step < end:
            run.take_step()
            progress.tick(last=run.step == steps, curve=run.curve_point())
            if checkpoint is not None and time.monotonic() - saved >= checkpoint_seconds:
                run.check_loss()
                checkpoint(run.checkpoint())
                saved = time.monotonic()
        run.check_loss()
        if checkpoint is not None and run.step < steps:
            checkpoint(run.checkpoint())
        network = run.ema.network if run.ema is not None else phase.network
        network.eval()
        return TrainResult(
            network=network,
            steps=run.step,
            n_images=run.step * run.batch_size,
            micro_batch=run.micro_batch,
            seconds=time.monotonic() - progress.start,
            losses=tuple(run.losses),
        )


def seconds_per_step(phase: Phase, *, seed: int, device: Device) -> float:
    """Seconds of one training step; do not use the phase's network afterwards."""
    with device.settings():
        run = _Run(phase, 1_000_000, seed, device, ema_fraction=0.05, max_norm=1.0)

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


@dataclass
class _Run:
    """State of one call of :func:`train`."""

    phase: Phase
    n_steps: int
    seed: int
    device: Device
    ema_fraction: float
    max_norm: float
    step: int = 0
    batch_size: int = 0
    micro_batch: int = 0  # 0: the whole batch
    ema: Ema | None = None
    losses: list[tuple[int, float]] = field(default_factory=list)
    loss_sum: Tensor | None = None  # kept on the device: reading it waits for the device
    loss_count: int = 0
    # By loss, since the last point of the curve: sum and steps.
    window: dict[str, tuple[Tensor, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.phase.network.train()
        self.optimizers = self.phase.make_optimizers()
        self.rates = {
            name: [group["lr"] for group in optimizer.param_groups]
            for name, optimizer in self.optimizers.items()
        }
        if self.ema_fraction:
            self.ema = Ema(self.phase.network, fraction=self.ema_fraction)

    def take_step(self) -> None:
        """Take one optimiser step per loss."""
        factor = self.phase.lr_factor(self.step, self.n_steps)
        for name, optimizer in self.optimizers.items():
            for group, rate in zip(optimizer.param_groups, self.rates[name], strict=True):
                group["lr"] = rate * factor
            rng = step_generator(
                self.seed, f"{self.phase.name}/{name}", self.step, self.device.torch
            )
            batch = self.phase.batch(name, rng)
            self.batch_size = len(batch[0])
            loss = self._backward(name, optimizer, batch)
            if self.max_norm:
                nn.utils.clip_grad_norm_(_parameters(optimizer), self.max_norm)
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
        own, share = ranks.own_part(batch, getattr(self.phase, "together", 1))
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
                f"{self.n_steps}: training diverged; lower the learning rate, or check the records "
                "for constant or extreme values.",
                step=self.step,
            )
        self.losses.append((self.step, loss))
        if len(self.losses) > HISTORY_POINTS:
            self.losses = self.losses[::-2][::-1]  # every second point, with the newest
        return loss

    def curve_point(self) -> dict[str, float]:
        """Mean of each loss where a window of the curve ends here; else nothing."""
        if (
            self.step * CURVE_POINTS // self.n_steps
            == (self.step - 1) * CURVE_POINTS // self.n_steps
        ):
            return {}
        means = {f"curve.{name}": float(total) / n for name, (total, n) in self.window.items()}
        self.window = {}
        return means

    def checkpoint(self) -> Checkpoint:
        """Everything that the next step depends on."""
        config: dict[str, Any] = {
            "phase": self.phase.name,
            "step": self.step,
            "n_steps": self.n_steps,
            "seed": self.seed,
            "micro_batch": self.micro_batch,
            "losses": [list(point) for point in self.losses],
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
        ours = {"phase": self.phase.name, "n_steps": self.n_steps, "seed": self.seed}
        theirs = {name: config[name] for name in ours}
        if ours != theirs:
            raise ParameterError(
                f"the checkpoint is of {theirs} and this run is {ours}; delete it and train again."
            )
        self.step, self.micro_batch = int(config["step"]), int(config["micro_batch"])
        self.losses = [(int(step), float(loss)) for step, loss in config["losses"]]
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

    def __init__(self, run: _Run, on_progress: Report | None) -> None:
        self.run = run
        self.on_progress = on_progress
        self.start = self.last = time.monotonic()
        self.first_step = self.last_step = run.step

    def tick(self, *, last: bool, curve: Mapping[str, float]) -> None:
        """Report if a second has passed, a point of the curve is complete, or this was the last step."""
        now = time.monotonic()
        if now - self.last < REPORT_SECONDS and not last and not curve:
            return
        loss = self.run.check_loss()
        done = self.run.step - self.first_step
        scalars = {
            "loss": loss,
            "records_per_second": (self.run.step - self.last_step)
            * self.run.batch_size
            / max(now - self.last, 1e-9),
            "seconds_left": (now - self.start) / done * (self.run.n_steps - self.run.step),
            **curve,
        }
        self.last, self.last_step = now, self.run.step
        if self.on_progress is not None:
            self.on_progress(self.run.step, scalars)


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
