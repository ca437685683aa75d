"""Network blocks that models share, chosen to be fast on a CPU and no slower on a GPU.

Activations are channels-last. Group norm is fast there only with groups of at least 16 channels: at
14 × 14 × 48 and 128 images, one thread, bf16, forward and backward take 11 ms with 8 groups and 1
ms with 3; a 3 × 3 convolution takes 8.5. (Layer norm over channels takes 2.3 ms, and the same
network learns more slowly with it.) The few tokens of the lowest resolution get plain attention,
which is faster there than a fused kernel.
"""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP_CHANNELS = 16
DEPTH = 2  # blocks of a U-Net down, in the middle and up

Layer = TypeVar("Layer", bound=nn.Module)


def group_norm(width: int) -> nn.GroupNorm:
    """Group norm (Wu & He 2018) with groups of 16 channels; ``width`` is a multiple of 16."""
    return nn.GroupNorm(width // GROUP_CHANNELS, width)


def space_to_depth(x: Tensor, factor: int) -> Tensor:
    """(n, c, h, w) to (n, c·factor², h/factor, w/factor), channels last in memory."""
    return F.pixel_unshuffle(x, factor).contiguous(memory_format=torch.channels_last)


def depth_to_space(x: Tensor, factor: int) -> Tensor:
    """Inverse of :func:`space_to_depth`."""
    return F.pixel_shuffle(x, factor)


def zeroed(layer: Layer) -> Layer:
    """The layer with zero weights, so that the branch it ends starts at zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class FourierFeatures(nn.Module):
    """Sines and cosines of a number in [0, 1], low frequencies first.

    ``n_features`` is even; ``max_frequency`` is in radians per unit.
    """

    def __init__(self, n_features: int, *, max_frequency: float = 1000.0) -> None:
        super().__init__()
        places = torch.arange(n_features // 2) / (n_features // 2 - 1)
        self.frequencies: Tensor
        self.register_buffer("frequencies", max_frequency**places, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """(n,) to (n, n_features)."""
        angles = t[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)


class ConvBlock(nn.Module):
    """Residual block: norm, convolution, scale and shift by the embedding, convolution.

    ``width`` is a multiple of 16.
    """

    def __init__(self, width: int, n_embedding: int) -> None:
        super().__init__()
        self.norm = group_norm(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.modulation = nn.Linear(n_embedding, 2 * width)
        self.conv2 = zeroed(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(n, width, h, w) and (n, n_embedding) to (n, width, h, w)."""
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(F.silu(self.norm(x)))
        return x + self.conv2(F.silu(torch.addcmul(shift, h, 1 + scale)))


class SelfAttention(nn.Module):
    """Self-attention over pixels, with one head; ``width`` is a multiple of 16."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = group_norm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = zeroed(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) to the same shape."""
        n, c, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(n, height * width, c)
        q, k, v = self.qkv(tokens).chunk(3, dim=2)  # (n, tokens, c)
        scores = q @ k.transpose(-1, -2) * c**-0.5
        mixed = scores.softmax(dim=-1).to(v.dtype) @ v
        return x + self.out(mixed).reshape(n, height, width, c).permute(0, 3, 1, 2)


class Downsample(nn.Module):
    """Halve height and width by a 2 × 2 convolution of stride 2."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_in, h, w) to (n, n_out, h/2, w/2)."""
        return self.conv(x)


class Upsample(nn.Module):
    """Double height and width: a linear map turns each pixel into a square of four.

    A 3 × 3 convolution after enlarging would cost four times a whole block.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, 4 * n_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_in, h, w) to (n, n_out, 2h, 2w)."""
        n, _, height, width = x.shape
        squares = self.conv(x).permute(0, 2, 3, 1).reshape(n, height, width, 2, 2, -1)
        rows = squares.permute(0, 1, 3, 2, 4, 5).reshape(n, 2 * height, 2 * width, -1)
        return rows.permute(0, 3, 1, 2)


class UNet(nn.Module):
    """A small class-conditional U-Net on squares of pixels.

    Two resolutions: after :func:`space_to_depth` the image is 8 to 16 squares wide, then half of
    it, with attention. The skip is a sum; a concatenation would double a convolution. A size that
    does not divide is padded inside by repeating the border. Label ``n_classes`` means "no label".
    ``width`` is a multiple of 16; the second resolution has about 8/3 of it. ``n_augment`` numbers
    describe the augmentation of an image.

    Ronneberger et al. 2015; space-to-depth stem as in Hoogeboom et al. 2023 ("simple diffusion");
    scale and shift as in Dhariwal & Nichol 2021, without their second norm.
    """

    def __init__(
        self, *, size: int, channels: int, n_classes: int, width: int = 48, n_augment: int = 0
    ) -> None:
        super().__init__()
        self.size = size
        self.n_classes = n_classes
        self.patch = patch_size(size)
        unit = 2 * self.patch
        self.padding = -size % unit
        n_embedding, bottom = 128, 16 * round(width / 6)
        n_square = channels * self.patch**2
        self.features = FourierFeatures(64)
        self.embed_time = nn.Sequential(
            nn.Linear(64, n_embedding), nn.SiLU(), nn.Linear(n_embedding, n_embedding)
        )
        self.embed_class = nn.Embedding(n_classes + 1, n_embedding)
        self.embed_augment = nn.Linear(n_augment, n_embedding, bias=False) if n_augment else None
        self.stem = nn.Conv2d(n_square, width, 3, padding=1)
        self.down = nn.ModuleList(ConvBlock(width, n_embedding) for _ in range(DEPTH))
        self.shrink = Downsample(width, bottom)
        self.middle = nn.ModuleList(ConvBlock(bottom, n_embedding) for _ in range(DEPTH))
        self.attention = nn.ModuleList(SelfAttention(bottom) for _ in range(DEPTH))
        self.grow = Upsample(bottom, width)
        self.up = nn.ModuleList(ConvBlock(width, n_embedding) for _ in range(DEPTH))
        self.norm = group_norm(width)
        self.out = zeroed(nn.Conv2d(width, n_square, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor, augment: Tensor | None = None) -> Tensor:
        """Prediction, float32 of shape (n, channels, size, size), at times ``t`` (n,) in [0, 1].

        ``y`` (n,) are classes, ``n_classes`` for none; ``augment`` (n, n_augment) of zeros, or
        None, means "not augmented".
        """
        embedding = self.embed_time(self.features(t)) + self.embed_class(y)
        if augment is not None and self.embed_augment is not None:
            embedding = embedding + self.embed_augment(augment)
        embedding = F.silu(embedding)
        if self.padding:
            x = F.pad(x, (0, self.padding, 0, self.padding), mode="replicate")
        h = self.stem(space_to_depth(x, self.patch))
        for block in self.down:
            h = block(h, embedding)
        low = self.shrink(h)
        for block, attention in zip(self.middle, self.attention, strict=True):
            low = attention(block(low, embedding))
        h = h + self.grow(low)
        for block in self.up:
            h = block(h, embedding)
        out = depth_to_space(self.out(F.silu(self.norm(h))), self.patch)
        return out[:, :, : self.size, : self.size].float()


def patch_size(size: int) -> int:
    """Edge of the squares that make an image 8 to 16 of them wide (fewer below 8 px).

    >>> [patch_size(size) for size in (8, 16, 28, 32, 64)]
    [1, 1, 2, 2, 4]
    """
    return 2 ** max(0, math.ceil(math.log2(size / 16)))


class ResidualMLP(nn.Module):
    """Residual network of vectors, with layer norm before each of ``depth`` blocks.

    The first and last layers compute in float32 whatever the precision: the 8 bits of bfloat16
    cannot separate the ranks of a table's records, but suffice for what the blocks add. Gorishniy
    et al. 2021, "Revisiting Deep Learning Models for Tabular Data", section 3.2 (ResNet), with
    layer norm instead of batch norm, so that a record does not depend on its batch.
    """

    def __init__(self, n_in: int, n_out: int, *, width: int, depth: int) -> None:
        super().__init__()
        self.first = nn.Linear(n_in, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.ins = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.outs = nn.ModuleList(zeroed(nn.Linear(width, width)) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.last = zeroed(nn.Linear(width, n_out))

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
        """(n, width) to the selected outputs, (n, n_out) for all of them."""
        with torch.autocast(h.device.type, enabled=False):
            return F.linear(h, self.last.weight[columns], self.last.bias[columns])
