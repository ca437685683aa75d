"""Encoders and decoders of images, dense and convolutional: pixels in [0, 1] to vectors and back.

The convolutional ones work on squares of pixels (:func:`.networks.patch_size`), 8 to 16 of them
wide, then on half as many, channels last. So a 256 px image costs as much as a 16 px one, except in
its first and last layers.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefect_augment.nn.networks import (
    Downsample,
    Upsample,
    depth_to_space,
    group_norm,
    patch_size,
    space_to_depth,
    zeroed,
)

# Activation of a layer.
Squash = Literal["linear", "relu", "sigmoid"]


def squashed(x: Tensor, how: Squash) -> Tensor:
    """Activations of a layer's sums."""
    if how == "linear":
        return x
    return F.relu(x) if how == "relu" else torch.sigmoid(x)


class DenseStack(nn.Module):
    """Fully connected layers of these sizes, the last one without activation."""

    def __init__(self, sizes: Sequence[int], hidden: Squash) -> None:
        super().__init__()
        self.hidden = hidden
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(n, sizes[0]) to (n, sizes[-1])."""
        for layer in self.layers[:-1]:
            x = squashed(layer(x), self.hidden)
        return self.layers[-1](x)


class Residual(nn.Module):
    """Residual block: norm, convolution, convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = group_norm(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = zeroed(nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, h, w) to the same shape."""
        return x + self.conv2(F.silu(self.conv1(F.silu(self.norm(x)))))


class ConvEncoder(nn.Module):
    """Images to vectors; ``width`` channels, a multiple of 16, then twice as many at half the size.

    A size that does not divide is padded by repeating the border.
    """

    def __init__(self, size: int, channels: int, n_out: int, *, width: int) -> None:
        super().__init__()
        self.patch = patch_size(size)
        unit = 2 * self.patch
        bottom = -(-size // unit)
        self.padding = bottom * unit - size
        self.stem = nn.Conv2d(channels * self.patch**2, width, 3, padding=1)
        self.shrink = Downsample(width, 2 * width)
        self.block = Residual(2 * width)
        self.norm = group_norm(2 * width)
        self.out = nn.Linear(2 * width * bottom**2, n_out)

    def forward(self, images: Tensor) -> Tensor:
        """(n, channels, size, size) in [0, 1] to (n, n_out)."""
        if self.padding:
            images = F.pad(images, (0, self.padding, 0, self.padding), mode="replicate")
        h = F.silu(self.stem(space_to_depth(2 * images - 1, self.patch)))
        h = F.silu(self.norm(self.block(self.shrink(h))))
        # Channels are last in memory already, so this flattening copies nothing.
        return self.out(h.permute(0, 2, 3, 1).flatten(1))


class ConvDecoder(nn.Module):
    """Vectors to images: the inverse architecture of :class:`ConvEncoder`."""

    def __init__(self, size: int, channels: int, n_in: int, *, width: int) -> None:
        super().__init__()
        self.size, self.patch = size, patch_size(size)
        self.bottom = -(-size // (2 * self.patch))
        self.read = nn.Linear(n_in, 2 * width * self.bottom**2)
        self.block = Residual(2 * width)
        self.grow = Upsample(2 * width, width)
        self.norm = group_norm(width)
        self.out = nn.Conv2d(width, channels * self.patch**2, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(n, n_in) to (n, channels, size, size), unbounded."""
        h = self.read(z).reshape(len(z), self.bottom, self.bottom, -1).permute(0, 3, 1, 2)
        h = F.silu(self.norm(self.grow(F.silu(self.block(h)))))
        return depth_to_space(self.out(h), self.patch)[:, :, : self.size, : self.size]


class Codec(nn.Module):
    """An encoder and a decoder of images in [0, 1].

    ``widths`` are those of the dense layers, or one width of the convolutions. ``hidden``, ``code``
    and ``output`` are activations. The encoder returns ``n_encoded`` numbers (0: ``n_latent``).
    Pixels are divided by ``scale`` on input and multiplied on output.
    """

    def __init__(
        self,
        size: int,
        channels: int,
        n_latent: int,
        *,
        widths: tuple[int, ...],
        conv: bool,
        hidden: Squash = "relu",
        code: Squash = "linear",
        output: Squash = "sigmoid",
        n_encoded: int = 0,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.shape = (channels, size, size)
        self.n_latent, self.conv, self.scale = n_latent, conv, scale
        self.code, self.output = code, output
        n_encoded = n_encoded or n_latent
        self.encoder: nn.Module
        self.decoder: nn.Module
        if conv:
            self.encoder = ConvEncoder(size, channels, n_encoded, width=widths[0])
            self.decoder = ConvDecoder(size, channels, n_latent, width=widths[0])
        else:
            n_pixels = channels * size**2
            self.encoder = DenseStack((n_pixels, *widths, n_encoded), hidden)
            self.decoder = DenseStack((n_latent, *reversed(widths), n_pixels), hidden)

    def encode(self, images: Tensor) -> Tensor:
        """Vectors before any activation, (n, n_encoded)."""
        images = images / self.scale
        return self.encoder(images if self.conv else images.flatten(1)).float()

    @property
    def n_layers(self) -> int:
        """Dense layers of the encoder, the code's included."""
        return len(self.encoder.layers)

    def below(self, images: Tensor, layer: int) -> Tensor:
        """Input of a dense encoder's layer, (n, n_units)."""
        h = images.flatten(1) / self.scale
        for i in range(layer):
            h = squashed(self.encoder.layers[i](h), self.encoder.hidden)
        return h

    def activated(self, z: Tensor) -> Tensor:
        """What the decoder reads of vectors: codes, (n, n_latent)."""
        return squashed(z, self.code)

    def decode(self, codes: Tensor) -> Tensor:
        """Images (n, channels, size, size), in [0, 1] if the output is a sigmoid."""
        out: Tensor = self.decoder(codes).float()
        return (squashed(out, self.output) * self.scale).reshape(-1, *self.shape)
