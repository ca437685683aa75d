"""Restricted Boltzmann machines: layers learnt one by one, each from what the one below makes.

A machine of visible units v and hidden ones h has the energy
``E(v, h) = E(v) - b·v - c·h - h·Wv + E(h)``, with ``E(v) = |v|²/2`` where visible units are real
numbers of variance 1 (pixels), and 0 where they are 0 or 1; the same for hidden units.

References
----------
Hinton & Salakhutdinov 2006, "Reducing the Dimensionality of Data with Neural Networks": a stack of
machines, unrolled into an encoder and a decoder. Hinton 2002, "Training Products of Experts by
Minimizing Contrastive Divergence".
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Units", "contrastive_divergence", "free_energy"]

Units = Literal["binary", "real"]


def free_energy(
    v: Tensor, up: nn.Linear, visible_bias: Tensor, *, visible: Units, hidden: Units
) -> Tensor:
    """Return -log of the sum (or integral) over h of exp(-E(v, h)), but for a constant, (n,).

    Parameters
    ----------
    v : Tensor, shape (n, n_visible)
    up : nn.Linear
        W, of shape (n_hidden, n_visible), and c.
    visible_bias : Tensor, shape (n_visible,)
        b.
    visible, hidden : {"binary", "real"}
        What the units are.
    """
    sums = F.linear(v, up.weight, up.bias)
    of_hidden = F.softplus(sums) if hidden == "binary" else 0.5 * sums**2
    own = 0.5 * (v**2).sum(dim=1) if visible == "real" else 0.0
    return own - v @ visible_bias - of_hidden.sum(dim=1)


def contrastive_divergence(
    v: Tensor,
    up: nn.Linear,
    visible_bias: Tensor,
    numbers: Tensor,
    *,
    visible: Units,
    hidden: Units,
) -> Tensor:
    """Return a loss whose gradient is that of CD-1: F(v) less F of what comes back, in the mean.

    Hidden units are drawn; visible ones come back as means, which has less noise (Hinton 2012, "A
    Practical Guide to Training Restricted Boltzmann Machines", section 3).

    Parameters
    ----------
    v : Tensor, shape (n, n_visible)
    up, visible_bias, visible, hidden
        As for :func:`free_energy`.
    numbers : Tensor, shape (n, n_hidden)
        Uniform in [0, 1) for binary hidden units, standard normal for real ones.
    """
    with torch.no_grad():
        sums = F.linear(v, up.weight, up.bias)
        drawn = (
            (numbers < torch.sigmoid(sums)).to(sums.dtype) if hidden == "binary" else sums + numbers
        )
        back = F.linear(drawn, up.weight.T, visible_bias)
        if visible == "binary":
            back = torch.sigmoid(back)
    kinds: dict[str, Units] = {"visible": visible, "hidden": hidden}
    energies = free_energy(v, up, visible_bias, **kinds)
    return (energies - free_energy(back, up, visible_bias, **kinds)).mean()
