"""The residual network of vectors that models of tables share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ResidualMLP"]


class ResidualMLP(nn.Module):
    """Layers added to what they read, with layer norm before each.

    The first and the last layer compute in float32 whatever the precision: the 8 bits of bfloat16
    cannot tell the ranks of a table's records apart, and are enough for what the blocks add.

    Parameters
    ----------
    n_in, n_out : int
        Numbers in and out.
    width : int
        Of the layers between.
    depth : int
        Blocks of two layers.

    References
    ----------
    Gorishniy et al. 2021, "Revisiting Deep Learning Models for Tabular Data", section 3.2 (ResNet),
    with layer norm in the place of batch norm, so that a record does not depend on its batch.
    """

    def __init__(self, n_in: int, n_out: int, *, width: int, depth: int) -> None:
        super().__init__()
        self.first = nn.Linear(n_in, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.ins = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.outs = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, n_out)
        for layer in (*self.outs, self.last):  # blocks start as nothing
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_in) to (n, n_out)."""
        return self.head(self.body(x))

    def body(self, x: Tensor) -> Tensor:
        """(n, n_in) to (n, width): all but the last layer."""
        with torch.autocast(x.device.type, enabled=False):
            h = self.first(x)
        for norm, before, after in zip(self.norms, self.ins, self.outs, strict=True):
            h = h + after(F.silu(before(norm(h))))
        return F.silu(self.norm(h))

    def head(self, h: Tensor, columns: slice = slice(None)) -> Tensor:
        """(n, width) to the outputs asked for, (n, n_out) for all of them."""
        with torch.autocast(h.device.type, enabled=False):
            return F.linear(h, self.last.weight[columns], self.last.bias[columns])
