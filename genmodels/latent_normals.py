"""Normals of latent vectors, as variational autoencoders of tables and of images have them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Prior", "kl_divergence", "soft"]

MAX_LOG_SCALE = 5.0  # softly, of posteriors and priors


class Prior(nn.Module):
    """A normal per class: p(z | y) = N(mean_y, scale_y²)."""

    def __init__(self, n_classes: int, n_latent: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(n_classes, n_latent))
        self.log_scale = nn.Parameter(torch.zeros(n_classes, n_latent))

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return means and logarithms of scales of classes, each (n, n_latent)."""
        # Unlike indexing's, the gradient has the same bits each time on several threads.
        return F.embedding(y, self.mean), soft(F.embedding(y, self.log_scale))


def soft(log_scale: Tensor) -> Tensor:
    """Return logarithms of scales, pressed softly into what an exponential can bear."""
    return MAX_LOG_SCALE * torch.tanh(log_scale / MAX_LOG_SCALE)


def kl_divergence(q: tuple[Tensor, Tensor], p: tuple[Tensor, Tensor]) -> Tensor:
    """Return KL(q || p) of diagonal normals, given as means and logarithms of scales, (n,) in nats.

    References
    ----------
    Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix B, with any normal as prior.
    """
    (mean, log_scale), (prior_mean, prior_log_scale) = q, p
    ratio = torch.exp(2 * (log_scale - prior_log_scale))
    offset = ((mean - prior_mean) * torch.exp(-prior_log_scale)) ** 2
    return 0.5 * (ratio + offset - 1.0 - 2 * (log_scale - prior_log_scale)).sum(dim=1)
