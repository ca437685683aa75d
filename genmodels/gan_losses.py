"""The game of generator and critic: relativistic pairs, and slopes held down on both sides.

The critic says how much more real a real image looks than a made one of the same class, the generator
wants it the other way round (Jolicoeur-Martineau 2018, "The relativistic discriminator"). Pairs leave
no way to please by a few images: each has to look as real as another real one. Squared slopes of the
critic at real (R1) and at made images (R2) are what makes the game settle: Huang et al. 2024, "The GAN
is dead; long live the GAN! A Modern GAN Baseline" (R3GAN), equations 2 to 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prefect_augment.genmodels.gan_networks import GanNetwork
from prefect_augment.genmodels.image_augmentation import critic_moves, seen_by_critic
from prefect_augment.genmodels.image_training import ImagePhase, ImageRecords, to_unit
from prefect_augment.params import GanModel
from prefect_augment.training import loop

__all__ = ["GanPhase", "relativistic_loss", "slope_penalty"]

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
        self.resting: frozenset[str] = frozenset()

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
