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
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefect_augment.genmodels.base import Arrays, FitContext, TableData, TableSpec
from prefect_augment.genmodels.counter_rng import seeds_from
from prefect_augment.genmodels.record_numbers import RecordNumbers
from prefect_augment.genmodels.tables.flow_conditional import read_values
from prefect_augment.genmodels.tables.flow_marginals import (
    N_ROUNDS,
    Compared,
    Margins,
    classes_to_draw,
    score_shifts,
    share_bias,
)
from prefect_augment.genmodels.tables.flow_network import (
    N_TRIED,
    FlowNetwork,
    draw_choices,
    draw_choices_with_values,
    drawing_order,
    integrate_scores,
)
from prefect_augment.genmodels.tables.mixed_encoding import MixedSpace
from prefect_augment.genmodels.tables.network import TableNetwork
from prefect_augment.genmodels.tables.training import Encoded, TablePhase
from prefect_augment.params import FlowModel

__all__ = ["FlowPhase", "TableFlow"]

# Share of records whose hidden codes are the last to be drawn, as in drawing; and share of all records
# with one of these shown all the same, as with a fixed value.
IN_ORDER, SHOW_ONE = 0.8, 0.4
SCORED = 2  # scores learn from every second record: smooth functions are learnt sooner


class TableFlow(TableNetwork[FlowModel, FlowNetwork]):
    """One pair of networks for all classes; see the module."""

    params_class = FlowModel
    patience = 6  # the last steps, at small rates, improve most

    def __init__(self, params: FlowModel, spec: TableSpec) -> None:
        super().__init__(params, spec)
        self.margins: Margins | None = None  # None while training, and where no column varies

    def fit(self, data: TableData, ctx: FitContext) -> None:
        """Train like :meth:`.TableNetwork.fit`, then match the marginals to those of the records."""
        self.margins = None
        super().fit(data, ctx)
        if self.space.n_codes or self.space.n_scores:
            self._fit_margins(data, ctx.seed)

    def new_network(self, space: MixedSpace) -> FlowNetwork:
        """Both networks."""
        return FlowNetwork(
            space.n_codes,
            space.n_scores,
            self.spec.n_classes,
            width=self.params.width,
            depth=self.params.depth,
        )

    def new_phase(
        self, network: FlowNetwork, records: Encoded, space: MixedSpace, batch_size: int
    ) -> "FlowPhase":
        """Train both at once; they share no weight."""
        return FlowPhase(
            network, records, self.params, batch_size=batch_size, n_classes=self.spec.n_classes
        )

    def sample_with_values(
        self,
        conditions: NDArray[np.int64],
        *,
        seeds: NDArray[np.int64],
        values: Mapping[int, float],
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
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
            has_score = torch.from_numpy(self.space.has_score(codes.cpu().numpy())).to(y.device)
            known = network.seen(codes, y)
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
        seeds = seeds_from(seed & 0xFFFFFFFFFFFFFFFF, 1, len(y))
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

    def _compared(self, X: NDArray[np.float64], y: NDArray[np.int64], seed: int) -> Compared:
        """Records for matching; a shared value is placed at random within its ranks."""
        low, high, has_score = self.space.ranks(X)
        place = np.random.default_rng([seed & 0xFFFFFFFF, 3]).random(low.shape)
        scores = self.space.normal_scores(low + place * (high - low))
        return Compared(self.space.codes(X), scores, has_score, y)

    def extra_state(self) -> Arrays:
        """The marginals."""
        return {} if self.margins is None else self.margins.state()

    def load_extra_state(self, arrays: Arrays) -> None:
        """Inverse of :meth:`extra_state`."""
        if self._network is not None:
            self.margins = Margins.from_state(arrays, self.device.torch)


class FlowPhase(TablePhase):
    """Both networks, on the same records."""

    name = "table-flow"

    @staticmethod
    def noisy(data: Encoded, rows: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Codes, which of them are shown, classes, scores, has_score, noise and times of a batch.

        The number of hidden codes (1 to all) and the times are stratified over the batch, which lowers
        the variance of the loss.
        """
        n, device = len(rows), rows.device
        codes, n_choices = data.codes[rows], data.codes.shape[1]
        even = (torch.arange(n, device=device) + torch.rand(n, generator=rng, device=device)) / n
        n_hidden = 1 + (even * n_choices).long().clamp_(max=n_choices - 1)
        order = torch.rand(codes.shape, generator=rng, device=device).argsort(dim=1).argsort(dim=1)
        kind = torch.rand(n, generator=rng, device=device)
        last_first = n_choices - 1 - drawing_order(n_choices).argsort().to(device)
        shown = torch.where(kind[:, None] < IN_ORDER, last_first, order) >= n_hidden[:, None]
        shows_one = (kind < SHOW_ONE) & (n_hidden > 1)
        shown |= shows_one[:, None] & (order == n_choices - 1)
        scores = data.drawn_scores(rows, rng)
        noise = torch.randn(scores.shape, generator=rng, device=device)
        t = (torch.arange(n, device=device) + torch.rand(n, generator=rng, device=device)) / n
        return codes, shown, data.y[rows], scores, data.has_score[rows], noise, t

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
