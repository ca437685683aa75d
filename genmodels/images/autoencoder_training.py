"""How autoencoders of images are trained: all at once, and layer by layer before that.

Restricted Boltzmann machines: layers learnt one by one, each from what the one below makes.

A machine of visible units v and hidden ones h has the energy
``E(v, h) = E(v) - b·v - c·h - h·Wv + E(h)``, with ``E(v) = |v|²/2`` where visible units are real
numbers of variance 1 (pixels), and 0 where they are 0 or 1; the same for hidden units.

References
----------
Hinton & Salakhutdinov 2006, "Reducing the Dimensionality of Data with Neural Networks": a stack of
machines, unrolled into an encoder and a decoder. Hinton 2002, "Training Products of Experts by
Minimizing Contrastive Divergence".

What keeps autoencoders from learning mere copies, of tables and of images: penalties of the code.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefect_augment.genmodels.autoencoder_losses import jacobian_norm, sparsity_divergence
from prefect_augment.genmodels.images.autoencoder_network import Codec, DenseStack
from prefect_augment.genmodels.images.latent import AT_ONCE, to_shares
from prefect_augment.genmodels.images.training import ImagePhase, ImageRecords
from prefect_augment.params import AutoencoderModel

__all__ = [
    "AutoencoderPhase",
    "LayerPhase",
    "Units",
    "contrastive_divergence",
    "free_energy",
    "n_pretraining",
]

NOISE = 0.5  # of denoising, where the wish does not say
MIN_VARIANCE = 1e-4  # of pixels, so that a set of nearly equal images does not blow up the loss
# Of layers on their own: after 200 steps each on mnist10k, what comes back has an error of 0.051 with
# 0.001, 0.031 with 0.005, 0.023 with 0.01 and 0.022 with 0.02.
LAYER_RATE = 0.01


def pixel_variance(images: Tensor) -> float:
    """Return the mean squared difference of pixels from the mean image, black to white being 1.

    Parameters
    ----------
    images : Tensor of uint8, shape (n, channels, size, size)
    """
    total = torch.zeros(2, *images.shape[1:], dtype=torch.float64, device=images.device)
    for some in images.split(AT_ONCE):
        pixels = to_shares(some).double()
        total[0] += pixels.sum(dim=0)
        total[1] += (pixels**2).sum(dim=0)
    mean, square = total / len(images)
    return max(MIN_VARIANCE, float((square - mean**2).mean()))


class AutoencoderPhase(ImagePhase):
    """Squared error of what comes back, as a share of the pixels' variance, and the variant's penalty."""

    name = "autoencoder"
    params: AutoencoderModel

    def __init__(
        self, network: Codec, records: ImageRecords, params: AutoencoderModel, batch_size: int
    ) -> None:
        super().__init__(network, records, params, batch_size)
        self.variance = pixel_variance(records.images)

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """AdamW with a short memory, as befits a few thousand steps."""
        return {
            "codec": torch.optim.AdamW(
                self.network.parameters(),
                lr=self.params.learning_rate,
                betas=(0.9, 0.99),
                weight_decay=self.params.weight_decay,
                fused=True,
            )
        }

    def batch(self, loss_name: str, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return images, their noise, and directions; the last two where the variant needs them."""
        n, device = self.batch_size, self.device
        images = self.records.take(self.records.rows(n, rng))
        noise = directions = torch.zeros(n, 0, device=device)
        if self.params.variant == "denoising":
            most = self.params.noise or NOISE
            deviations = most * torch.rand(n, 1, 1, 1, generator=rng, device=device)
            noise = deviations * torch.randn(images.shape, generator=rng, device=device)
        if self.params.variant == "contractive":
            directions = torch.randn(n, self.network.n_latent, generator=rng, device=device)
        return images, noise, directions

    def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the share of the variance that does not come back, and the penalty."""
        images, noise, directions = batch
        x = to_shares(images)
        variant, weight = self.params.variant, self.params.penalty
        # Pixels cannot hold more than white: noise is cut off as in an image that is stored.
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
        """Return the Jacobian's squared norm, for codes and pixels of variance 1.

        Without that, codes would shrink and the decoder grow (Rifai et al. tie their weights).
        """
        norm = jacobian_norm(z, seen, directions).mean()
        return norm * self.variance / z.var(dim=0, correction=0).sum().clamp(min=1e-6)


def n_pretraining(share: float, steps: int, n_layers: int) -> int:
    """Return the steps of each layer; one at least is left for all of them together.

    Examples
    --------
    >>> n_pretraining(0.3, 1000, 3), n_pretraining(0.3, 2, 3)
    (100, 0)
    """
    return int(share * steps / n_layers)


class LayerPhase(ImagePhase):
    """One layer as a restricted Boltzmann machine: its weights, and the biases on both sides.

    Parameters
    ----------
    network : Codec
        Dense; the layers below are trained already.
    records, params, batch_size
        As for :class:`.ImagePhase`.
    layer : int
        Which of the encoder's.
    """

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

    @property
    def up(self) -> nn.Linear:
        """The encoder's layer."""
        return _linear(self.network.encoder, self.layer)

    @property
    def down(self) -> nn.Linear:
        """The decoder's layer, whose biases are those of the visible units."""
        return _linear(self.network.decoder, self.network.n_layers - 1 - self.layer)

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Adam on this layer alone."""
        learnt = [*self.up.parameters(), self.down.bias]
        return {"layer": torch.optim.Adam(learnt, lr=LAYER_RATE, fused=True)}

    def batch(self, loss_name: str, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return images and the numbers that hidden units are drawn by."""
        images = self.records.take(self.records.rows(self.batch_size, rng))
        draw = torch.rand if self.hidden == "binary" else torch.randn
        shape = (self.batch_size, self.up.out_features)
        return images, draw(shape, generator=rng, device=self.device)

    def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the loss of contrastive divergence, in float32: it is a small difference."""
        images, numbers = batch
        with torch.autocast(self.device.type, enabled=False):
            with torch.no_grad():
                visible = self.network.below(to_shares(images), self.layer)
            return contrastive_divergence(
                visible, self.up, self.down.bias, numbers, visible=self.visible, hidden=self.hidden
            )

    def unroll(self) -> None:
        """Let the decoder begin with the same weights, turned round."""
        with torch.no_grad():
            self.down.weight.copy_(self.up.weight.T)


def _linear(stack: nn.Module, place: int) -> nn.Linear:
    assert isinstance(stack, DenseStack)
    layer = stack.layers[place]
    assert isinstance(layer, nn.Linear)
    return layer


Units = Literal["binary", "real"]


def free_energy(
    v: Tensor, up: nn.Linear, visible_bias: Tensor, *, visible: Units, hidden: Units
) -> Tensor:
    """Return -log of the sum (or integral) over h of exp(-E(v, h)), but for a constant, (n,).

    Parameters
    ----------
    v : Tensor, shape (n, n_visible)
    up : nn.Linear
        W, of shape (n_hidden, n_visible), and c.
    visible_bias : Tensor, shape (n_visible,)
        b.
    visible, hidden : {"binary", "real"}
        What the units are.
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
    """Return a loss whose gradient is that of CD-1: F(v) less F of what comes back, in the mean.

    Hidden units are drawn; visible ones come back as means, which has less noise (Hinton 2012, "A
    Practical Guide to Training Restricted Boltzmann Machines", section 3).

    Parameters
    ----------
    v : Tensor, shape (n, n_visible)
    up, visible_bias, visible, hidden
        As for :func:`free_energy`.
    numbers : Tensor, shape (n, n_hidden)
        Uniform in [0, 1) for binary hidden units, standard normal for real ones.
    """
    with torch.no_grad():
        sums = F.linear(v, up.weight, up.bias)
        drawn = (
            (numbers < torch.sigmoid(sums)).to(sums.dtype) if hidden == "binary" else sums + numbers
        )
        back = F.linear(drawn, up.weight.T, visible_bias)
        if visible == "binary":
            back = torch.sigmoid(back)
    kinds: dict[str, Units] = {"visible": visible, "hidden": hidden}
    energies = free_energy(v, up, visible_bias, **kinds)
    return (energies - free_energy(back, up, visible_bias, **kinds)).mean()
