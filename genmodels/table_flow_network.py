"""The networks of :class:`.table_flow.TableFlow`, and how records are drawn from them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefect_augment.genmodels.table_codes import CodeLayout, bounded, drawn_code
from prefect_augment.training.mlp import ResidualMLP
from prefect_augment.training.networks import FourierFeatures

__all__ = ["FlowNetwork", "carried", "draw_choices"]

N_TIMES = 16  # features of the place on the line
MAX_FREQUENCY = 30.0
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
        self.layout = CodeLayout(n_codes)
        total = self.layout.total
        if n_codes:
            self.choices = ResidualMLP(total + n_classes, total, width=width, depth=depth)
        if n_scores:
            self.times = FourierFeatures(N_TIMES, max_frequency=MAX_FREQUENCY)
            n_in = total + n_classes + n_scores + N_TIMES
            # Smooth functions: half the width is as good, and is learnt by heart later.
            self.scores = ResidualMLP(n_in, n_scores, width=max(8, width // 2), depth=depth)

    def seen(self, codes: Tensor, y: Tensor, shown: Tensor | None = None) -> Tensor:
        """Return codes and class as zeros and ones, (n, n_codes + n_classes); hidden codes are zeros.

        Parameters
        ----------
        codes : Tensor of int64, shape (n, n_choices)
        y : Tensor of int64, shape (n,)
        shown : Tensor of bool, shape (n, n_choices), optional
        """
        classes = F.one_hot(y, self.n_classes).float()
        return torch.cat([self.layout.one_hot(codes, shown), classes], dim=1)

    def logits(self, known: Tensor) -> Tensor:
        """Return what each code's probability is the exponential of, but for its choice's sum."""
        return bounded(self.choices(known))

    def velocity(self, known: Tensor, x: Tensor, t: Tensor, has_score: Tensor) -> Tensor:
        """Return the velocity of the scores, (n, n_scores)."""
        return self.scores(torch.cat([known, x * has_score, self.times(t)], dim=1))


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
            logits = bounded(network.choices.head(h, network.layout.columns(i)))
            codes[:, i] = drawn_code(logits, uniforms[:, i : i + 1])
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
