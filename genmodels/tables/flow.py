"""Flow matching for tables: discrete choices first, then scores along straight lines.

:class:`.MixedSpace` maps a record to codes ``c`` (categories, atoms, nulls) and normal scores
``x``; p(c, x | y) = p(c | y) p(x | c, y), with one network each:

- ``choices`` are learnt masked, as a discrete flow: some codes of a record are hidden, and the
  network predicts each hidden one from the visible ones, by cross-entropy (Hoogeboom et al. 2022,
  "Autoregressive Diffusion Models", equation 5; Campbell et al. 2024, "Generative Flows on Discrete
  State-Spaces", section 3). They are drawn one after the other from their posteriors, which keeps
  their dependence; training mostly hides the last ones, as drawing does.
- ``scores`` are carried from noise to the record along straight lines by the mean velocity E[x1 -
  x0 | x_t, t, c, y] (Lipman et al. 2023, equation 23 with sigma_min = 0), with the codes known:
  whether a value is null or an atom is fixed before it moves.

Classes are drawn with p ∝ n_k**q and share one network, so a rare class borrows common structure.
Early stopping holds out a tenth of the records. Finally each column's marginal is matched to that
of the class's training records (:mod:`.flow_marginals`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefect_augment.array_types import Float, Int
from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.base import Arrays, Config, FitContext, TableData
from prefect_augment.genmodels.counter_rng import seeds_from
from prefect_augment.genmodels.network import RecordNumbers
from prefect_augment.genmodels.tables.flow_marginals import (
    N_ROUNDS,
    Compared,
    Margins,
    classes_to_draw,
    score_shifts,
    share_bias,
)
from prefect_augment.genmodels.tables.mixed_encoding import (
    CodeLayout,
    MixedSpace,
    bounded,
    drawn_code,
    drawn_together,
)
from prefect_augment.genmodels.tables.network import TableNetwork
from prefect_augment.genmodels.tables.training import Encoded, TablePhase
from prefect_augment.nn.networks import FourierFeatures, ResidualMLP
from prefect_augment.params import FlowModel

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


# Share of records whose hidden codes are the last to be drawn, as in drawing; and share of all records
# with one of these shown all the same, as with a fixed value.
IN_ORDER, SHOW_ONE = 0.8, 0.4
SCORED = 2  # scores learn from every second record: smooth functions are learnt sooner


class FlowPhase(TablePhase):
    """Both networks, on the same records."""

    name = "table-flow"
    together = SCORED

    @staticmethod
    def noisy(records: Encoded, rows: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Codes, which of them are shown, classes, scores, has_score, noise and times of a batch.

        The number of hidden codes (1 to all) and the times are stratified over the batch, which lowers
        the variance of the loss.
        """
        n, device = len(rows), rows.device
        codes, n_choices = records.codes[rows], records.codes.shape[1]
        even = (torch.arange(n, device=device) + torch.rand(n, generator=rng, device=device)) / n
        n_hidden = 1 + (even * n_choices).long().clamp_(max=n_choices - 1)
        order = torch.rand(codes.shape, generator=rng, device=device).argsort(dim=1).argsort(dim=1)
        kind = torch.rand(n, generator=rng, device=device)
        last_first = n_choices - 1 - drawing_order(n_choices).argsort().to(device)
        shown = torch.where(kind[:, None] < IN_ORDER, last_first, order) >= n_hidden[:, None]
        shows_one = (kind < SHOW_ONE) & (n_hidden > 1)
        shown |= shows_one[:, None] & (order == n_choices - 1)
        scores = records.drawn_scores(rows, rng)
        noise = torch.randn(scores.shape, generator=rng, device=device)
        t = (torch.arange(n, device=device) + torch.rand(n, generator=rng, device=device)) / n
        return codes, shown, records.y[rows], scores, records.has_score[rows], noise, t

    @staticmethod
    def part_losses(
        network: FlowNetwork, batch: tuple[Tensor, ...], frozen: frozenset[str] = frozenset()
    ) -> dict[str, Tensor]:
        """Mean loss of each part of the network that is not frozen.

        ``choices``: cross-entropy of the hidden codes, averaged per record (Hoogeboom et al. 2022,
        equation 5, over the number of choices), plus that of the first hidden one: it is drawn next,
        and would count little where many are hidden. ``scores``: squared error of the velocity.
        """
        codes, shown, y, scores, has_score, noise, t = batch
        losses: dict[str, Tensor] = {}
        if network.n_codes and "choices" not in frozen:
            logits = network.logits(network.seen(codes, y, shown))
            loss = network.layout.cross_entropy(logits, codes)
            hidden = ~shown
            in_turn = drawing_order(len(network.n_codes)).to(codes.device)
            following = loss.gather(1, in_turn[hidden[:, in_turn].float().argmax(1)][:, None])[:, 0]
            losses["choices"] = ((loss * hidden).sum(1) / hidden.sum(1) + following).mean()
        if network.n_scores and "scores" not in frozen:
            codes, y, scores, has_score, noise, t = (
                part[::SCORED] for part in (codes, y, scores, has_score, noise, t)
            )
            x = torch.lerp(noise, scores, t[:, None])
            error = network.velocity(network.seen(codes, y), x, t, has_score) - (scores - noise)
            losses["scores"] = (error**2 * has_score).mean()
        return losses


class TableFlow(TableNetwork[FlowModel, FlowNetwork]):
    """One pair of networks for all classes; see the module."""

    params_class = FlowModel
    phase_class = FlowPhase
    patience = 6  # the last steps, at small rates, improve most
    margins: Margins | None = None  # None while training, and where no column varies

    def fit(self, data: TableData, ctx: FitContext) -> None:
        """Train like :meth:`.TableNetwork.fit`, then match the marginals to those of the records."""
        self.margins = None
        super().fit(data, ctx)
        if self.trains:
            self._fit_margins(data, ctx.seed)

    def new_network(self) -> FlowNetwork:
        """Both networks."""
        return FlowNetwork(
            self.space.n_codes,
            self.space.n_scores,
            self.spec.n_classes,
            width=self.params.width,
            depth=self.params.depth,
        )

    def sample_with_values(
        self, conditions: Int, *, seeds: Int, values: Mapping[int, float]
    ) -> tuple[Int, Float]:
        """Draw records with fixed column values; see :class:`.SamplesWithValues`.

        Raises ParameterError if no training record has a requested value.
        """
        fixed = read_values(self.space, values)
        return fixed.keep(
            self.sampled(conditions, seeds, partial(self.draw, fixed_codes=fixed.codes))
        )

    def draw(
        self,
        network: FlowNetwork,
        y: Tensor,
        numbers: RecordNumbers,
        fixed_codes: Mapping[int, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw choices one after the other, then carry scores from noise; ``fixed_codes`` are by choice."""
        codes, scores = self._drawn_choices(network, y, numbers, fixed_codes)
        if network.n_scores:
            known, has_score = network.seen(codes, y), self.has_score(codes)
            scores = integrate_scores(network, known, scores, has_score, self.params.sampler_steps)
            if self.margins is not None:
                scores = self.margins.shifted(scores, y)
        return codes, scores

    def _drawn_choices(
        self,
        network: FlowNetwork,
        y: Tensor,
        numbers: RecordNumbers,
        fixed_codes: Mapping[int, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Codes, and the noise that scores are carried from."""
        noise = numbers.normals(network.n_scores)
        n_choices = len(network.layout)
        if fixed_codes:
            # The marginals were matched without fixed values and do not apply here.
            uniforms = numbers.uniforms(N_TRIED * n_choices + 1)
            return draw_choices_with_values(network, y, uniforms, fixed_codes), noise
        bias = None if self.margins is None else self.margins.bias
        return draw_choices(network, y, numbers.uniforms(n_choices), bias), noise

    def _fit_margins(self, data: TableData, seed: int) -> None:
        """Draw records, and fit what matches their marginals to those of the training records."""
        network, n_classes = self.network, self.spec.n_classes
        real = self._compared(data.X, data.y, seed)
        counts = np.bincount(data.y, minlength=n_classes)
        y = classes_to_draw(counts, self.spec.n_columns, seed)
        seeds = seeds_from(seed, 1, len(y))
        margins = Margins.none(n_classes, network.layout.total, network.n_scores, self.device.torch)
        for _ in range(N_ROUNDS if network.n_codes else 0):
            self.margins = margins
            drawn = self._compared(self.drawn(network, y, seeds, self._drawn_choices), y, seed)
            bias = share_bias(network.layout, real, drawn, n_classes)
            margins = replace(margins, bias=margins.bias + bias.to(margins.bias.device))
        self.margins = margins
        if network.n_scores:
            drawn = self._compared(self.drawn(network, y, seeds), y, seed)
            knots, shifts = (
                part.to(margins.bias.device) for part in score_shifts(real, drawn, n_classes)
            )
            self.margins = replace(margins, knots=knots, shifts=shifts)

    def _compared(self, X: Float, y: Int, seed: int) -> Compared:
        """Records for matching; a shared value is placed at random within its ranks."""
        low, high, has_score = self.space.ranks(X)
        place = np.random.default_rng([seed & 0xFFFFFFFF, 3]).random(low.shape)
        scores = self.space.normal_scores(low + place * (high - low))
        return Compared(self.space.codes(X), scores, has_score, y)

    def extra_state(self) -> tuple[Config, Arrays]:
        """The space, and the marginals."""
        config, arrays = super().extra_state()
        return config, arrays | ({} if self.margins is None else self.margins.state())

    def load_extra_state(self, config: Config, arrays: Arrays) -> None:
        """Inverse of :meth:`extra_state`."""
        super().load_extra_state(config, arrays)
        if self.trains:
            self.margins = Margins.from_state(arrays, self.device.torch)


NEAR_SHARE = 0.01  # of all records with a score that match a rare value


@dataclass(frozen=True)
class FixedValues:
    """Fixed values in the form in which a model draws them."""

    codes: dict[int, int]  # by choice, shown from the start
    near: dict[int, tuple[float, float]]  # by column, the interval of values that match
    values: dict[int, float]  # by column of the matrix form

    def keep(self, X: Float) -> tuple[Int, Float]:
        """Indices of the drawn records that match, and these with the exact values."""
        has = np.ones(len(X), dtype=bool)
        for j, (low, high) in self.near.items():
            has &= (X[:, j] >= low) & (X[:, j] <= high)
        kept = np.flatnonzero(has)
        X = X[kept]
        for j, value in self.values.items():
            X[:, j] = value
        return kept, X


def read_values(space: MixedSpace, requested: Mapping[int, float]) -> FixedValues:
    """Convert values by column to choices and intervals of matching values; NaN requests a missing one.

    Raises ParameterError if no training record has the value and none lies on both sides of it.
    """
    codes: dict[int, int] = {}
    near: dict[int, tuple[float, float]] = {}
    for j, value in requested.items():
        places = space.places_of(j, value)
        if places is None:
            raise ParameterError(
                f"no training record has the requested value in column {space.spec.names[j]!r}; "
                "choose another value, or leave the column out.",
                column=space.spec.names[j],
            )
        codes |= places.codes
        for i, (low, high) in places.ranks.items():
            missing = max(0.0, NEAR_SHARE - (high - low)) / 2
            low, high = low - missing, high + missing
            # At an end of the ranks the window extends to the other side.
            low, high = max(0.0, low - max(0.0, high - 1)), min(1.0, high - min(0.0, low))
            first, last = space.scores[i].values_at(np.array([low, high])).tolist()
            near[j] = min(first, value), max(last, value)
    return FixedValues(codes, near, dict(requested))
