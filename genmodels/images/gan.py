"""Class-conditional GAN of images in the manner of R3GAN.

A generator maps a normal vector and a class to an image; a critic scores how real images look. The
loss is relativistic, with gradient penalties at real and generated images (Huang et al. 2024, "The
GAN is dead; long live the GAN! A Modern GAN Baseline", R3GAN). Networks are residual without norms.
For few images both sides are augmented at random before the critic sees them
(:mod:`.training`), classes are drawn with p ∝ n_k**q, and the generator's weights are averaged.

The relativistic critic scores how much more real a real image looks than a generated one of the
same class; the generator wants the opposite (Jolicoeur-Martineau 2018, "The relativistic
discriminator"). Because of the pairs, a few good images are not enough. The squared gradients of
the critic at real (R1) and generated images (R2) make the game converge (R3GAN, equations 2 to 4).

Sixteen times in training, images drawn by the averaged generator are compared with real ones of
each class, and the best generator stays. If the images of a class have
collapsed, training ends and ``stopped`` says so.

A GAN draws an image in one pass, :mod:`.flow_matching` takes a dozen.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefect_augment.array_types import Int, Uint64
from prefect_augment.genmodels.base import Arrays, Config, FitContext
from prefect_augment.genmodels.counter_rng import normal, record_keys, seeds_from
from prefect_augment.genmodels.images.network import ImageNetwork, threads_of_step
from prefect_augment.genmodels.images.training import (
    ImagePhase,
    ImageRecords,
    critic_moves,
    seen_by_critic,
    to_unit,
)
from prefect_augment.nn import loop
from prefect_augment.nn.devices import Device
from prefect_augment.nn.early_stopping import N_STRETCHES, Validation, train_with_early_stopping
from prefect_augment.nn.networks import (
    Downsample,
    Upsample,
    depth_to_space,
    patch_size,
    space_to_depth,
)
from prefect_augment.params import GanModel

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
        self.first = nn.Sequential(*(ResidualBlock(self.bottom, 2 * depth) for _ in range(depth)))
        self.grow = Upsample(self.bottom, width)
        self.second = nn.Sequential(*(ResidualBlock(width, 2 * depth) for _ in range(depth)))
        self.out = nn.Conv2d(width, channels * self.patch**2, 3, padding=1)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """Normal vectors (n, n_latent) and classes (n,) to images in about [-1, 1], float32."""
        h = self.start(torch.cat([z, self.embed_class(y)], dim=1))
        h = h.reshape(-1, self.low, self.low, self.bottom).permute(0, 3, 1, 2)
        h = self.second(self.grow(self.first(h)))
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
        self.first = nn.Sequential(*(ResidualBlock(width, 2 * depth) for _ in range(depth)))
        self.shrink = Downsample(width, bottom)
        self.second = nn.Sequential(*(ResidualBlock(bottom, 2 * depth) for _ in range(depth)))
        self.mix = nn.Linear(bottom * low**2, bottom)
        self.out = nn.Linear(bottom, 1)
        self.embed_class = nn.Embedding(n_classes, bottom)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """(n, channels, size, size) in [-1, 1] and classes (n,) to float32 of shape (n,)."""
        if self.padding:
            x = F.pad(x, (0, self.padding, 0, self.padding), mode="replicate")
        h = self.stem(space_to_depth(x, self.patch))
        h = self.second(self.shrink(self.first(h)))
        # Channels last, as in memory.
        features = activated(self.mix(activated(h).permute(0, 2, 3, 1).flatten(1)))
        classes = self.embed_class(y) / math.sqrt(features.shape[1])
        return self.out(features)[:, 0].float() + (features.float() * classes).sum(dim=1)


class GanNetwork(nn.Module):
    """Generator and critic."""

    def __init__(self, generator: Generator, critic: Critic) -> None:
        super().__init__()
        self.generator = generator
        self.critic = critic


MIN_COMPARED = 8  # real images that a class needs to be compared
MAX_COMPARED_RECORDS = 64  # of a class
MAX_IMAGES = 1024  # of all classes
AT_ONCE = 128  # images processed together
# Relative spread below which a class has collapsed; training ends when half of the classes have.
COLLAPSED = 0.2

Draw = Callable[[Any, Tensor, Uint64], Tensor]


class RandomFeatures(nn.Module):
    """Three convolutions with random weights, averaged over quarters of the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        widths = (channels, 32, 64, 128)
        self.weights = nn.ParameterList()
        for n_in, n_out in itertools.pairwise(widths):
            weight = torch.randn(n_out, n_in, 3, 3, generator=rng) * (2.0 / (9 * n_in)) ** 0.5
            self.weights.append(nn.Parameter(weight, requires_grad=False))

    def forward(self, images: Tensor) -> Tensor:
        """(n, channels, h, w) in [-1, 1] to (n, n_features)."""
        h, features = images, []
        for weight in self.weights:
            h = F.relu(F.conv2d(h, weight, stride=2, padding=1))
            features.append(F.adaptive_avg_pool2d(h, 2).flatten(1))
        return torch.cat(features, dim=1)


def class_gaps(real: Tensor, generated: Tensor) -> tuple[float, float]:
    """Energy distance of two sets of features (n, n_features), and their relative spread.

    The distance is 2 E|R - G| - E|R - R'| - E|G - G'| (Székely & Rizzo 2013, "Energy statistics",
    equation 5), the spread E|G - G'| / E|R - R'|; at least two records each.
    """
    real_spread, generated_spread = (float(torch.pdist(x).mean()) for x in (real, generated))
    distance = 2.0 * float(torch.cdist(real, generated).mean()) - real_spread - generated_spread
    return distance, generated_spread / max(real_spread, 1e-12)


def compared_rows(y: Int) -> dict[int, Int]:
    """Rows of the real records to compare with, by class: the first ones of classes with enough.

    With more classes than ``MAX_IMAGES`` allows, an even selection by class size.
    """
    counts = np.bincount(y)
    eligible = np.flatnonzero(counts >= MIN_COMPARED)
    most_classes = MAX_IMAGES // MIN_COMPARED
    if len(eligible) > most_classes:
        by_size = eligible[np.argsort(-counts[eligible], kind="stable")]
        eligible = np.sort(by_size[np.linspace(0, len(eligible) - 1, most_classes).astype(int)])
    most = min(MAX_COMPARED_RECORDS, max(MIN_COMPARED, MAX_IMAGES // max(1, len(eligible))))
    return {int(k): np.flatnonzero(y == k)[:most] for k in eligible}


@dataclass(frozen=True)
class GanValidation:
    """Validates generators by their images of each class; deterministic.

    ``draw`` maps a network, classes and keys to images in [-1, 1]; ``real`` has real images by
    class, on the device.
    """

    draw: Draw
    real: dict[int, Tensor]
    seed: int

    def __call__(self, network: nn.Module) -> Validation:
        """Validate a network by its generator."""
        gaps = list(self.gaps(network).values())
        distance = sum(gap for gap, _ in gaps) / len(gaps)
        n_same = sum(spread < COLLAPSED for _, spread in gaps)
        fault = ""
        if 2 * n_same >= len(gaps):
            fault = f"images of a class were all the same in {n_same} of {len(gaps)} classes"
        return Validation({"generator": distance}, fault=fault)

    def gaps(self, network: nn.Module) -> dict[int, tuple[float, float]]:
        """Each class's distance and spread."""
        first = next(iter(self.real.values()))
        y = torch.cat([torch.full((len(part),), k) for k, part in self.real.items()])
        y = y.to(first.device)
        seeds = seeds_from(self.seed, 1 << 20, len(y))
        features = RandomFeatures(first.shape[1]).to(first.device)
        with torch.inference_mode():
            parts = [slice(i, i + AT_ONCE) for i in range(0, len(y), AT_ONCE)]
            drawn = (self.draw(network, y[part], record_keys(seeds[part])) for part in parts)
            drawn_features = torch.cat([features(images.clamp(-1.0, 1.0)) for images in drawn])
            return {
                k: class_gaps(features(part), drawn_features[y == k])
                for k, part in self.real.items()
            }


# Defaults of params that are 0.
WIDTH, DEPTH, N_LATENT, CRITIC_STEPS = 32, 1, 64, 1
PENALTY, LEARNING_RATE = 1.0, 0.002

# One record in so many is penalised: its gradient costs as much as four other records.
PENALISED_SHARE = 4
LAST_PENALTY = 0.1  # of the first, as in R3GAN


def relativistic_loss(better: Tensor, worse: Tensor) -> Tensor:
    """Mean of log(1 + exp(worse - better)) over pairs of the critic's scores, (n,).

    Huang et al. 2024, equation 2 with f(t) = -log(1 + exp(-t)). The critic wants real scores to be
    better, the generator its own.
    """
    return F.softplus(worse - better).mean()


def slope_penalty(critic: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """The critic's scores, and the squared length of its gradient at each image, both (n,).

    Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?", equation 9,
    twice. Each score has to depend on its own image alone.
    """
    at = images.detach().requires_grad_(True)
    numbers = critic(at)
    (slope,) = torch.autograd.grad(numbers.sum(), at, create_graph=True)
    return numbers, slope.square().sum(dim=(1, 2, 3))


class GanPhase(ImagePhase):
    """Critic and generator in turn."""

    name = "gan"
    params: GanModel

    def __init__(
        self, network: GanNetwork, records: ImageRecords, params: GanModel, batch_size: int
    ) -> None:
        super().__init__(network, records, params, batch_size)
        self.first_penalty = self.penalty = params.gradient_penalty or PENALTY

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The critic ``critic_steps`` times with one optimiser, then the generator."""
        rate = self.params.learning_rate or LEARNING_RATE
        # Without momentum, as in R3GAN and StyleGAN.
        critic, generator = (
            self.adamw(part.parameters(), rate, betas=(0.0, 0.99))
            for part in (self.network.critic, self.network.generator)
        )
        n_critic = self.params.critic_steps or CRITIC_STEPS
        return {**{f"critic-{i}": critic for i in range(n_critic)}, "generator": generator}

    def lr_factor(self, step: int, n_steps: int) -> float:
        """Warm-up and half a cosine; the penalty falls along half a cosine too."""
        # The loop calls this first in every step; only here is the step's number known.
        done = 0.5 - 0.5 * math.cos(math.pi * min(1.0, step / n_steps))
        self.penalty = self.first_penalty * (1.0 + done * (LAST_PENALTY - 1.0))
        return loop.warmup_cosine(step, n_steps)

    def batch(self, loss_name: str, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Images, classes, latent vectors, and the augmentations of real and generated images."""
        n, device, records, rows = self.batch_size, self.device, self.records, self.rows(rng)
        z = torch.randn(n, self.network.generator.n_latent, generator=rng, device=device)
        moves = [critic_moves(n, self.params.augment_prob, rng, device) for _ in range(2)]
        return records.take(rows), records.y[rows], z, *moves

    def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
        """Loss of the critic, or of the generator."""
        images, y, z, real_moves, fake_moves = batch
        network = self.network
        real = seen_by_critic(to_unit(images), real_moves)
        if loss_name == "generator":
            network.critic.requires_grad_(False)
            fake = network.critic(seen_by_critic(network.generator(z, y), fake_moves), y)
            with torch.no_grad():
                real_scores = network.critic(real, y)
            network.critic.requires_grad_(True)
            return relativistic_loss(fake, real_scores)
        with torch.no_grad():
            fake = seen_by_critic(network.generator(z, y), fake_moves)
        return self._critic_loss(real, fake, y)

    def _critic_loss(self, real: Tensor, fake: Tensor, y: Tensor) -> Tensor:
        """Loss of pairs, with the gradients of the first few on both sides."""
        critic = self.network.critic
        n = -(-len(y) // PENALISED_SHARE)
        pair = torch.cat([real[:n], fake[:n]])
        penalised, slopes = slope_penalty(lambda x: critic(x, y[:n].repeat(2)), pair)
        rest = critic(torch.cat([real[n:], fake[n:]]), y[n:].repeat(2))
        real_scores = torch.cat([penalised[:n], rest[: len(y) - n]])
        fake_scores = torch.cat([penalised[n:], rest[len(y) - n :]])
        # gamma / 2 (R1 + R2) is gamma times the mean over both sides.
        return relativistic_loss(real_scores, fake_scores) + self.penalty * slopes.mean()


class ImageGan(ImageNetwork[GanModel, GanNetwork]):
    """One generator for all classes; see the module."""

    params_class = GanModel
    phase_class = GanPhase

    @property
    def width(self) -> int:
        """Channels at the higher resolution."""
        return self.params.width or WIDTH

    def new_network(self) -> GanNetwork:
        """Untrained generator and critic."""
        shape = {"size": self.spec.size, "channels": self.spec.channels}
        depth = self.params.depth or DEPTH
        layers = {"n_classes": self.spec.n_classes, "width": self.width, "depth": depth}
        n_latent = self.params.n_latent or N_LATENT
        return GanNetwork(
            Generator(**shape, **layers, n_latent=n_latent), Critic(**shape, **layers)
        )

    def useful_threads(self, batch_size: int) -> int:
        """1 if a step is too small for several threads, else 0: as many as there are cores."""
        return threads_of_step(self.spec.size, self.width, batch_size)

    def train(self, phase: ImagePhase, device: Device, ctx: FitContext) -> tuple[nn.Module, int]:
        """Train with early stopping on the generator's images."""
        assert isinstance(phase, GanPhase)
        records = phase.records
        real = {
            k: to_unit(records.take(torch.from_numpy(places).to(records.y.device)))
            for k, places in compared_rows(records.y.cpu().numpy()).items()
        }
        validate = GanValidation(self.draw, real, ctx.seed) if real else None
        # The distance fluctuates: use the whole budget.
        result = train_with_early_stopping(
            phase, ctx, device, validate=validate, patience=N_STRETCHES
        )
        self.stopped = result.reason
        return result.network, result.steps

    def draw(self, network: GanNetwork, y: Tensor, keys: Uint64) -> Tensor:
        """Images of each record's latent vector."""
        z = torch.from_numpy(normal(keys, network.generator.n_latent)).to(y.device)
        with self.device.autocast():
            return network.generator(z, y)

    def extra_state(self) -> tuple[Config, Arrays]:
        """Why training ended early."""
        return {"stopped": self.stopped}, {}

    def load_extra_state(self, config: Config, arrays: Arrays) -> None:
        """Inverse of :meth:`extra_state`."""
        self.stopped = config["stopped"]
