"""The networks of :class:`.table_vae.TableVae`: encoder, a prior per class, and a masked decoder."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefect_augment.genmodels.latent_density import Prior, soft
from prefect_augment.genmodels.tables.mixed_encoding import CodeLayout, bounded, drawn_code
from prefect_augment.nn.networks import ResidualMLP

__all__ = ["VaeNetwork", "draw_records", "mixture_nll"]

N_COMPONENTS = 5  # normals in the mixture of a score
MIN_SCALE = 0.01  # of a component; scores have variance 1, and ties are spread over their ranks
ROUNDS = 32  # of drawing choices; where there are more, several are drawn at once


class VaeNetwork(nn.Module):
    """Encoder q(z | x), prior p(z | y) and decoder p(x | z, y, the columns that are shown).

    Parameters
    ----------
    n_codes : tuple of int
        Codes of each choice.
    n_scores, n_classes, n_latent : int
    width, depth : int
        Of both networks.
    """

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
        # A mixture whose components are one would stay so.
        decoder = self.vae["decoder"]
        assert isinstance(decoder, ResidualMLP)
        with torch.no_grad():
            spread = torch.linspace(-1.5, 1.5, N_COMPONENTS).repeat(n_scores)
            start = total + N_COMPONENTS * n_scores
            decoder.last.bias[start : start + N_COMPONENTS * n_scores] = spread

    def posterior(self, codes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and logarithms of scales of q(z | x), each (n, n_latent)."""
        out = self.vae["encoder"](torch.cat([self.layout.one_hot(codes), scores], dim=1)).float()
        return out[:, : self.n_latent], soft(out[:, self.n_latent :])

    def prior(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and logarithms of scales of p(z | y), each (n, n_latent)."""
        found: tuple[Tensor, Tensor] = self.vae["prior"](y)
        return found

    def known(
        self, z: Tensor, y: Tensor, codes: Tensor, scores: Tensor, shown: Tensor, told: Tensor
    ) -> Tensor:
        """Return what the decoder reads.

        Parameters
        ----------
        z : Tensor, shape (n, n_latent)
        y : Tensor of int64, shape (n,)
            ``n_classes`` where it is not told.
        codes, shown : Tensor of int64 and bool, shape (n, n_choices)
        scores, told : Tensor of float32 and bool, shape (n, n_scores)
            Which scores are shown, and there.
        """
        classes = F.one_hot(y, self.n_classes + 1)[:, : self.n_classes].float()
        told = told.float()
        return torch.cat(
            [z, classes, self.layout.one_hot(codes, shown), scores * told, told], dim=1
        )

    def decode(self, known: Tensor) -> tuple[Tensor, Tensor]:
        """Return bounded logits (n, total) and mixtures (n, 3, n_scores, n_components)."""
        out = self.vae["decoder"](known).float()
        total = self.layout.total
        mixtures = out[:, total:].view(len(out), 3, self.n_scores, N_COMPONENTS)
        return bounded(out[:, :total]), mixtures

    def hidden_nll(self, known: Tensor, codes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return -log p of each choice, (n, n_choices), and of each score, (n, n_scores), in nats."""
        logits, mixtures = self.decode(known)
        return self.layout.cross_entropy(logits, codes), mixture_nll(mixtures, scores)


def mixture_parts(mixtures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return log weights, means and scales, each (n, n_scores, n_components)."""
    weights, means, scales = mixtures.unbind(dim=1)
    return F.log_softmax(weights, dim=-1), means, MIN_SCALE + F.softplus(scales)


def mixture_nll(mixtures: Tensor, scores: Tensor) -> Tensor:
    """Return -log density of scores, (n, n_scores), under their mixtures of normals."""
    log_weights, means, scales = mixture_parts(mixtures)
    offset = (scores[..., None] - means) / scales
    log_density = log_weights - 0.5 * offset**2 - scales.log() - 0.5 * math.log(2 * math.pi)
    return -torch.logsumexp(log_density, dim=-1)


def draw_score(mixtures: Tensor, i: int, uniforms: Tensor, normals: Tensor) -> Tensor:
    """Return draws of score ``i``, (n,); uniforms are (n, 1), normals (n,)."""
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
    has_score: object,
) -> tuple[Tensor, Tensor]:
    """Return codes and scores, each drawn given the class, the vector and those before.

    Parameters
    ----------
    z : Tensor, shape (n, n_latent)
    y : Tensor of int64, shape (n,)
    uniforms : Tensor of float64, shape (n, n_choices + n_scores)
    normals : Tensor of float32, shape (n, n_scores)
    has_score : callable
        Takes codes, says which scores there are: (n, n_scores) of bool.
    """
    n_choices, n = len(network.layout), len(y)
    codes = torch.zeros(n, n_choices, dtype=torch.int64, device=y.device)
    shown = torch.zeros(n, n_choices, dtype=torch.bool, device=y.device)
    scores = torch.zeros(n, network.n_scores, device=y.device)
    told = torch.zeros(n, network.n_scores, dtype=torch.bool, device=y.device)
    n_rounds = min(ROUNDS, n_choices)
    for start in range(n_rounds):
        # Columns that stand side by side often belong together: they are not drawn at once.
        together = list(range(start, n_choices, n_rounds))
        logits, _ = network.decode(network.known(z, y, codes, scores, shown, told))
        for i in together:
            columns = network.layout.columns(i)
            codes[:, i] = drawn_code(logits[:, columns], uniforms[:, i : i + 1])
        shown[:, together] = True
    assert callable(has_score)
    there: Tensor = has_score(codes)
    n_rounds = min(ROUNDS, network.n_scores)
    for start in range(n_rounds):
        together = list(range(start, network.n_scores, n_rounds))
        _, mixtures = network.decode(network.known(z, y, codes, scores, shown, told))
        for i in together:
            at = n_choices + i
            scores[:, i] = draw_score(mixtures, i, uniforms[:, at : at + 1], normals[:, i])
        told[:, together] = there[:, together]
    return codes, scores
