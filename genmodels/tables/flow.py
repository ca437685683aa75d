"""Flow matching for tables: choices first, one given the others, then scores along straight lines.

:class:`.table_mixed.MixedSpace` makes of a record codes ``c`` (categories, atoms, nulls) and normal
scores ``x``; p(c, x | y) = p(c | y) p(x | c, y), one network each:

- ``choices`` are learnt masked, as a discrete flow: of a record some codes are hidden, and the
  network gives the posterior of each hidden one from those that are seen, by cross-entropy
  (Hoogeboom et al. 2022, "Autoregressive Diffusion Models", equation 5; Campbell et al. 2024,
  "Generative Flows on Discrete State-Spaces", section 3). They are drawn one after the other, each
  from its posterior, so that what goes together stays together; mostly the last ones are hidden in
  training, as they are when records are drawn.
- ``scores`` are carried from noise to the record's along straight lines by the mean velocity
  E[x1 - x0 | x_t, t, c, y] (Lipman et al. 2023, equation 23 with sigma_min = 0), the codes given
  as they are: whether a value is null, zero or any other is known before it moves.

Classes are drawn with p ∝ n_k**q and one network serves all, so that a rare class borrows from the
others what they have in common. Training goes on for so many passes over the records at most, is
judged on a tenth of them held back, and ends when that no longer gains or records come back that lie
nearer to those trained on than the ones held back do. Then each column's own distribution is brought
to that of the class's training records (:mod:`.flow_margins`).

What :class:`.table_flow.TableFlow` is trained on: batches and losses.
"""

from __future__ import annotations

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
from prefect_augment.genmodels.tables.flow_conditional import read_given
from prefect_augment.genmodels.tables.flow_marginals import (
    N_ROUNDS,
    Compared,
    Margins,
    classes_to_draw,
    lacking_bias,
    score_shifts,
)
from prefect_augment.genmodels.tables.flow_network import (
    N_TRIED,
    FlowNetwork,
    carried,
    draw_choices,
    draw_choices_given,
    drawing_order,
)
from prefect_augment.genmodels.tables.mixed_encoding import MixedSpace
from prefect_augment.genmodels.tables.network import TableNetwork
from prefect_augment.genmodels.tables.training import Encoded, TablePhase
from prefect_augment.params import FlowModel

__all__ = ["FlowPhase", "TableFlow", "noisy", "part_losses"]


class TableFlow(TableNetwork[FlowModel, FlowNetwork]):
    """One pair of networks for all classes; see the module.

    Parameters
    ----------
    params : FlowModel
        The wish.
    spec : TableSpec
        Columns and classes.
    """

    params_class = FlowModel
    patience = 6  # the last steps, at small rates, gain what many before them do not show

    def __init__(self, params: FlowModel, spec: TableSpec) -> None:
        super().__init__(params, spec)
        self.margins: Margins | None = None  # none while training, and where no column varies

    def fit(self, data: TableData, ctx: FitContext) -> None:
        """Train as :meth:`.TableNetwork.fit` has it, then bring margins to those of the records."""
        self.margins = None
        super().fit(data, ctx)
        if self.space.n_codes or self.space.n_scores:
            self._fit_margins(data, ctx.seed)

    def new_network(self, space: MixedSpace) -> FlowNetwork:
        """Return both networks."""
        return FlowNetwork(
            space.n_codes,
            space.n_scores,
            self.spec.n_classes,
            width=self.params.width,
            depth=self.params.depth,
        )

    def new_phase(
        self, network: FlowNetwork, records: Encoded, space: MixedSpace, batch_size: int
    ) -> FlowPhase:
        """Train both at once: they share no weight."""
        return FlowPhase(
            network, records, self.params, batch_size=batch_size, n_classes=self.spec.n_classes
        )

    def sample_given(
        self, conditions: NDArray[np.int64], *, seeds: NDArray[np.int64], given: Mapping[int, float]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Draw records with given values, as :class:`.SamplesGiven` has it.

        Raises
        ------
        ParameterError
            If no training record has a given value.
        """
        wish = read_given(self.space, given)
        return wish.keep(self.sampled(conditions, seeds, partial(self.draw, given=wish.codes)))

    def draw(
        self,
        network: FlowNetwork,
        y: Tensor,
        numbers: RecordNumbers,
        given: Mapping[int, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw choices one given the others, then carry scores from noise.

        ``given`` are codes by choice that all records have.
        """
        codes, scores = self._drawn_choices(network, y, numbers, given)
        if network.n_scores:
            has_score = torch.from_numpy(self.space.has_score(codes.cpu().numpy())).to(y.device)
            known = network.seen(codes, y)
            scores = carried(network, known, scores, has_score, self.params.sampler_steps)
            if self.margins is not None:
                scores = self.margins.shifted(scores, y)
        return codes, scores

    def _drawn_choices(
        self,
        network: FlowNetwork,
        y: Tensor,
        numbers: RecordNumbers,
        given: Mapping[int, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return codes, and the noise that scores are carried from."""
        noise = numbers.normals(network.n_scores)
        n_choices = len(network.layout)
        if given:
            # Margins were found for draws without given values, and do not hold for these.
            uniforms = numbers.uniforms(N_TRIED * n_choices + 1)
            return draw_choices_given(network, y, uniforms, given), noise
        bias = None if self.margins is None else self.margins.bias
        return draw_choices(network, y, numbers.uniforms(n_choices), bias), noise

    def _fit_margins(self, data: TableData, seed: int) -> None:
        """Draw records, and find what brings their margins to those of the training records."""
        network, n_classes = self.network, self.spec.n_classes
        real = self._compared(data.X, data.y, seed)
        counts = np.bincount(data.y, minlength=n_classes)
        y = classes_to_draw(counts, self.spec.n_columns, seed)
        seeds = seeds_from(seed & 0xFFFFFFFFFFFFFFFF, 1, len(y))
        found = Margins.none(n_classes, network.layout.total, network.n_scores, self.device.torch)
        for _ in range(N_ROUNDS if network.n_codes else 0):
            self.margins = found
            made = self._compared(self.drawn(network, y, seeds, self._drawn_choices), y, seed)
            bias = lacking_bias(network.layout, real, made, n_classes)
            found = replace(found, bias=found.bias + bias.to(found.bias.device))
        self.margins = found
        if network.n_scores:
            made = self._compared(self.drawn(network, y, seeds), y, seed)
            knots, shifts = (
                part.to(found.bias.device) for part in score_shifts(real, made, n_classes)
            )
            self.margins = replace(found, knots=knots, shifts=shifts)

    def _compared(self, X: NDArray[np.float64], y: NDArray[np.int64], seed: int) -> Compared:
        """Return records as margins are compared: a shared value is anywhere in its ranks."""
        low, high, has_score = self.space.ranks(X)
        place = np.random.default_rng([seed & 0xFFFFFFFF, 3]).random(low.shape)
        scores = self.space.normal_scores(low + place * (high - low))
        return Compared(self.space.codes(X), scores, has_score, y)

    def extra_state(self) -> Arrays:
        """Return the margins."""
        return {} if self.margins is None else self.margins.state()

    def load_extra_state(self, arrays: Arrays) -> None:
        """Take the margins back."""
        if self._network is not None:
            self.margins = Margins.from_state(arrays, self.device.torch)


# Share of records whose hidden codes are the last to be drawn, as they are then; and, of all again,
# of those with one of them shown all the same, as when a value is given.
IN_ORDER, GIVEN = 0.8, 0.4
SCORED = 2  # scores are learnt from every second record: smooth functions are learnt sooner


class FlowPhase(TablePhase):
    """Both networks, on the same records."""

    name = "table-flow"

    def noisy(self, data: Encoded, rows: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return :func:`noisy` records."""
        return noisy(data, rows, rng)

    def part_losses(
        self,
        network: FlowNetwork,
        batch: tuple[Tensor, ...],
        resting: frozenset[str] = frozenset(),
    ) -> dict[str, Tensor]:
        """Return both losses: :func:`part_losses`."""
        return part_losses(network, batch, resting)


def noisy(data: Encoded, rows: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
    """Return codes, which of them are shown, classes, scores, whether there are any, noise and times.

    How many codes are hidden, 1 to all, and the times lie evenly over the batch: less noise in the
    loss than with independent ones.
    """
    n, device = len(rows), rows.device
    codes, n_choices = data.codes[rows], data.codes.shape[1]
    even = (torch.arange(n, device=device) + torch.rand(n, generator=rng, device=device)) / n
    n_hidden = 1 + (even * n_choices).long().clamp_(max=n_choices - 1)
    order = torch.rand(codes.shape, generator=rng, device=device).argsort(dim=1).argsort(dim=1)
    kind = torch.rand(n, generator=rng, device=device)
    last_first = n_choices - 1 - drawing_order(n_choices).argsort().to(device)
    shown = torch.where(kind[:, None] < IN_ORDER, last_first, order) >= n_hidden[:, None]
    given = (kind < GIVEN) & (n_hidden > 1)
    shown |= given[:, None] & (order == n_choices - 1)
    scores = data.drawn_scores(rows, rng)
    noise = torch.randn(scores.shape, generator=rng, device=device)
    t = (torch.arange(n, device=device) + torch.rand(n, generator=rng, device=device)) / n
    return codes, shown, data.y[rows], scores, data.has_score[rows], noise, t


def part_losses(
    network: FlowNetwork, batch: tuple[Tensor, ...], resting: frozenset[str] = frozenset()
) -> dict[str, Tensor]:
    """Return the mean loss over the records of each part of the network that is not resting.

    ``choices``: cross-entropy of the hidden codes, averaged over those of a record (Hoogeboom et al.
    2022, equation 5, over the number of choices), and once more that of the first hidden one: it is
    the next to be drawn, and would count little where many are hidden. ``scores``: squared error of
    the velocity.
    """
    codes, shown, y, scores, has_score, noise, t = batch
    found: dict[str, Tensor] = {}
    if network.n_codes and "choices" not in resting:
        logits = network.logits(network.seen(codes, y, shown))
        loss = network.layout.cross_entropy(logits, codes)
        hidden = ~shown
        in_turn = drawing_order(len(network.n_codes)).to(codes.device)
        following = loss.gather(1, in_turn[hidden[:, in_turn].float().argmax(1)][:, None])[:, 0]
        found["choices"] = ((loss * hidden).sum(1) / hidden.sum(1) + following).mean()
    if network.n_scores and "scores" not in resting:
        codes, y, scores, has_score, noise, t = (
            part[::SCORED] for part in (codes, y, scores, has_score, noise, t)
        )
        x = torch.lerp(noise, scores, t[:, None])
        error = network.velocity(network.seen(codes, y), x, t, has_score) - (scores - noise)
        found["scores"] = (error**2 * has_score).mean()
    return found
