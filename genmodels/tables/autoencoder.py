"""Autoencoders of tables, and draws from their latent space.

An encoder maps a record's codes and scores (:mod:`.mixed_encoding`), without its class, to a latent
vector. A decoder maps it back and sees the class of half of the records. The loss is the
cross-entropy of the codes and the squared error of the scores. Variants regularise it:

- ``dense``: one hidden layer each way (Hinton & Salakhutdinov 2006); ``deep``: several blocks;
- ``denoising``: some columns hold another record's values (swap noise), and the record's own are
  the target (Vincent et al. 2008, "Extracting and Composing Robust Features");
- ``sparse``: activations in (0, 1) with mean ``sparsity``, by Kullback-Leibler divergence (Ng 2011,
  "Sparse autoencoder", section 2);
- ``contractive``: a penalty on the squared Frobenius norm of the encoder's Jacobian (Rifai et al.
  2011, "Contractive Auto-Encoders", equation 2), estimated with one random direction per record.

Vectors are drawn from a mixture of normals per class, fitted to the training records'
(:class:`.ClassDensities`), or between neighbours (:class:`.ClassNeighbours`). Codes are drawn from
their posterior, scores with the residual standard deviation.
"""

from typing import Any, Self

import torch
from torch import Tensor, nn

from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.base import Arrays, Config, TableSpec
from prefect_augment.genmodels.latents import ClassNeighbours, jacobian_norm, sparsity_divergence
from prefect_augment.genmodels.network import RecordNumbers
from prefect_augment.genmodels.tables.latent import LatentNetwork, LatentTable
from prefect_augment.genmodels.tables.mixed_encoding import MixedSpace
from prefect_augment.genmodels.tables.training import Encoded, TablePhase
from prefect_augment.nn.networks import ResidualMLP
from prefect_augment.params import AutoencoderModel

WIDTH = 256  # default width
NOISE = 0.1
AT_ONCE = 4096
PER_COMPONENT = 96  # records: without a prior, smaller components would fit single records
CLASS_DROPOUT = 0.5  # share of records decoded without their class, so that latents encode it
LATENT_DECAY = 1e-3  # of latent vectors, which would grow without bound otherwise


class AutoencoderNetwork(LatentNetwork):
    """Encoder and decoder; ``sparse`` bounds the latent activations to (0, 1).

    With depth 0 each has one hidden layer.
    """

    def __init__(
        self,
        space: MixedSpace,
        n_classes: int,
        *,
        n_latent: int,
        width: int,
        depth: int,
        sparse: bool = False,
    ) -> None:
        super().__init__(space, n_classes, n_latent)
        self.sparse = sparse
        encoder = ResidualMLP(self.n_record, n_latent, width=width, depth=depth)
        decoder = ResidualMLP(n_latent + n_classes, self.n_record, width=width, depth=depth)
        self.codec = nn.ModuleDict({"encoder": encoder, "decoder": decoder})

    def encode(self, inputs: Tensor) -> Tensor:
        """Latent vectors before any activation, (n, n_latent)."""
        return self.codec["encoder"](inputs)

    def activated(self, z: Tensor) -> Tensor:
        """What the decoder reads of latent vectors."""
        return torch.sigmoid(z) if self.sparse else z

    def decode(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Bounded logits (n, total) and mean scores (n, n_scores)."""
        return self.parts(self.codec["decoder"](self.with_class(z, y)))


class AutoencoderPhase(TablePhase):
    """Reconstruction with the variant's penalty."""

    name = "table-autoencoder"
    params: AutoencoderModel

    def noisy(self, records: Encoded, rows: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Codes, scores, has_score, classes, codes and scores as seen, and directions of a batch."""
        space, n, device = records.space, len(rows), rows.device
        codes, has_score = records.codes[rows], records.has_score[rows]
        scores = records.drawn_scores(rows, rng) * has_score
        seen_codes, seen_scores = codes, scores
        if self.params.variant == "denoising":
            shape, share = (n, space.spec.n_columns), self.params.noise or NOISE
            swapped = torch.rand(shape, generator=rng, device=device) < share
            other = torch.randperm(n, generator=rng, device=device)
            of_codes, of_scores = (
                [part.column for part in parts] for parts in (space.choices, space.scores)
            )
            seen_codes = torch.where(swapped[:, of_codes], codes[other], codes)
            seen_scores = torch.where(swapped[:, of_scores], scores[other], scores)
        n_directions = self.network.n_latent if self.params.variant == "contractive" else 0
        directions = torch.randn(n, n_directions, generator=rng, device=device)
        hidden = torch.rand(n, generator=rng, device=device) < CLASS_DROPOUT
        y = torch.where(hidden, self.network.n_classes, records.y[rows])
        return codes, scores, has_score, y, seen_codes, seen_scores, directions

    def part_losses(
        self,
        network: AutoencoderNetwork,
        batch: tuple[Tensor, ...],
        frozen: frozenset[str] = frozenset(),
    ) -> dict[str, Tensor]:
        """Mean error per choice and score; in training with the penalty."""
        codes, scores, has_score, y, seen_codes, seen_scores, directions = batch
        inputs = network.inputs(seen_codes, seen_scores)
        training, variant = torch.is_grad_enabled(), self.params.variant
        if training and variant == "contractive":
            inputs.requires_grad_(True)
        z = network.encode(inputs)
        n_values = codes.shape[1] + scores.shape[1]
        loss = network.error(z, codes, scores, has_score, y).mean() / n_values
        if not training:
            return {"codec": loss}
        if variant == "sparse":
            divergence = sparsity_divergence(network.activated(z), self.params.sparsity)
            return {"codec": loss + self.params.penalty * divergence / network.n_latent}
        loss = loss + LATENT_DECAY * (z**2).mean()
        if variant == "contractive":
            norm = jacobian_norm(z, inputs, directions).mean()
            loss = loss + self.params.penalty * norm / network.n_latent
        return {"codec": loss}


class TableAutoencoder(LatentTable[AutoencoderModel, AutoencoderNetwork]):
    """One autoencoder for all classes, and the density of each class; see the module."""

    params_class = AutoencoderModel
    phase_class = AutoencoderPhase
    _neighbours: ClassNeighbours | None = None
    _deviations: Tensor  # (n_scores,) of the scores about their means

    @classmethod
    def build(cls, params: Any, spec: TableSpec) -> Self:
        """Return an untrained model; refuses params that are for autoencoders of images."""
        model = super().build(params, spec)
        of_images = {"variant": ("conv",), "layers": ("dense", "conv"), "sparse_by": ("l1",)}
        given = {name: getattr(params, name) for name in of_images}
        wrong = [f"model.{name} {v!r}" for name, v in given.items() if v in of_images[name]]
        if wrong:
            raise ParameterError(
                f"{', '.join(wrong)} is for images, and the source holds a table; leave it out."
            )
        return model

    def new_network(self) -> AutoencoderNetwork:
        """Return encoder and decoder."""
        return AutoencoderNetwork(
            self.space,
            self.spec.n_classes,
            n_latent=self.latent_size,
            width=self.params.width or WIDTH,
            depth=0 if self.params.variant == "dense" else self.params.depth,
            sparse=self.params.variant == "sparse",
        )

    def after_training(self, network: AutoencoderNetwork, records: Encoded, seed: int) -> None:
        """Fit a density per class, and the residual standard deviation of each score."""
        y, scores = records.y, records.middle_scores
        parts = zip(*(part.split(AT_ONCE) for part in (records.codes, scores, y)), strict=True)
        raw, squared = [], []
        with torch.inference_mode():
            for codes, part, labels in parts:
                raw.append(network.encode(network.inputs(codes, part)))
                means = network.decode(network.activated(raw[-1]), labels)[1]
                squared.append((means - part) ** 2)
            total = (torch.cat(squared) * records.has_score).sum(dim=0)
            self._deviations = (total / records.has_score.sum(dim=0).clamp(min=1)).sqrt()
        Z = torch.cat(raw).cpu().numpy()
        self.fit_densities(Z, records, seed, per_component=PER_COMPONENT)
        if self.params.drawn_by == "neighbours":
            labels, n_classes = y.cpu().numpy(), self.spec.n_classes
            self._neighbours = ClassNeighbours.fit(Z, labels, n_classes, seed=seed)

    def draw(
        self, network: AutoencoderNetwork, y: Tensor, numbers: RecordNumbers
    ) -> tuple[Tensor, Tensor]:
        """Draw a vector of the class, then its codes and scores."""
        z = (self._neighbours or self._densities).draw(y, numbers)
        logits, means = network.decode(network.activated(z), y)
        codes = network.layout.draw(logits, numbers.uniforms(len(network.layout)))
        return codes, means + self._deviations * numbers.normals(network.n_scores)

    def extra_state(self) -> tuple[Config, Arrays]:
        """The space, densities, neighbours and deviations."""
        config, arrays = super().extra_state()
        if self.trains:
            arrays |= {} if self._neighbours is None else self._neighbours.arrays()
            arrays |= {"deviations": self._deviations.cpu().numpy()}
        return config, arrays

    def load_extra_state(self, config: Config, arrays: Arrays) -> None:
        """Inverse of :meth:`extra_state`."""
        super().load_extra_state(config, arrays)
        if self.trains:
            if self.params.drawn_by == "neighbours":
                self._neighbours = ClassNeighbours.from_arrays(arrays)
            self._deviations = torch.from_numpy(arrays["deviations"].copy()).to(self.device.torch)
