"""The networks of :class:`.TableVae`: encoder, a prior per class, and a masked decoder."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefect_augment.genmodels.latent_density import Prior, bound_log_scale
from prefect_augment.genmodels.tables.mixed_encoding import (
    CodeLayout,
    bounded,
    drawn_code,
    drawn_together,
)
from prefect_augment.nn.networks import ResidualMLP

__all__ = ["VaeNetwork", "draw_records", "mixture_nll"]

N_COMPONENTS = 5  # normals in the mixture of a score
MIN_SCALE = 0.01  # of a component; scores have variance 1, and ties are spread over their ranks


class VaeNetwork(nn.Module):
    """Encoder q(z | x), prior p(z | y) and decoder p(x | z, y, the columns shown)."""

    def __init__(
        self,
        n_codes: tuple[int, ...],
        n_scores: int,
        n_classes: int,
        *,
        n_latent: int,
        width: int,
        depth: int,
    ) -> None:
        super().__init__()
        self.layout = CodeLayout(n_codes)
        self.n_scores, self.n_classes, self.n_latent = n_scores, n_classes, n_latent
        total = self.layout.total
        self.vae = nn.ModuleDict(
            {
                "encoder": ResidualMLP(total + n_scores, 2 * n_latent, width=width, depth=depth),
                "prior": Prior(n_classes, n_latent),
                "decoder": ResidualMLP(
                    n_latent + n_classes + total + 2 * n_scores,
                    total + 3 * N_COMPONENTS * n_scores,
                    width=width,
                    depth=depth,
                ),
            }
        )
        # Equal components would stay equal.
        decoder = self.vae["decoder"]
        assert isinstance(decoder, ResidualMLP)
        with torch.no_grad():
            spread = torch.linspace(-1.5, 1.5, N_COMPONENTS).repeat(n_scores)
            start = total + N_COMPONENTS * n_scores
            decoder.last.bias[start : start + N_COMPONENTS * n_scores] = spread

    def posterior(self, codes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log scales of q(z | x), each (n, n_latent)."""
        out = self.vae["encoder"](torch.cat([self.layout.one_hot(codes), scores], dim=1)).float()
        return out[:, : self.n_latent], bound_log_scale(out[:, self.n_latent :])

    def prior(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log scales of p(z | y), each (n, n_latent)."""
        prior: tuple[Tensor, Tensor] = self.vae["prior"](y)
        return prior

    def known(
        self,
        z: Tensor,
        y: Tensor,
        codes: Tensor,
        scores: Tensor,
        shown: Tensor,
        shown_scores: Tensor,
    ) -> Tensor:
        """What the decoder reads, from z (n, n_latent), classes (n,) and the columns shown.

        Class ``n_classes`` is hidden; ``shown_scores`` are both shown and present.
        """
        classes = F.one_hot(y, self.n_classes + 1)[:, : self.n_classes].float()
        shown_scores = shown_scores.float()
        return torch.cat(
            [z, classes, self.layout.one_hot(codes, shown), scores * shown_scores, shown_scores],
            dim=1,
        )

    def decode(self, known: Tensor) -> tuple[Tensor, Tensor]:
        """Bounded logits (n, total) and mixtures (n, 3, n_scores, n_components)."""
        out = self.vae["decoder"](known).float()
        total = self.layout.total
        mixtures = out[:, total:].view(len(out), 3, self.n_scores, N_COMPONENTS)
        return bounded(out[:, :total]), mixtures

    def hidden_nll(self, known: Tensor, codes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """-log p of each choice, (n, n_choices), and of each score, (n, n_scores), in nats."""
        logits, mixtures = self.decode(known)
        return self.layout.cross_entropy(logits, codes), mixture_nll(mixtures, scores)


def mixture_parts(mixtures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log weights, means and scales, each (n, n_scores, n_components)."""
    weights, means, scales = mixtures.unbind(dim=1)
    return F.log_softmax(weights, dim=-1), means, MIN_SCALE + F.softplus(scales)


def mixture_nll(mixtures: Tensor, scores: Tensor) -> Tensor:
    """-log density of scores, (n, n_scores), under their normal mixtures."""
    log_weights, means, scales = mixture_parts(mixtures)
    offset = (scores[..., None] - means) / scales
    log_density = log_weights - 0.5 * offset**2 - scales.log() - 0.5 * math.log(2 * math.pi)
    return -torch.logsumexp(log_density, dim=-1)


def draw_score(mixtures: Tensor, i: int, uniforms: Tensor, normals: Tensor) -> Tensor:
    """Draws of score ``i``, (n,); uniforms are (n, 1), normals (n,)."""
    log_weights, means, scales = (part[:, i] for part in mixture_parts(mixtures))
    place = drawn_code(log_weights, uniforms)[:, None]
    return means.gather(1, place)[:, 0] + scales.gather(1, place)[:, 0] * normals


def draw_records(
    network: VaeNetwork,
    z: Tensor,
    y: Tensor,
    *,
    uniforms: Tensor,
    normals: Tensor,
    has_score: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Draw codes and scores, each given the class, the vector and those before.

    ``uniforms`` are (n, n_choices + n_scores), ``normals`` (n, n_scores); ``has_score`` maps codes
    to the scores present.
    """
    n_choices, n = len(network.layout), len(y)
    codes = torch.zeros(n, n_choices, dtype=torch.int64, device=y.device)
    shown = torch.zeros(n, n_choices, dtype=torch.bool, device=y.device)
    scores = torch.zeros(n, network.n_scores, device=y.device)
    shown_scores = torch.zeros(n, network.n_scores, dtype=torch.bool, device=y.device)
    for together in drawn_together(n_choices):
        logits, _ = network.decode(network.known(z, y, codes, scores, shown, shown_scores))
        for i in together:
            columns = network.layout.columns(i)
            codes[:, i] = drawn_code(logits[:, columns], uniforms[:, i : i + 1])
        shown[:, together] = True
    present = has_score(codes)
    for together in drawn_together(network.n_scores):
        _, mixtures = network.decode(network.known(z, y, codes, scores, shown, shown_scores))
        for i in together:
            at = n_choices + i
            scores[:, i] = draw_score(mixtures, i, uniforms[:, at : at + 1], normals[:, i])
        shown_scores[:, together] = present[:, together]
    return codes, scores
