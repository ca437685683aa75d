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
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prefect_augment.genmodels.base import Config, FitContext
from prefect_augment.genmodels.counter_random import normal, record_keys
from prefect_augment.genmodels.gan_judge import GanJudge, judged_rows
from prefect_augment.genmodels.gan_losses import GanPhase
from prefect_augment.genmodels.gan_networks import Critic, GanNetwork, Generator
from prefect_augment.genmodels.image_network import ImageNetwork
from prefect_augment.genmodels.image_training import ImagePhase, ImageRecords, to_unit
from prefect_augment.params import GanModel
from prefect_augment.training.devices import Device
from prefect_augment.training.networks import patch_size
from prefect_augment.training.stopping import N_STRETCHES, train_watched

__all__ = ["ImageGan"]

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
        found = train_watched(
            phase,
            steps=ctx.steps,
            seed=ctx.seed,
            device=device,
            judge=self._judge(phase.records, device, ctx.seed),
            ema_fraction=self.params.ema_fraction,
            patience=N_STRETCHES,  # the distance goes up and down: all of the budget is taken
            on_progress=ctx.report,
            checkpoint=ctx.checkpoint,
            checkpoint_seconds=ctx.checkpoint_seconds,
            restored=ctx.restored,
        )
        self.stopped = found.reason
        return found.network, found.steps

    def _judge(self, records: ImageRecords, device: Device, seed: int) -> GanJudge | None:
        def draw(network: Any, y: NDArray[np.int64], seeds: NDArray[np.int64]) -> Tensor:
            labels = torch.from_numpy(y).to(device.torch)
            with torch.inference_mode(), device.autocast():
                return self._made(network, labels, record_keys(seeds))

        rows = judged_rows(records.y.cpu().numpy())
        if not rows:
            return None
        real = {
            k: to_unit(records.take(torch.from_numpy(places).to(records.y.device)))
            for k, places in rows.items()
        }
        return GanJudge(draw, real, seed)

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
