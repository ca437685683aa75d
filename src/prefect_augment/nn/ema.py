"""Exponential moving average of weights, whose memory grows with the run."""

from __future__ import annotations

import copy

import torch
from torch import nn

__all__ = ["HALF_LIFE_FRACTION", "Ema", "decay"]

# Share of the images seen so far after which a weight counts half. EDM's fixed 500,000 images give
# "only noise" after a short run; research on these data sets found 5 %.
HALF_LIFE_FRACTION = 0.05


def decay(step: int, *, fraction: float = HALF_LIFE_FRACTION) -> float:
    """Return what the average keeps of itself at a step.

    Parameters
    ----------
    step : int
        Steps taken, from 1.
    fraction : float
        Half-life as a share of the steps taken.

    Returns
    -------
    float
        ``0.5 ** (1 / (fraction * step))``, and at most ``(1 + step) / (10 + step)``, so that the
        random start is forgotten at once.

    References
    ----------
    Karras et al. 2022 (EDM), the ramp-up of its half-life; with no upper end here.
    """
    return min(0.5 ** (1.0 / max(fraction * step, 1e-9)), (1.0 + step) / (10.0 + step))


class Ema:
    """The averaged copy of a network.

    Parameters
    ----------
    network : nn.Module
        Copied now; its buffers are taken over as they are at each update.
    fraction : float
        Half-life as a share of the steps taken.
    """

    def __init__(self, network: nn.Module, *, fraction: float = HALF_LIFE_FRACTION) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        self.fraction = fraction
        # Found once: to walk through all modules takes longer than to average a small network.
        self._ours, self._theirs = list(self.network.parameters()), list(network.parameters())
        self._of = network

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards ``network`` after ``step`` steps."""
        weight = 1.0 - decay(step, fraction=self.fraction)
        if network is not self._of:
            self._theirs, self._of = list(network.parameters()), network
        torch._foreach_lerp_(self._ours, self._theirs, weight)
        for mine, new in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(new)
