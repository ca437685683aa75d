"""Losses of the contractive and the sparse autoencoder, for images and tables."""

import torch
from torch import Tensor


def jacobian_norm(z: Tensor, inputs: Tensor, directions: Tensor) -> Tensor:
    """Unbiased estimate of the squared Frobenius norm of dz/dinputs per record, (n,).

    E[|Jᵀv|²] = |J|² for standard normal ``directions`` (n, n_latent) (Hutchinson 1990). Each row of
    ``z`` depends on its own row of ``inputs`` alone.
    """
    (gradient,) = torch.autograd.grad((z * directions).sum(), inputs, create_graph=True)
    return (gradient**2).flatten(1).sum(dim=1)


def sparsity_divergence(activations: Tensor, target: float) -> Tensor:
    """Sum over units of KL(target || mean activation), a scalar in nats; activations in (0, 1)."""
    mean = activations.mean(dim=0).clamp(1e-6, 1 - 1e-6)
    kl = target * torch.log(target / mean) + (1 - target) * torch.log((1 - target) / (1 - mean))
    return kl.sum()
