"""Train several phases on one network in sequence, checkpointed and resumed like one run."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from prefect_augment.errors import ParameterError
from prefect_augment.nn import loop
from prefect_augment.nn.budget import Checkpoint, FitContext
from prefect_augment.nn.devices import Device

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stretch:
    """Some steps of one phase."""

    phase: loop.Phase  # the same network in every stretch, each phase with its own name
    steps: int
    then: Callable[[], None] | None = None  # applied to the network at the end


def train_in_turn(
    stretches: Sequence[Stretch], ctx: FitContext, device: Device
) -> tuple[nn.Module, int]:
    """Train all stretches; return the network and the total steps, whatever ``ctx.steps`` says.

    Each stretch starts from the averaged weights of the one before, with its own schedule and
    optimiser. Steps in reports and checkpoints count from the start of the run. The rest is that of
    :func:`.loop.train`.
    """
    total = sum(stretch.steps for stretch in stretches)
    network, before, restored = stretches[0].phase.network, 0, ctx.restored
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
        local = _of_stretch(replace(ctx, restored=restored), before, stretch.steps, total)
        network, _ = loop.train(stretch.phase, local, device)
        restored = None
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


def _of_stretch(ctx: FitContext, before: int, steps: int, total: int) -> FitContext:
    """The context of one stretch, whose reports and checkpoints count the steps of the whole run."""
    report, save, restored = ctx.report, ctx.checkpoint, ctx.restored

    def checkpoint(state: Checkpoint) -> None:
        config, arrays = state
        assert save is not None
        save(({**config, "step": before + config["step"], "n_steps": total}, arrays))

    if restored is not None:
        config, arrays = restored
        restored = {**config, "step": config["step"] - before, "n_steps": steps}, arrays
    return replace(
        ctx,
        steps=steps,
        report=lambda step, scalars: report(before + step, scalars),
        checkpoint=checkpoint if save is not None else None,
        restored=restored,
    )
