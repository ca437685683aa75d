"""Train several phases on one network in sequence, checkpointed and resumed like one run."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from prefect_augment.errors import ParameterError
from prefect_augment.nn import loop
from prefect_augment.nn.devices import Device

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stretch:
    """Some steps of one phase."""

    phase: loop.Phase  # the same network in every stretch, each phase with its own name
    steps: int
    then: Callable[[], None] | None = None  # applied to the network at the end


def train_in_turn(
    stretches: Sequence[Stretch],
    *,
    seed: int,
    device: Device,
    ema_fraction: float = 0.0,
    on_progress: loop.Report | None = None,
    checkpoint: Callable[[loop.Checkpoint], None] | None = None,
    checkpoint_seconds: float = loop.CHECKPOINT_SECONDS,
    restored: loop.Checkpoint | None = None,
) -> tuple[nn.Module, int]:
    """Train all stretches; return the network and the total steps.

    Each stretch starts from the averaged weights of the one before, with its own schedule and
    optimiser. Steps in reports and checkpoints count from the start of the run. The parameters and
    errors are those of :func:`.loop.train`.
    """
    total = sum(stretch.steps for stretch in stretches)
    network, before = stretches[0].phase.network, 0
    where = restored[0]["phase"] if restored is not None else stretches[0].phase.name
    names = [stretch.phase.name for stretch in stretches]
    if restored is not None and (where not in names or restored[0]["n_steps"] != total):
        raise ParameterError(
            f"the checkpoint is of phase {where!r} in a run of {restored[0]['n_steps']} steps, this run "
            f"has {', '.join(map(repr, names))} in {total}; delete it and train again."
        )
    for stretch in stretches:
        if restored is not None and stretch.phase.name != where:
            before += stretch.steps  # done, and in the checkpoint's weights
            continue
        result = loop.train(
            stretch.phase,
            steps=stretch.steps,
            seed=seed,
            device=device,
            ema_fraction=ema_fraction,
            on_progress=_offset_report(on_progress, before),
            checkpoint=_offset_checkpoint(checkpoint, before, total),
            checkpoint_seconds=checkpoint_seconds,
            restored=_local(restored, before, stretch.steps),
        )
        restored, network = None, result.network
        before += stretch.steps
        if stretch is not stretches[-1]:
            stretch.phase.network.load_state_dict(network.state_dict())
            if stretch.then is not None:
                stretch.then()
            logger.info("Phase %r is done after %d of %d steps.", stretch.phase.name, before, total)
    return network, before


def mean_seconds_per_step(stretches: Sequence[Stretch], *, seed: int, device: Device) -> float:
    """Mean seconds of a step, weighted by the stretches' steps; do not use the network afterwards."""
    total = sum(stretch.steps for stretch in stretches)
    return sum(
        stretch.steps / total * loop.seconds_per_step(stretch.phase, seed=seed, device=device)
        for stretch in stretches
    )


def _offset_report(report: loop.Report | None, before: int) -> loop.Report | None:
    """A report that counts the steps of all stretches."""
    if report is None:
        return None
    return lambda step, scalars: report(before + step, dict(scalars))


def _offset_checkpoint(
    save: Callable[[loop.Checkpoint], None] | None, before: int, total: int
) -> Callable[[loop.Checkpoint], None] | None:
    """A callback for checkpoints that say where in the whole run they are."""
    if save is None:
        return None
    return lambda state: save(
        ({**state[0], "step": before + state[0]["step"], "n_steps": total}, state[1])
    )


def _local(state: loop.Checkpoint | None, before: int, steps: int) -> loop.Checkpoint | None:
    """A checkpoint as its stretch wrote it."""
    if state is None:
        return None
    return {**state[0], "step": state[0]["step"] - before, "n_steps": steps}, state[1]
