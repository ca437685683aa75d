"""The networks of :class:`.TableFlow`, and how records are drawn from them."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefect_augment.genmodels.tables.mixed_encoding import (
    CodeLayout,
    bounded,
    drawn_code,
    drawn_together,
)
from prefect_augment.nn.networks import FourierFeatures, ResidualMLP

__all__ = [
    "N_TRIED",
    "FlowNetwork",
    "draw_choices",
    "draw_choices_with_values",
    "drawing_order",
    "integrate_scores",
]

N_TIMES = 16  # features of the time
MAX_FREQUENCY = 30.0
N_TRIED = 8  # proposals per record with fixed values


class FlowNetwork(nn.Module):
    """The networks of choices and of scores; one without work is left out."""

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
            self.scores = ResidualMLP(n_in, n_scores, width=width, depth=depth)

    def seen(self, codes: Tensor, y: Tensor, shown: Tensor | None = None) -> Tensor:
        """One-hot codes and class, (n, n_codes + n_classes); hidden codes are zeros."""
        classes = F.one_hot(y, self.n_classes).float()
        return torch.cat([self.layout.one_hot(codes, shown), classes], dim=1)

    def logits(self, known: Tensor) -> Tensor:
        """Bounded logits of all codes, (n, total)."""
        return bounded(self.choices(known))

    def velocity(self, known: Tensor, x: Tensor, t: Tensor, has_score: Tensor) -> Tensor:
        """Velocity of the scores, (n, n_scores)."""
        return self.scores(torch.cat([known, x * has_score, self.times(t)], dim=1))


def draw_choices(
    network: FlowNetwork, y: Tensor, uniforms: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Draw one code per choice from its posterior given the class and those before, (n, n_choices).

    ``uniforms`` (n, n_choices) are in [0, 1); ``bias`` (n_classes, n_codes) is added to the logits.
    """
    codes = torch.zeros(uniforms.shape, dtype=torch.int64, device=y.device)
    shown = torch.zeros(codes.shape, dtype=torch.bool, device=y.device)
    for together in drawn_together(len(network.n_codes)):
        h = network.choices.body(network.seen(codes, y, shown))
        for i in together:
            columns = network.layout.columns(i)
            logits = bounded(network.choices.head(h, columns))
            if bias is not None:
                logits = logits + bias[y, columns]
            codes[:, i] = drawn_code(logits, uniforms[:, i : i + 1])
        shown[:, together] = True
    return codes


def draw_choices_with_values(
    network: FlowNetwork, y: Tensor, uniforms: Tensor, fixed: Mapping[int, int]
) -> Tensor:
    """Draw one code per choice with some of them fixed, (n, n_choices).

    The network has learnt less well to condition on arbitrary fixed codes. So every record is
    proposed several times with the fixed codes shown, and one proposal is resampled by its
    importance weight: the probability of all its codes in normal drawing order over the probability
    it was proposed with (Rubin 1987, sampling and importance resampling). ``uniforms`` are (n,
    N_TRIED * n_choices + 1).
    """
    n, n_choices = len(y), len(network.n_codes)
    classes = y.repeat_interleave(N_TRIED)
    numbers = uniforms[:, :-1].reshape(n * N_TRIED, n_choices)
    codes = torch.zeros(numbers.shape, dtype=torch.int64, device=y.device)
    before = torch.zeros(codes.shape, dtype=torch.bool, device=y.device)
    shown = before.clone()
    for i, code in fixed.items():
        codes[:, i], shown[:, i] = code, True
    weight = torch.zeros(len(codes), dtype=torch.float64, device=y.device)
    for together in drawn_together(n_choices):
        conditioned = network.choices.body(network.seen(codes, classes, shown))
        unconditioned = network.choices.body(network.seen(codes, classes, before))
        for i in together:
            columns = network.layout.columns(i)
            if i not in fixed:
                logits = bounded(network.choices.head(conditioned, columns)).double()
                codes[:, i] = drawn_code(logits, numbers[:, i : i + 1])
                weight -= _log_share(logits, codes[:, i])
            logits = bounded(network.choices.head(unconditioned, columns)).double()
            weight += _log_share(logits, codes[:, i])
        before[:, together], shown[:, together] = True, True
    chosen = drawn_code(weight.reshape(n, N_TRIED).log_softmax(dim=1), uniforms[:, -1:])
    return codes.reshape(n, N_TRIED, n_choices)[torch.arange(n, device=y.device), chosen]


def drawing_order(n_choices: int) -> Tensor:
    """The choices in the order of drawing, (n_choices,) of int64."""
    in_turn = [i for together in drawn_together(n_choices) for i in together]
    return torch.tensor(in_turn, dtype=torch.int64)


def _log_share(logits: Tensor, codes: Tensor) -> Tensor:
    """Log probability of a choice's codes, (n,)."""
    return logits.log_softmax(dim=1).gather(1, codes[:, None])[:, 0]


def integrate_scores(
    network: FlowNetwork, known: Tensor, noise: Tensor, has_score: Tensor, n_steps: int
) -> Tensor:
    """Integrate the velocity from noise at t = 0 to 1 by the midpoint rule."""
    x, h = noise, 1.0 / n_steps
    for step in range(n_steps):
        t = torch.full((len(x),), step * h, device=x.device)
        middle = x + 0.5 * h * network.velocity(known, x, t, has_score)
        x = x + h * network.velocity(known, middle, t + 0.5 * h, has_score)
    return x
