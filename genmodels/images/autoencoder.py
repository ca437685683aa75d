"""Autoencoders of images, and draws from their latent space.

An encoder maps pixels to a code, without the class; a decoder maps it back; the loss is the mean
squared error. Variants regularise it:

- ``dense``: pixels, code, pixels, with no layer between (the classic 784-64-784);
- ``conv``: convolutions on both sides;
- ``deep``: several dense layers, each pretrained as a restricted Boltzmann machine,
  then unrolled and trained together (Hinton & Salakhutdinov 2006);
- ``denoising``: noise is added to the input, and the clean image is the target (Vincent et al.
  2008, "Extracting and Composing Robust Features");
- ``sparse``: few units of the code are active, by the divergence of their mean activations from
  ``sparsity`` (Ng 2011, "Sparse autoencoder", section 2) or by the sum of activations;
- ``contractive``: a penalty on the squared Frobenius norm of the encoder's Jacobian (Rifai et al.
  2011, "Contractive Auto-Encoders", equation 2), estimated with one random direction per record.

Images are drawn from a mixture of normals per class fitted to the training records' codes
(:class:`.ClassDensities`), or between the codes of neighbours (:class:`.ClassNeighbours`).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefect_augment.genmodels.base import FitContext
from prefect_augment.genmodels.images.autoencoder_network import Codec, Squash
from prefect_augment.genmodels.images.latent import (
    AT_ONCE,
    LatentImages,
    smoothed_errors,
    to_shares,
)
from prefect_augment.genmodels.images.training import ImagePhase, ImageRecords
from prefect_augment.genmodels.latents import jacobian_norm, sparsity_divergence
from prefect_augment.nn.devices import Device
from prefect_augment.nn.sequence import Stretch, mean_seconds_per_step, train_in_turn
from prefect_augment.params import AutoencoderModel

NOISE = 0.5  # default of denoising
MIN_VARIANCE = 1e-4  # of pixels, so that nearly equal images do not blow up the loss
# Of pretraining: after 200 steps per layer on mnist10k, the reconstruction error is 0.051 with 0.001,
# 0.031 with 0.005, 0.023 with 0.01 and 0.022 with 0.02.
LAYER_RATE = 0.01

Units = Literal["binary", "real"]


def pixel_variance(images: Tensor) -> float:
    """Mean squared difference of uint8 pixels from the mean image, black to white being 1."""
    total = torch.zeros(2, *images.shape[1:], dtype=torch.float64, device=images.device)
    for part in images.split(AT_ONCE):
        pixels = to_shares(part).double()
        total[0] += pixels.sum(dim=0)
        total[1] += (pixels**2).sum(dim=0)
    mean, square = total / len(images)
    return max(MIN_VARIANCE, float((square - mean**2).mean()))


class AutoencoderPhase(ImagePhase):
    """Squared reconstruction error over the pixels' variance, plus the variant's penalty."""

    name = "autoencoder"
    params: AutoencoderModel

    def __init__(
        self, network: Codec, records: ImageRecords, params: AutoencoderModel, batch_size: int
    ) -> None:
        super().__init__(network, records, params, batch_size)
        self.variance = pixel_variance(records.images)

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """AdamW on encoder and decoder."""
        return {"codec": self.adamw(self.network.parameters(), self.params.learning_rate)}

    def batch(self, loss_name: str, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Images, their noise and directions; the last two where the variant needs them."""
        n, device = self.batch_size, self.device
        images = self.records.take(self.rows(rng))
        noise = directions = torch.zeros(n, 0, device=device)
        if self.params.variant == "denoising":
            most = self.params.noise or NOISE
            deviations = most * torch.rand(n, 1, 1, 1, generator=rng, device=device)
            noise = deviations * torch.randn(images.shape, generator=rng, device=device)
        if self.params.variant == "contractive":
            directions = torch.randn(n, self.network.n_latent, generator=rng, device=device)
        return images, noise, directions

    def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
        """Share of the variance that is not reconstructed, plus the penalty."""
        images, noise, directions = batch
        x = to_shares(images)
        variant, weight = self.params.variant, self.params.penalty
        # Clamp the noise as in a stored image.
        seen = (x + noise).clamp(0.0, 1.0) if variant == "denoising" else x
        if variant == "contractive":
            seen = x.detach().requires_grad_(True)
        z = self.network.encode(seen)
        codes = self.network.activated(z)
        loss = ((self.network.decode(codes) - x) ** 2).mean() / self.variance
        if variant == "contractive":
            return loss + weight * self.contraction(z, seen, directions)
        if variant == "sparse" and self.params.sparse_by == "l1":
            return loss + weight * codes.mean()
        if variant == "sparse":
            divergence = sparsity_divergence(codes, self.params.sparsity)
            return loss + weight * divergence / self.network.n_latent
        return loss

    def contraction(self, z: Tensor, seen: Tensor, directions: Tensor) -> Tensor:
        """Squared norm of the Jacobian, for codes and pixels of variance 1.

        Without that scaling, codes would shrink and the decoder grow (Rifai et al. tie their
        weights).
        """
        norm = jacobian_norm(z, seen, directions).mean()
        return norm * self.variance / z.var(dim=0, correction=0).sum().clamp(min=1e-6)


class LayerPhase(ImagePhase):
    """One layer of a dense encoder as a restricted Boltzmann machine; the layers below are trained."""

    network: Codec

    def __init__(
        self,
        network: Codec,
        records: ImageRecords,
        params: AutoencoderModel,
        batch_size: int,
        *,
        layer: int,
    ) -> None:
        super().__init__(network, records, params, batch_size)
        self.name = f"autoencoder-layer-{layer}"
        self.layer = layer
        self.visible: Units = "real" if layer == 0 else "binary"
        self.hidden: Units = "real" if layer == network.n_layers - 1 else "binary"
        self.up: nn.Linear = network.encoder.layers[layer]
        # Its biases are those of the visible units.
        self.down: nn.Linear = network.decoder.layers[network.n_layers - 1 - layer]

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Adam on this layer alone."""
        learnt = [*self.up.parameters(), self.down.bias]
        return {"layer": torch.optim.Adam(learnt, lr=LAYER_RATE, fused=True)}

    def batch(self, loss_name: str, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Images, and the random numbers that draw hidden units."""
        images = self.records.take(self.rows(rng))
        draw = torch.rand if self.hidden == "binary" else torch.randn
        shape = (self.batch_size, self.up.out_features)
        return images, draw(shape, generator=rng, device=self.device)

    def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
        """Loss of contrastive divergence, in float32 because it is a small difference."""
        images, numbers = batch
        with torch.autocast(self.device.type, enabled=False):
            with torch.no_grad():
                visible = self.network.below(to_shares(images), self.layer)
            return contrastive_divergence(
                visible, self.up, self.down.bias, numbers, visible=self.visible, hidden=self.hidden
            )

    def unroll(self) -> None:
        """Initialise the decoder's layer with the transposed weights."""
        with torch.no_grad():
            self.down.weight.copy_(self.up.weight.T)


def free_energy(
    v: Tensor, up: nn.Linear, visible_bias: Tensor, *, visible: Units, hidden: Units
) -> Tensor:
    """-log of the sum (or integral) over h of exp(-E(v, h)), up to a constant, (n,).

    ``up`` holds W (n_hidden, n_visible) and c, ``visible_bias`` is b.
    """
    sums = F.linear(v, up.weight, up.bias)
    of_hidden = F.softplus(sums) if hidden == "binary" else 0.5 * sums**2
    own = 0.5 * (v**2).sum(dim=1) if visible == "real" else 0.0
    return own - v @ visible_bias - of_hidden.sum(dim=1)


def contrastive_divergence(
    v: Tensor,
    up: nn.Linear,
    visible_bias: Tensor,
    numbers: Tensor,
    *,
    visible: Units,
    hidden: Units,
) -> Tensor:
    """Loss whose gradient is that of CD-1: the mean of F(v) - F(reconstruction).

    Hidden units are drawn with ``numbers`` (n, n_hidden), uniform for binary and normal for real
    units. Visible ones are means, which has less noise (Hinton 2012, "A Practical Guide to Training
    Restricted Boltzmann Machines", section 3).
    """
    with torch.no_grad():
        sums = F.linear(v, up.weight, up.bias)
        drawn = (
            (numbers < torch.sigmoid(sums)).to(sums.dtype) if hidden == "binary" else sums + numbers
        )
        reconstruction = F.linear(drawn, up.weight.T, visible_bias)
        if visible == "binary":
            reconstruction = torch.sigmoid(reconstruction)
    units: dict[str, Units] = {"visible": visible, "hidden": hidden}
    energies = free_energy(v, up, visible_bias, **units)
    return (energies - free_energy(reconstruction, up, visible_bias, **units)).mean()


# Default widths; the first layer of a deep one is the widest.
DENSE_WIDTH, DEEP_WIDTH, CONV_WIDTH = 512, 1024, 32
# Of a deep autoencoder, whose lowest visible units have variance 1: about a pixel's deviation.
PIXEL_SCALE = 0.3


class Autoencoder(LatentImages[AutoencoderModel, Codec]):
    """One autoencoder for all classes, and the density of each class; see the module."""

    params_class = AutoencoderModel
    phase_class = AutoencoderPhase

    @property
    def conv(self) -> bool:
        """Whether layers are convolutions."""
        if self.params.variant in ("dense", "deep", "conv"):
            return self.params.variant == "conv"
        return self.params.layers != "dense"

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

    def train(self, phase: ImagePhase, device: Device, ctx: FitContext) -> tuple[nn.Module, int]:
        """Pretrain layer by layer first, if the variant does."""
        if self.params.variant != "deep":
            return super().train(phase, device, ctx)
        return train_in_turn(self._stretches(phase, ctx.steps), ctx, device)

    def step_seconds(self, phase: ImagePhase, device: Device, seed: int) -> float:
        """Mean over pretraining and fine-tuning, weighted by their steps."""
        if self.params.variant != "deep":
            return super().step_seconds(phase, device, seed)
        return mean_seconds_per_step(self._stretches(phase, 10_000), seed=seed, device=device)

    def _stretches(self, phase: ImagePhase, steps: int) -> list[Stretch]:
        """One stretch per layer, unrolled at its end, and the fine-tuning."""
        network: Codec = phase.network
        n_layers = network.n_layers  # at least one step is left for fine-tuning
        each = int(self.params.pretraining * steps / n_layers)
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
        self.fit_densities(network.encode, records, seed)

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
        return smoothed_errors(images, self._back(images)).mean(dim=(1, 2))
