"""The networks of :class:`.table_flow.TableFlow`, and how records are drawn from them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefect_augment.genmodels.tables.mixed_encoding import CodeLayout, bounded, drawn_code
from prefect_augment.nn.networks import FourierFeatures, ResidualMLP

__all__ = [
    "N_TRIED",
    "FlowNetwork",
    "carried",
    "draw_choices",
    "draw_choices_given",
    "drawing_order",
]

N_TIMES = 16  # features of the place on the line
MAX_FREQUENCY = 30.0
ROUNDS = 32  # of drawing choices; where there are more, several are drawn at once
N_TRIED = 8  # draws of which one is taken where values are given


class FlowNetwork(nn.Module):
    """The two networks; a child that there is nothing for is left out.

    Parameters
    ----------
    n_codes : tuple of int
        Codes of each choice.
    n_scores, n_classes : int
        Columns with scores; classes.
    width, depth : int
        Of each network.
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
            self.scores = ResidualMLP(n_in, n_scores, width=width, depth=depth)

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
    network: FlowNetwork, y: Tensor, uniforms: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Return one code per choice, each drawn from its posterior given the class and those before.

    Parameters
    ----------
    y : Tensor of int64, shape (n,)
    uniforms : Tensor of float64, shape (n, n_choices)
        Random numbers in [0, 1).
    bias : Tensor of float32, shape (n_classes, n_codes), optional
        Added to the logits.

    Returns
    -------
    Tensor of int64, shape (n, n_choices)
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


def draw_choices_given(
    network: FlowNetwork, y: Tensor, uniforms: Tensor, given: Mapping[int, int]
) -> Tensor:
    """Return one code per choice, some of which are given.

    Choices are drawn as if nothing were given from posteriors that see what is, which the network
    has learnt less well; so every record is drawn several times, and one of the draws is taken in
    proportion to what it lacks: the probability of its codes and of the given ones as they are drawn
    without any, over the probability that it was drawn with (Rubin 1987, sampling and importance
    resampling).

    Parameters
    ----------
    y : Tensor of int64, shape (n,)
    uniforms : Tensor of float64, shape (n, N_TRIED * n_choices + 1)
        Random numbers in [0, 1).
    given : mapping of int to int
        Code by choice.

    Returns
    -------
    Tensor of int64, shape (n, n_choices)
    """
    n, n_choices = len(y), len(network.n_codes)
    classes = y.repeat_interleave(N_TRIED)
    numbers = uniforms[:, :-1].reshape(n * N_TRIED, n_choices)
    codes = torch.zeros(numbers.shape, dtype=torch.int64, device=y.device)
    before = torch.zeros(codes.shape, dtype=torch.bool, device=y.device)
    shown = before.clone()
    for i, code in given.items():
        codes[:, i], shown[:, i] = code, True
    weight = torch.zeros(len(codes), dtype=torch.float64, device=y.device)
    for together in drawn_together(n_choices):
        wise = network.choices.body(network.seen(codes, classes, shown))
        plain = network.choices.body(network.seen(codes, classes, before))
        for i in together:
            columns = network.layout.columns(i)
            if i not in given:
                logits = bounded(network.choices.head(wise, columns)).double()
                codes[:, i] = drawn_code(logits, numbers[:, i : i + 1])
                weight -= _log_share(logits, codes[:, i])
            logits = bounded(network.choices.head(plain, columns)).double()
            weight += _log_share(logits, codes[:, i])
        before[:, together], shown[:, together] = True, True
    chosen = drawn_code(weight.reshape(n, N_TRIED).log_softmax(dim=1), uniforms[:, -1:])
    return codes.reshape(n, N_TRIED, n_choices)[torch.arange(n, device=y.device), chosen]


def drawn_together(n_choices: int) -> list[list[int]]:
    """Return the choices that are drawn at once, first to last.

    Columns that stand side by side often belong together: they are not drawn at once.
    """
    n_rounds = min(ROUNDS, n_choices)
    return [list(range(start, n_choices, n_rounds)) for start in range(n_rounds)]


def drawing_order(n_choices: int) -> Tensor:
    """Return the choices in the order in which they are drawn, (n_choices,) of int64."""
    in_turn = [i for together in drawn_together(n_choices) for i in together]
    return torch.tensor(in_turn, dtype=torch.int64)


def _log_share(logits: Tensor, codes: Tensor) -> Tensor:
    """Return the logarithm of the probability of a choice's codes, (n,)."""
    return logits.log_softmax(dim=1).gather(1, codes[:, None])[:, 0]


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
