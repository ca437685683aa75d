"""Class-conditional adversarial networks of images, in the manner of R3GAN.

A generator makes images of a normal vector and a class, a critic tells them from real ones. The loss
is relativistic, with squared slopes at real and made images held down (:mod:`.gan_losses`): Huang et
al. 2024, "The GAN is dead; long live the GAN! A Modern GAN Baseline". Networks are residual and have
no norms (:mod:`.gan_networks`). For few images both sides pass through the same random moves before the
critic sees them (:mod:`.image_augmentation`), classes are drawn with p ∝ n_k**q, and the generator is
averaged over the run.

Training is watched: sixteen times the averaged generator draws images of every class, which are
compared with real ones (:mod:`.gan_judge`). The best one stays; where the images of a class have become
all the same, training ends there and ``stopped`` says so.

A GAN draws an image in one pass, where :mod:`.diffusion` takes a dozen.

The game of generator and critic: relativistic pairs, and slopes held down on both sides.

The critic says how much more real a real image looks than a made one of the same class, the generator
wants it the other way round (Jolicoeur-Martineau 2018, "The relativistic discriminator"). Pairs leave
no way to please by a few images: each has to look as real as another real one. Squared slopes of the
critic at real (R1) and at made images (R2) are what makes the game settle: Huang et al. 2024, "The GAN
is dead; long live the GAN! A Modern GAN Baseline" (R3GAN), equations 2 to 4.
"""

from __future__ import annotations

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
from prefect_augment.genmodels.images.network import ImageNetwork
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
from prefect_augment.nn.networks import patch_size
from prefect_augment.params import GanModel

__all__ = ["GanPhase", "ImageGan", "relativistic_loss", "slope_penalty"]

# What 0 in the wish stands for.
WIDTH, DEPTH, N_LATENT, CRITIC_STEPS = 32, 1, 64, 1
PENALTY, LEARNING_RATE = 1.0, 0.002
# Batch times squares of pixels times width²: below it, threads wait for one another.
SMALL_STEP = 8_000_000


class ImageGan(ImageNetwork[GanModel, GanNetwork]):
    """One generator for all classes; see the module.

    Parameters
    ----------
    params : GanModel
        The wish.
    spec : ImageSpec
        Shape and classes.

    Attributes
    ----------
    stopped : str
        Why training ended before its last step; empty where it did not.
    """

    params_class: ClassVar[type[Any]] = GanModel
    stopped = ""
    batch_sizes: ClassVar[dict[str, int]] = {"cpu": 64, "cuda": 256}

    @property
    def width(self) -> int:
        """Channels at the higher resolution."""
        return self.params.width or WIDTH

    def new_network(self) -> GanNetwork:
        """Return untrained generator and critic."""
        shape = {"size": self.spec.size, "channels": self.spec.channels}
        depth = self.params.depth or DEPTH
        layers = {"n_classes": self.spec.n_classes, "width": self.width, "depth": depth}
        n_latent = self.params.n_latent or N_LATENT
        return GanNetwork(
            Generator(**shape, **layers, n_latent=n_latent), Critic(**shape, **layers)
        )

    def new_phase(self, network: GanNetwork, records: ImageRecords, batch_size: int) -> GanPhase:
        """Return the game of the two."""
        params = self.params
        return GanPhase(
            network,
            records,
            params,
            batch_size,
            critic_steps=params.critic_steps or CRITIC_STEPS,
            gradient_penalty=params.gradient_penalty or PENALTY,
            learning_rate=params.learning_rate or LEARNING_RATE,
        )

    def useful_threads(self, batch_size: int) -> int:
        """Return 1 where a step is too small to be shared, else 0: as many as there are cores."""
        squares = (self.spec.size / patch_size(self.spec.size)) ** 2
        return int(batch_size * squares * self.width**2 < SMALL_STEP)

    def train(self, phase: ImagePhase, device: Device, ctx: FitContext) -> tuple[nn.Module, int]:
        """Train while the generator's images are watched."""
        assert isinstance(phase, GanPhase)
        found = train_with_early_stopping(
            phase,
            steps=ctx.steps,
            seed=ctx.seed,
            device=device,
            validate=self._judge(phase.records, device, ctx.seed),
            ema_fraction=self.params.ema_fraction,
            patience=N_STRETCHES,  # the distance goes up and down: all of the budget is taken
            on_progress=ctx.report,
            checkpoint=ctx.checkpoint,
            checkpoint_seconds=ctx.checkpoint_seconds,
            restored=ctx.restored,
        )
        self.stopped = found.reason
        return found.network, found.steps

    def _judge(self, records: ImageRecords, device: Device, seed: int) -> GanValidation | None:
        def draw(network: Any, y: NDArray[np.int64], seeds: NDArray[np.int64]) -> Tensor:
            labels = torch.from_numpy(y).to(device.torch)
            with torch.inference_mode(), device.autocast():
                return self._made(network, labels, record_keys(seeds))

        rows = compared_rows(records.y.cpu().numpy())
        if not rows:
            return None
        real = {
            k: to_unit(records.take(torch.from_numpy(places).to(records.y.device)))
            for k, places in rows.items()
        }
        return GanValidation(draw, real, seed)

    def draw(self, network: GanNetwork, y: Tensor, keys: NDArray[np.uint64]) -> Tensor:
        """Return what the generator makes of each record's vector."""
        with self.device.autocast():
            return self._made(network, y, keys)

    @staticmethod
    def _made(network: GanNetwork, y: Tensor, keys: NDArray[np.uint64]) -> Tensor:
        z = torch.from_numpy(normal(keys, network.generator.n_latent)).to(y.device)
        images: Tensor = network.generator(z, y)
        return images

    def extra_config(self) -> Config:
        """Return why training ended early."""
        return {"stopped": self.stopped}

    def load_extra_config(self, config: Config) -> None:
        """Take it back."""
        self.stopped = config["stopped"]


# One record in so many has its slopes measured in a step: that takes as long as all the rest for four.
PENALISED_SHARE = 4
LAST_PENALTY = 0.1  # of the first: R3GAN lets it fall by ten as well


def relativistic_loss(better: Tensor, worse: Tensor) -> Tensor:
    """Return the mean of log(1 + exp(worse - better)) over pairs.

    Parameters
    ----------
    better, worse : Tensor, shape (n,)
        The critic's numbers: of real and made images for the critic, the other way for the generator.

    References
    ----------
    Huang et al. 2024, equation 2 with f(t) = -log(1 + exp(-t)).
    """
    return F.softplus(worse - better).mean()


def slope_penalty(critic: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the critic's numbers, and the squared length of its slope at each image, both (n,).

    Parameters
    ----------
    critic : callable
        Takes images (n, c, h, w), returns one number each, which depends on that image alone.
    images : Tensor, shape (n, c, h, w)

    References
    ----------
    Mescheder et al. 2018, "Which Training Methods for GANs do actually Converge?", equation 9, twice.
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
        self,
        network: GanNetwork,
        records: ImageRecords,
        params: Any,
        batch_size: int,
        *,
        critic_steps: int,
        gradient_penalty: float,
        learning_rate: float,
    ) -> None:
        super().__init__(network, records, params, batch_size)
        self.critic_steps = critic_steps
        self.first_penalty = self.penalty = gradient_penalty
        self.learning_rate = learning_rate
        self.frozen: frozenset[str] = frozenset()

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Critic, several times where asked for (one and the same), then generator."""

        def adam(part: torch.nn.Module) -> torch.optim.Optimizer:
            # Without momentum, as R3GAN and StyleGAN have it: the other side moves too.
            return torch.optim.AdamW(
                part.parameters(),
                lr=self.learning_rate,
                betas=(0.0, 0.99),
                weight_decay=self.params.weight_decay,
                fused=True,
            )

        critic = adam(self.network.critic)
        optimizers = {f"critic-{i}": critic for i in range(self.critic_steps)}
        return {**optimizers, "generator": adam(self.network.generator)}

    def lr_factor(self, step: int, n_steps: int) -> float:
        """Warm-up and half a cosine; the penalty falls along half a cosine too."""
        # The loop opens every step by asking this, and tells its number nowhere else.
        done = 0.5 - 0.5 * math.cos(math.pi * min(1.0, step / n_steps))
        self.penalty = self.first_penalty * (1.0 + done * (LAST_PENALTY - 1.0))
        return loop.warmup_cosine(step, n_steps)

    def batch(self, loss_name: str, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return images, classes, latent vectors, and how the critic sees real and made images."""
        n, device, records = self.batch_size, self.device, self.records
        rows = records.rows(n, rng)
        z = torch.randn(n, self.network.generator.n_latent, generator=rng, device=device)
        moves = [critic_moves(n, self.params.augment_prob, rng, device) for _ in range(2)]
        return records.take(rows), records.y[rows], z, *moves

    def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the loss of the critic, or of the generator."""
        images, y, z, real_moves, made_moves = batch
        network = self.network
        real = seen_by_critic(to_unit(images), real_moves)
        if loss_name == "generator":
            network.critic.requires_grad_(False)
            made = network.critic(seen_by_critic(network.generator(z, y), made_moves), y)
            with torch.no_grad():
                other = network.critic(real, y)
            network.critic.requires_grad_(True)
            return relativistic_loss(made, other)
        with torch.no_grad():
            made = seen_by_critic(network.generator(z, y), made_moves)
        return self._critic_loss(real, made, y)

    def _critic_loss(self, real: Tensor, made: Tensor, y: Tensor) -> Tensor:
        """Return the loss of pairs, with the slopes of the first few on both sides."""
        critic = self.network.critic
        n = -(-len(y) // PENALISED_SHARE)
        pair = torch.cat([real[:n], made[:n]])
        few, slopes = slope_penalty(lambda x: critic(x, y[:n].repeat(2)), pair)
        rest = critic(torch.cat([real[n:], made[n:]]), y[n:].repeat(2))
        of_real = torch.cat([few[:n], rest[: len(y) - n]])
        of_made = torch.cat([few[n:], rest[len(y) - n :]])
        # Both sides' means: the mean over the two together, twice.
        return relativistic_loss(of_real, of_made) + self.penalty * slopes.mean()
