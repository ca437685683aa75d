"""Losses of the contractive and the sparse autoencoder, for images and tables."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["jacobian_norm", "sparsity_divergence"]


def jacobian_norm(z: Tensor, inputs: Tensor, directions: Tensor) -> Tensor:
    """Return an unbiased estimate of the squared Frobenius norm of dz/dinputs per record, (n,).

    Parameters
    ----------
    z : Tensor, shape (n, n_latent)
        Computed from ``inputs``, each record from its own.
    inputs : Tensor, shape (n, ...)
    directions : Tensor, shape (n, n_latent)
        Standard normal: E[|Jᵀv|²] = |J|² (Hutchinson 1990).
    """
    (found,) = torch.autograd.grad((z * directions).sum(), inputs, create_graph=True)
    return (found**2).flatten(1).sum(dim=1)


def sparsity_divergence(activations: Tensor, target: float) -> Tensor:
    """Return the sum over units of KL(target || mean activation), a scalar in nats.

    Parameters
    ----------
    activations : Tensor, shape (n, n_latent)
        In (0, 1).
    target : float
        Mean activation that is wished for.
    """
    mean = activations.mean(dim=0).clamp(1e-6, 1 - 1e-6)
    kl = target * torch.log(target / mean) + (1 - target) * torch.log((1 - target) / (1 - mean))
    return kl.sum()
