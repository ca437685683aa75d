"""What :class:`.table_flow.TableFlow` is trained on: batches and losses."""

from __future__ import annotations

import torch
from torch import Tensor

from prefect_augment.genmodels.table_flow_network import FlowNetwork, drawing_order
from prefect_augment.genmodels.table_training import Encoded, TablePhase

__all__ = ["FlowPhase", "noisy", "part_losses"]

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
