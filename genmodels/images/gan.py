"""Class-conditional GAN of images in the manner of R3GAN.

A generator maps a normal vector and a class to an image; a critic scores how real images look. The
loss is relativistic, with gradient penalties at real and generated images (Huang et al. 2024, "The
GAN is dead; long live the GAN! A Modern GAN Baseline", R3GAN). Networks are residual without norms
(:mod:`.gan_network`). For few images both sides are augmented at random before the critic sees them
(:mod:`.training`), classes are drawn with p ∝ n_k**q, and the generator's weights are averaged.

The relativistic critic scores how much more real a real image looks than a generated one of the
same class; the generator wants the opposite (Jolicoeur-Martineau 2018, "The relativistic
discriminator"). Because of the pairs, a few good images are not enough. The squared gradients of
the critic at real (R1) and generated images (R2) make the game converge (R3GAN, equations 2 to 4).

Sixteen times in training, images drawn by the averaged generator are compared with real ones of
each class (:mod:`.gan_eval`), and the best generator stays. If the images of a class have
collapsed, training ends and ``stopped`` says so.

A GAN draws an image in one pass, :mod:`.flow_matching` takes a dozen.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from prefect_augment.genmodels.base import Config, FitContext
from prefect_augment.genmodels.counter_rng import normal, record_keys
from prefect_augment.genmodels.images.gan_eval import GanValidation, compared_rows
from prefect_augment.genmodels.images.gan_network import Critic, GanNetwork, Generator
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
from prefect_augment.nn.early_stopping import N_STRETCHES, train_with_early_stopping
from prefect_augment.params import GanModel

__all__ = ["GanPhase", "ImageGan", "relativistic_loss", "slope_penalty"]

# Defaults of params that are 0.
WIDTH, DEPTH, N_LATENT, CRITIC_STEPS = 32, 1, 64, 1
PENALTY, LEARNING_RATE = 1.0, 0.002

# One record in so many is penalised: its gradient costs as much as four other records.
PENALISED_SHARE = 4
LAST_PENALTY = 0.1  # of the first, as in R3GAN


class ImageGan(ImageNetwork[GanModel, GanNetwork]):
    """One generator for all classes; see the module.

    ``stopped`` says why training ended before its last step, if it did.
    """

    params_class: ClassVar[type[Any]] = GanModel
    stopped = ""
    batch_sizes: ClassVar[dict[str, int]] = {"cpu": 64, "cuda": 256}

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

    def new_phase(self, network: GanNetwork, records: ImageRecords, batch_size: int) -> "GanPhase":
        """The game of the two."""
        return GanPhase(network, records, self.params, batch_size)

    def useful_threads(self, batch_size: int) -> int:
        """1 if a step is too small for several threads, else 0: as many as there are cores."""
        return threads_of_step(self.spec.size, self.width, batch_size)

    def train(self, phase: ImagePhase, device: Device, ctx: FitContext) -> tuple[nn.Module, int]:
        """Train with early stopping on the generator's images."""
        assert isinstance(phase, GanPhase)
        result = train_with_early_stopping(
            phase,
            steps=ctx.steps,
            seed=ctx.seed,
            device=device,
            validate=self._validation(phase.records, device, ctx.seed),
            ema_fraction=self.params.ema_fraction,
            patience=N_STRETCHES,  # the distance fluctuates: use the whole budget
            on_progress=ctx.report,
            checkpoint=ctx.checkpoint,
            checkpoint_seconds=ctx.checkpoint_seconds,
            restored=ctx.restored,
        )
        self.stopped = result.reason
        return result.network, result.steps

    def _validation(self, records: ImageRecords, device: Device, seed: int) -> GanValidation | None:
        def draw(network: Any, y: NDArray[np.int64], seeds: NDArray[np.int64]) -> Tensor:
            labels = torch.from_numpy(y).to(device.torch)
            with torch.inference_mode(), device.autocast():
                return self._generate(network, labels, record_keys(seeds))

        rows = compared_rows(records.y.cpu().numpy())
        if not rows:
            return None
        real = {
            k: to_unit(records.take(torch.from_numpy(places).to(records.y.device)))
            for k, places in rows.items()
        }
        return GanValidation(draw, real, seed)

    def draw(self, network: GanNetwork, y: Tensor, keys: NDArray[np.uint64]) -> Tensor:
        """Images of each record's latent vector."""
        with self.device.autocast():
            return self._generate(network, y, keys)

    @staticmethod
    def _generate(network: GanNetwork, y: Tensor, keys: NDArray[np.uint64]) -> Tensor:
        z = torch.from_numpy(normal(keys, network.generator.n_latent)).to(y.device)
        images: Tensor = network.generator(z, y)
        return images

    def extra_config(self) -> Config:
        """Why training ended early."""
        return {"stopped": self.stopped}

    def load_extra_config(self, config: Config) -> None:
        """Inverse of :meth:`extra_config`."""
        self.stopped = config["stopped"]


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
        self.frozen: frozenset[str] = frozenset()

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
        n, device, records = self.batch_size, self.device, self.records
        rows = records.rows(n, rng)
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
