"""Phases one after the other on one network: a run of several is checkpointed and resumed like one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from prefect_augment.errors import ParameterError
from prefect_augment.nn import loop
from prefect_augment.nn.devices import Device

__all__ = ["Stretch", "mean_seconds_per_step", "train_in_turn"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stretch:
    """Some steps of one phase.

    Parameters
    ----------
    phase : Phase
        Has the same network in every stretch, and a name of its own.
    steps : int
        At least 1.
    then : callable, optional
        What is done to the network at the end.
    """

    phase: loop.Phase
    steps: int
    then: Callable[[], None] | None = None


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
    """Return the network after all stretches, and the steps of all.

    Each stretch begins with the averaged weights of the one before, and has a schedule and an
    optimiser of its own. Steps in reports and checkpoints count from the beginning of the run.

    Parameters
    ----------
    stretches : sequence of Stretch
        In order.
    seed, device, ema_fraction, on_progress, checkpoint, checkpoint_seconds, restored
        As for :func:`.loop.train`.

    Raises
    ------
    DivergedError, ParameterError
        As :func:`.loop.train`.
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
            on_progress=_counted(on_progress, before),
            checkpoint=_placed(checkpoint, before, total),
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
    """Return how long a step takes in the mean; the network is not to be used afterwards.

    The steps of the stretches say how much each counts.
    """
    total = sum(stretch.steps for stretch in stretches)
    return sum(
        stretch.steps / total * loop.seconds_per_step(stretch.phase, seed=seed, device=device)
        for stretch in stretches
    )


def _counted(report: loop.Report | None, before: int) -> loop.Report | None:
    """Return a report that counts the steps of all stretches."""
    if report is None:
        return None

    def counted(step: int, scalars: Mapping[str, float]) -> None:
        report(before + step, dict(scalars))

    return counted


def _placed(
    keep: Callable[[loop.Checkpoint], None] | None, before: int, total: int
) -> Callable[[loop.Checkpoint], None] | None:
    """Return a keeper of checkpoints that say where in the whole run they are."""
    if keep is None:
        return None

    def placed(state: loop.Checkpoint) -> None:
        config, arrays = state
        keep(({**config, "step": before + config["step"], "n_steps": total}, arrays))

    return placed


def _local(state: loop.Checkpoint | None, before: int, steps: int) -> loop.Checkpoint | None:
    """Return a checkpoint as its stretch wrote it."""
    if state is None:
        return None
    return {**state[0], "step": state[0]["step"] - before, "n_steps": steps}, state[1]
