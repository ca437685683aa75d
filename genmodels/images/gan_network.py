"""Generator and critic of images: residual blocks without norms, on squares of pixels.

Both have two resolutions, like :class:`.networks.UNet`: after :func:`.space_to_depth` the image is
8 to 16 squares wide, then half of it. Convolutions are plain; R3GAN's grouped ones between two of 1
× 1 are slow on a CPU.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefect_augment.nn.networks import (
    Downsample,
    Upsample,
    depth_to_space,
    patch_size,
    space_to_depth,
)

__all__ = ["Critic", "GanNetwork", "Generator"]

SLOPE = 0.2  # of the activation below zero


def activated(x: Tensor) -> Tensor:
    """Leaky ReLU."""
    return F.leaky_relu(x, SLOPE)


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions beside the identity, without norm.

    The first one starts smaller by sqrt(n_blocks), the number of blocks in the network, the second
    one at zero, as networks without norms need (Zhang et al. 2019, "Fixup Initialization"; R3GAN,
    Huang et al. 2024, section 3).
    """

    def __init__(self, width: int, n_blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, a=SLOPE)
        with torch.no_grad():
            self.conv1.weight.mul_(1.0 / math.sqrt(n_blocks))
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(n, width, h, w) to the same shape."""
        return x + self.conv2(activated(self.conv1(activated(x))))


class Generator(nn.Module):
    """Images from normal vectors and classes.

    ``width`` channels at the higher resolution and twice as many at the lower, with ``depth``
    blocks each.
    """

    def __init__(
        self, *, size: int, channels: int, n_classes: int, n_latent: int, width: int, depth: int
    ) -> None:
        super().__init__()
        self.size, self.n_latent = size, n_latent
        self.patch = patch_size(size)
        unit = 2 * self.patch
        self.low, self.bottom = -(-size // unit), 2 * width
        self.embed_class = nn.Embedding(n_classes, n_latent)
        self.start = nn.Linear(2 * n_latent, self.bottom * self.low**2)
        self.first = nn.ModuleList(ResidualBlock(self.bottom, 2 * depth) for _ in range(depth))
        self.grow = Upsample(self.bottom, width)
        self.second = nn.ModuleList(ResidualBlock(width, 2 * depth) for _ in range(depth))
        self.out = nn.Conv2d(width, channels * self.patch**2, 3, padding=1)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Normal vectors (n, n_latent) and classes (n,) to images in about [-1, 1], float32."""
        h = self.start(torch.cat([z, self.embed_class(y)], dim=1))
        h = h.reshape(-1, self.low, self.low, self.bottom).permute(0, 3, 1, 2)
        for block in self.first:
            h = block(h)
        h = self.grow(h)
        for block in self.second:
            h = block(h)
        images = depth_to_space(self.out(activated(h)), self.patch)
        return images[:, :, : self.size, : self.size].float()


class Critic(nn.Module):
    """One score per image with its class: larger for what looks real.

    Widths and depths as for :class:`Generator`; padding repeats the border. The class enters by
    projection (Miyato & Koyama 2018, "cGANs with Projection Discriminator", equation 3).
    """

    def __init__(self, *, size: int, channels: int, n_classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.patch = patch_size(size)
        unit, bottom = 2 * self.patch, 2 * width
        self.padding = -size % unit
        low = (size + self.padding) // unit
        self.stem = nn.Conv2d(channels * self.patch**2, width, 3, padding=1)
        self.first = nn.ModuleList(ResidualBlock(width, 2 * depth) for _ in range(depth))
        self.shrink = Downsample(width, bottom)
        self.second = nn.ModuleList(ResidualBlock(bottom, 2 * depth) for _ in range(depth))
        self.mix = nn.Linear(bottom * low**2, bottom)
        self.out = nn.Linear(bottom, 1)
        self.embed_class = nn.Embedding(n_classes, bottom)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(n, channels, size, size) in [-1, 1] and classes (n,) to float32 of shape (n,)."""
        if self.padding:
            x = F.pad(x, (0, self.padding, 0, self.padding), mode="replicate")
        h = self.stem(space_to_depth(x, self.patch))
        for block in self.first:
            h = block(h)
        h = self.shrink(h)
        for block in self.second:
            h = block(h)
        # Channels last, as in memory.
        features = activated(self.mix(activated(h).permute(0, 2, 3, 1).flatten(1)))
        classes = self.embed_class(y) / math.sqrt(features.shape[1])
        score: Tensor = self.out(features)[:, 0].float() + (features.float() * classes).sum(dim=1)
        return score


class GanNetwork(nn.Module):
    """Generator and critic."""

    def __init__(self, generator: Generator, critic: Critic) -> None:
        super().__init__()
        self.generator = generator
        self.critic = critic
