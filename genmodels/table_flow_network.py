"""The networks of :class:`.table_flow.TableFlow`, and how records are drawn from them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from prefect_augment.training.mlp import ResidualMLP
from prefect_augment.training.networks import FourierFeatures

__all__ = ["FlowNetwork", "bounded", "carried", "draw_choices"]

N_TIMES = 16  # features of the place on the line
MAX_FREQUENCY = 30.0
MAX_LOGIT = 20.0  # softly: sums over the codes of a choice then need no maximum taken out
ROUNDS = 32  # of drawing choices; where there are more, several are drawn at once


class FlowNetwork(nn.Module):
    """The two networks; a child that there is nothing for is left out.

    Parameters
    ----------
    n_codes : tuple of int
        Codes of each choice.
    n_scores, n_classes : int
        Columns with scores; classes.
    width, depth : int
        Of the network of choices; that of scores has half the width.
    """

    def __init__(
        self, n_codes: tuple[int, ...], n_scores: int, n_classes: int, *, width: int, depth: int
    ) -> None:
        super().__init__()
        self.n_codes, self.n_scores, self.n_classes = n_codes, n_scores, n_classes
        total = sum(n_codes)
        self.starts = np.concatenate([[0], np.cumsum(n_codes)]).astype(np.int64)
        self.offsets: Tensor
        self.owner: Tensor
        self.register_buffer("offsets", torch.from_numpy(self.starts[:-1].copy()), persistent=False)
        # Which choice a code belongs to: sums over codes are products with it, the same every time.
        owner = torch.zeros(total, len(n_codes))
        owner[torch.arange(total), torch.repeat_interleave(torch.tensor(n_codes).long())] = 1.0
        self.register_buffer("owner", owner, persistent=False)
        if n_codes:
            self.choices = ResidualMLP(total + n_classes, total, width=width, depth=depth)
        if n_scores:
            self.times = FourierFeatures(N_TIMES, max_frequency=MAX_FREQUENCY)
            n_in = total + n_classes + n_scores + N_TIMES
            # Smooth functions: half the width is as good, and is learnt by heart later.
            self.scores = ResidualMLP(n_in, n_scores, width=max(8, width // 2), depth=depth)
        if not self.parts:  # optimisers want something to hold
            self.nothing = nn.Parameter(torch.zeros(()))

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the children that are trained."""
        return ("choices",) * bool(self.n_codes) + ("scores",) * bool(self.n_scores)

    def seen(self, codes: Tensor, y: Tensor, shown: Tensor | None = None) -> Tensor:
        """Return codes and class as zeros and ones, (n, n_codes + n_classes); hidden codes are zeros.

        Parameters
        ----------
        codes : Tensor of int64, shape (n, n_choices)
        y : Tensor of int64, shape (n,)
        shown : Tensor of bool, shape (n, n_choices), optional
        """
        ones = torch.ones(codes.shape, device=codes.device) if shown is None else shown.float()
        known = torch.zeros(len(codes), self.owner.shape[0] + self.n_classes, device=codes.device)
        known.scatter_(1, codes + self.offsets, ones)
        known.scatter_(1, (y + self.owner.shape[0])[:, None], 1.0)
        return known

    def logits(self, known: Tensor) -> Tensor:
        """Return what each code's probability is the exponential of, but for its choice's sum."""
        return bounded(self.choices(known))

    def velocity(self, known: Tensor, x: Tensor, t: Tensor, has_score: Tensor) -> Tensor:
        """Return the velocity of the scores, (n, n_scores)."""
        return self.scores(torch.cat([known, x * has_score, self.times(t)], dim=1))


def bounded(logits: Tensor) -> Tensor:
    """Return logits pressed softly into what an exponential can bear."""
    return MAX_LOGIT * torch.tanh(logits / MAX_LOGIT)


def draw_choices(
    network: FlowNetwork, y: Tensor, uniforms: Tensor, given: Mapping[int, int] | None = None
) -> Tensor:
    """Return one code per choice, each drawn from its posterior given the class and those before.

    Parameters
    ----------
    y : Tensor of int64, shape (n,)
    uniforms : Tensor of float64, shape (n, n_choices)
        Random numbers in [0, 1).
    given : mapping of int to int, optional
        Code by choice: what every record has, and all other choices follow.

    Returns
    -------
    Tensor of int64, shape (n, n_choices)
    """
    n_choices = len(network.n_codes)
    codes = torch.zeros(len(y), n_choices, dtype=torch.int64, device=y.device)
    shown = torch.zeros(codes.shape, dtype=torch.bool, device=y.device)
    for i, code in (given or {}).items():
        codes[:, i], shown[:, i] = code, True
    n_rounds = min(ROUNDS, n_choices)
    for start in range(n_rounds):
        # Columns that stand side by side often belong together: they are not drawn at once.
        together = [i for i in range(start, n_choices, n_rounds) if i not in (given or {})]
        if not together:
            continue
        h = network.choices.body(network.seen(codes, y, shown))
        for i in together:
            columns = slice(int(network.starts[i]), int(network.starts[i + 1]))
            mass = bounded(network.choices.head(h, columns)).double().exp().cumsum(dim=1)
            place = (mass <= uniforms[:, i : i + 1] * mass[:, -1:]).sum(dim=1)
            codes[:, i] = place.clamp_(max=network.n_codes[i] - 1)
        shown[:, together] = True
    return codes


def carried(
    network: FlowNetwork, known: Tensor, noise: Tensor, has_score: Tensor, n_steps: int
) -> Tensor:
    """Return where the velocity carries the noise from t = 0 to 1, by the midpoint rule."""
    x, h = noise, 1.0 / n_steps
    for step in range(n_steps):
        t = torch.full((len(x),), step * h, device=x.device)
        middle = x + 0.5 * h * network.velocity(known, x, t, has_score)
        x = x + h * network.velocity(known, middle, t + 0.5 * h, has_score)
    return x
