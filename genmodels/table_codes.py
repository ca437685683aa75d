"""Choices among codes as networks see them: zeros and ones in, logits out, draws from those."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["CodeLayout", "bounded", "drawn_code", "normal_scores"]

MAX_LOGIT = 20.0  # softly: sums over the codes of a choice then need no maximum taken out


class CodeLayout(nn.Module):
    """Where each choice's codes stand among all of them. Holds no weights.

    Parameters
    ----------
    n_codes : tuple of int
        Codes of each choice.

    Attributes
    ----------
    starts : ndarray of int64, shape (n_choices + 1,)
        First code of each choice, and the number of codes.
    offsets : Tensor of int64, shape (n_choices,)
        The same without the last, on the network's device.
    owner : Tensor of float32, shape (total, n_choices)
        Which choice a code belongs to: sums over codes are products with it, the same every time.
    """

    offsets: Tensor
    owner: Tensor

    def __init__(self, n_codes: tuple[int, ...]) -> None:
        super().__init__()
        self.n_codes = n_codes
        self.total = sum(n_codes)
        self.starts = np.concatenate([[0], np.cumsum(n_codes)]).astype(np.int64)
        self.register_buffer("offsets", torch.from_numpy(self.starts[:-1].copy()), persistent=False)
        owner = torch.zeros(self.total, len(n_codes))
        owner[torch.arange(self.total), torch.repeat_interleave(torch.tensor(n_codes).long())] = 1.0
        self.register_buffer("owner", owner, persistent=False)

    def __len__(self) -> int:
        """Return the number of choices."""
        return len(self.n_codes)

    def columns(self, i: int) -> slice:
        """Return where the codes of a choice stand."""
        return slice(int(self.starts[i]), int(self.starts[i + 1]))

    def one_hot(self, codes: Tensor, shown: Tensor | None = None) -> Tensor:
        """Return codes as zeros and ones, (n, total); those that are not shown are zeros.

        Parameters
        ----------
        codes : Tensor of int64, shape (n, n_choices)
        shown : Tensor of bool, shape (n, n_choices), optional
        """
        ones = torch.ones(codes.shape, device=codes.device) if shown is None else shown.float()
        known = torch.zeros(len(codes), self.total, device=codes.device)
        return known.scatter_(1, codes + self.offsets, ones)

    def cross_entropy(self, logits: Tensor, codes: Tensor) -> Tensor:
        """Return -log p of each choice's code, in nats, (n, n_choices), from :func:`bounded` logits."""
        logits = logits.float()
        total: Tensor = logits.exp() @ self.owner
        return total.log() - logits.gather(1, codes + self.offsets)

    def draw(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Return a code per choice, each drawn from its own posterior.

        Parameters
        ----------
        logits : Tensor, shape (n, total)
            :func:`bounded`.
        uniforms : Tensor of float64, shape (n, n_choices)
            Random numbers in [0, 1).

        Returns
        -------
        Tensor of int64, shape (n, n_choices)
        """
        drawn = [
            drawn_code(logits[:, self.columns(i)], uniforms[:, i : i + 1]) for i in range(len(self))
        ]
        return torch.stack(drawn, 1) if drawn else _none(logits)

    def likeliest(self, logits: Tensor) -> Tensor:
        """Return each choice's most likely code, (n, n_choices) of int64."""
        found = [logits[:, self.columns(i)].argmax(1) for i in range(len(self))]
        return torch.stack(found, 1) if found else _none(logits)


def bounded(logits: Tensor) -> Tensor:
    """Return logits pressed softly into what an exponential can bear."""
    return MAX_LOGIT * torch.tanh(logits / MAX_LOGIT)


def normal_scores(ranks: Tensor) -> Tensor:
    """Return the normal quantiles of ranks in [0, 1], float32 and finite."""
    return torch.special.ndtri(ranks.clamp(1e-6, 1 - 1e-6)).float()


def drawn_code(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Return the code of one choice that each random number falls on, (n,); uniforms are (n, 1)."""
    mass = logits.double().exp().cumsum(dim=1)
    return (mass <= uniforms * mass[:, -1:]).sum(dim=1).clamp_(max=logits.shape[1] - 1)


def _none(logits: Tensor) -> Tensor:
    return torch.zeros(len(logits), 0, dtype=torch.int64, device=logits.device)
