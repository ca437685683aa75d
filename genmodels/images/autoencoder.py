"""Autoencoders of images, and draws from their latent space.

An encoder maps pixels to a code, without the class; a decoder maps it back; the loss is the mean
squared error. Variants regularise it:

- ``dense``: pixels, code, pixels, with no layer between (the classic 784-64-784);
- ``conv``: convolutions on both sides;
- ``deep``: several dense layers, each pretrained as a restricted Boltzmann machine
  (:mod:`.autoencoder_training`), then unrolled and trained together (Hinton & Salakhutdinov 2006);
- ``denoising``: noise is added to the input, and the clean image is the target (Vincent et al.
  2008, "Extracting and Composing Robust Features");
- ``sparse``: few units of the code are active, by the divergence of their mean activations from
  ``sparsity`` (Ng 2011, "Sparse autoencoder", section 2) or by the sum of activations;
- ``contractive``: a penalty on the squared Frobenius norm of the encoder's Jacobian (Rifai et al.
  2011, "Contractive Auto-Encoders", equation 2), estimated with one random direction per record.

Images are drawn from a mixture of normals per class fitted to the training records' codes
(:mod:`.latent_density`), or between the codes of neighbours (:mod:`.latent_neighbours`).
"""

from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from prefect_augment.genmodels.base import FitContext, ImageSpec
from prefect_augment.genmodels.images.autoencoder_network import Codec, Squash, check_conv_width
from prefect_augment.genmodels.images.autoencoder_training import (
    AutoencoderPhase,
    LayerPhase,
    n_pretraining,
)
from prefect_augment.genmodels.images.latent import (
    AT_ONCE,
    LatentImages,
    code_size,
    smoothed_errors,
    to_shares,
)
from prefect_augment.genmodels.images.training import ImagePhase, ImageRecords
from prefect_augment.nn.devices import Device
from prefect_augment.nn.sequence import Stretch, mean_seconds_per_step, train_in_turn
from prefect_augment.params import AutoencoderModel

__all__ = ["Autoencoder"]

# Default widths; the first layer of a deep one is the widest.
DENSE_WIDTH, DEEP_WIDTH, CONV_WIDTH = 512, 1024, 32
# Of a deep autoencoder, whose lowest visible units have variance 1: about a pixel's deviation.
PIXEL_SCALE = 0.3


class Autoencoder(LatentImages[AutoencoderModel, Codec]):
    """One autoencoder for all classes, and the density of each class; see the module."""

    params_class: ClassVar[type[Any]] = AutoencoderModel
    batch_sizes: ClassVar[dict[str, int]] = {"cpu": 128, "cuda": 512}

    @classmethod
    def build(cls, params: Any, spec: ImageSpec) -> Self:
        """Return an untrained model; refuses a width that convolutions cannot have."""
        model = super().build(params, spec)
        if model.conv:
            check_conv_width(params.width)
        return model

    @property
    def conv(self) -> bool:
        """Whether layers are convolutions."""
        if self.params.variant in ("dense", "deep", "conv"):
            return self.params.variant == "conv"
        return self.params.layers != "dense"

    @property
    def n_latent(self) -> int:
        """Size of a latent vector."""
        return code_size(self.params.n_latent, self.spec)

    def new_network(self) -> Codec:
        """Encoder and decoder."""
        variant = self.params.variant
        widths: tuple[int, ...] = (self.params.width or CONV_WIDTH,)
        if not self.conv:
            widest = self.params.width or (DEEP_WIDTH if variant == "deep" else DENSE_WIDTH)
            n_hidden = 0 if variant == "dense" else self.params.depth
            widths = tuple(max(1, widest // 2**i) for i in range(n_hidden))
        codes: dict[str, Squash] = {"dense": "relu", "sparse": "sigmoid"}
        if self.params.sparse_by == "l1":
            codes["sparse"] = "relu"
        return Codec(
            self.spec.size,
            self.spec.channels,
            self.n_latent,
            widths=widths,
            conv=self.conv,
            hidden="sigmoid" if variant == "deep" else "relu",
            code=codes.get(variant, "linear"),
            output="linear" if variant == "deep" else "sigmoid",
            scale=PIXEL_SCALE if variant == "deep" else 1.0,
        )

    def new_phase(self, network: Codec, records: ImageRecords, batch_size: int) -> AutoencoderPhase:
        """Train both together."""
        return AutoencoderPhase(network, records, self.params, batch_size)

    def train(self, phase: ImagePhase, device: Device, ctx: FitContext) -> tuple[nn.Module, int]:
        """Pretrain layer by layer first, if the variant does."""
        if self.params.variant != "deep":
            return super().train(phase, device, ctx)
        return train_in_turn(
            self._stretches(phase, ctx.steps),
            seed=ctx.seed,
            device=device,
            ema_fraction=self.params.ema_fraction,
            on_progress=ctx.report,
            checkpoint=ctx.checkpoint,
            checkpoint_seconds=ctx.checkpoint_seconds,
            restored=ctx.restored,
        )

    def step_seconds(self, phase: ImagePhase, device: Device, seed: int) -> float:
        """Mean over pretraining and fine-tuning, weighted by their steps."""
        if self.params.variant != "deep":
            return super().step_seconds(phase, device, seed)
        return mean_seconds_per_step(self._stretches(phase, 10_000), seed=seed, device=device)

    def _stretches(self, phase: ImagePhase, steps: int) -> list[Stretch]:
        """One stretch per layer, unrolled at its end, and the fine-tuning."""
        network: Codec = phase.network
        n_layers = network.n_layers
        each = n_pretraining(self.params.pretraining, steps, n_layers)
        whole = Stretch(phase, steps - each * n_layers)
        if not each:
            return [whole]
        layers = [
            LayerPhase(network, phase.records, self.params, phase.batch_size, layer=i)
            for i in range(n_layers)
        ]
        return [*(Stretch(layer, each, layer.unroll) for layer in layers), whole]

    def after_training(self, network: Codec, records: ImageRecords, seed: int) -> None:
        """Fit the densities to the records' codes."""
        with torch.inference_mode():
            codes = [
                network.encode(to_shares(part.to(records.y.device)))
                for part in records.images.split(AT_ONCE)
            ]
        self.fit_densities(torch.cat(codes).cpu().numpy().astype(np.float32), records, seed)

    def raw(self, network: Codec, images: Tensor) -> Tensor:
        """Codes before their activation."""
        return network.encode(images)

    def codes(self, network: Codec, raw: Tensor) -> Tensor:
        """Codes."""
        return network.activated(raw)

    def decoded(self, network: Codec, codes: Tensor) -> Tensor:
        """The decoder's images, clamped to [0, 1]."""
        return network.decode(codes).clamp(0.0, 1.0)

    def anomaly(self, network: Codec, images: Tensor) -> Tensor:
        """Mean of :func:`.smoothed_errors` over the image."""
        back = self.decoded(network, network.activated(network.encode(images)))
        return smoothed_errors(images, back).mean(dim=(1, 2))
