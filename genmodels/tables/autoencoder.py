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
import torch.nn.functional as F
from torch import Tensor, nn

from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.autoencoder_losses import jacobian_norm, sparsity_divergence
from prefect_augment.genmodels.base import Arrays, TableSpec
from prefect_augment.genmodels.latent_density import ClassDensities
from prefect_augment.genmodels.latent_neighbours import ClassNeighbours
from prefect_augment.genmodels.record_numbers import RecordNumbers
from prefect_augment.genmodels.tables.latent import LatentTable
from prefect_augment.genmodels.tables.mixed_encoding import CodeLayout, MixedSpace, bounded
from prefect_augment.genmodels.tables.training import Encoded, TablePhase
from prefect_augment.nn.networks import ResidualMLP
from prefect_augment.params import AutoencoderModel

MAX_LATENT = 16  # default bound of n_latent
WIDTH = 256  # default width
NOISE = 0.1
AT_ONCE = 4096
PER_COMPONENT = 96  # records: without a prior, smaller components would fit single records
CLASS_DROPOUT = 0.5  # share of records decoded without their class, so that latents encode it
LATENT_DECAY = 1e-3  # of latent vectors, which would grow without bound otherwise


class AutoencoderNetwork(nn.Module):
    """Encoder and decoder; ``sparse`` bounds the latent activations to (0, 1).

    ``n_codes`` are the codes of each choice; depth 0 has one hidden layer.
    """

    def __init__(
        self,
        n_codes: tuple[int, ...],
        n_scores: int,
        n_classes: int,
        *,
        n_latent: int,
        width: int,
        depth: int,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        self.layout = CodeLayout(n_codes)
        self.n_scores, self.n_classes, self.n_latent = n_scores, n_classes, n_latent
        self.sparse = sparse
        n_record = self.layout.total + n_scores
        self.codec = nn.ModuleDict(
            {
                "encoder": ResidualMLP(n_record, n_latent, width=width, depth=depth),
                "decoder": ResidualMLP(n_latent + n_classes, n_record, width=width, depth=depth),
            }
        )

    def inputs(self, codes: Tensor, scores: Tensor) -> Tensor:
        """What the encoder reads, (n, total + n_scores)."""
        return torch.cat([self.layout.one_hot(codes), scores], dim=1)

    def encode(self, inputs: Tensor) -> Tensor:
        """Latent vectors before any activation, (n, n_latent)."""
        z: Tensor = self.codec["encoder"](inputs)
        return z

    def activated(self, z: Tensor) -> Tensor:
        """What the decoder reads of latent vectors."""
        return torch.sigmoid(z) if self.sparse else z

    def decode(self, activations: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Bounded logits (n, total) and mean scores (n, n_scores); class n_classes hides the class."""
        classes = F.one_hot(y, self.n_classes + 1)[:, : self.n_classes].float()
        out: Tensor = self.codec["decoder"](torch.cat([activations, classes], dim=1))
        return bounded(out[:, : self.layout.total]), out[:, self.layout.total :]

    def error(
        self, z: Tensor, codes: Tensor, scores: Tensor, has_score: Tensor, y: Tensor
    ) -> Tensor:
        """Each record's cross-entropy in nats plus squared error, (n,)."""
        logits, means = self.decode(self.activated(z), y)
        entropy = self.layout.cross_entropy(logits, codes).sum(dim=1)
        return entropy + ((means - scores) ** 2 * has_score).sum(dim=1)


class AutoencoderPhase(TablePhase):
    """Reconstruction with the variant's penalty."""

    name = "table-autoencoder"
    params: AutoencoderModel

    def __init__(
        self,
        network: AutoencoderNetwork,
        data: Encoded,
        params: AutoencoderModel,
        *,
        space: MixedSpace,
        batch_size: int,
    ) -> None:
        super().__init__(network, data, params, batch_size=batch_size, n_classes=network.n_classes)
        device = data.y.device
        self.choice_columns = torch.tensor(space.choice_columns, device=device, dtype=torch.int64)
        self.score_columns = torch.tensor(space.score_columns, device=device, dtype=torch.int64)
        self.n_columns = space.spec.n_columns

    def noisy(self, data: Encoded, rows: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Codes, scores, has_score, classes, codes and scores as seen, and directions of a batch."""
        assert isinstance(self.network, AutoencoderNetwork)
        codes, has_score = data.codes[rows], data.has_score[rows]
        scores = data.drawn_scores(rows, rng) * has_score
        seen_codes, seen_scores = codes, scores
        if self.params.variant == "denoising":
            n, device = len(rows), rows.device
            swapped = torch.rand(n, self.n_columns, generator=rng, device=device) < (
                self.params.noise or NOISE
            )
            other = torch.randperm(n, generator=rng, device=device)
            seen_codes = torch.where(swapped[:, self.choice_columns], codes[other], codes)
            seen_scores = torch.where(swapped[:, self.score_columns], scores[other], scores)
        directions = torch.zeros(len(rows), 0, device=rows.device)
        if self.params.variant == "contractive":
            shape = (len(rows), self.network.n_latent)
            directions = torch.randn(shape, generator=rng, device=rows.device)
        hidden = torch.rand(len(rows), generator=rng, device=rows.device) < CLASS_DROPOUT
        y = torch.where(hidden, self.network.n_classes, data.y[rows])
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
    _neighbours: ClassNeighbours | None = None
    _deviations: Tensor  # (n_scores,) of the scores about their means

    @classmethod
    def build(cls, params: Any, spec: TableSpec) -> Self:
        """Return an untrained model; refuses params that are for autoencoders of images."""
        model = super().build(params, spec)
        defaults = AutoencoderModel()
        image_params = {"variant": "conv"} if params.variant == "conv" else {}
        for name in ("layers", "sparse_by"):
            if getattr(params, name) != getattr(defaults, name):
                image_params[name] = getattr(params, name)
        if image_params:
            names = ", ".join(f"model.{name} {value!r}" for name, value in image_params.items())
            raise ParameterError(
                f"{names} is for images, and the source holds a table; leave it out."
            )
        return model

    def new_network(self, space: MixedSpace) -> AutoencoderNetwork:
        """Return encoder and decoder."""
        n_columns = len({*space.choice_columns, *space.score_columns})
        return AutoencoderNetwork(
            space.n_codes,
            space.n_scores,
            self.spec.n_classes,
            n_latent=self.params.n_latent or min(MAX_LATENT, max(2, n_columns)),
            width=self.params.width or WIDTH,
            depth=0 if self.params.variant == "dense" else self.params.depth,
            sparse=self.params.variant == "sparse",
        )

    def new_phase(
        self, network: AutoencoderNetwork, records: Encoded, space: MixedSpace, batch_size: int
    ) -> AutoencoderPhase:
        """Train encoder and decoder together."""
        return AutoencoderPhase(network, records, self.params, space=space, batch_size=batch_size)

    def after_training(self, network: AutoencoderNetwork, records: Encoded, seed: int) -> None:
        """Fit a density per class, and the residual standard deviation of each score."""
        y, scores = records.y, records.middle_scores
        with torch.inference_mode():
            raw = torch.cat(
                [
                    network.encode(network.inputs(codes, part))
                    for codes, part in zip(
                        records.codes.split(AT_ONCE), scores.split(AT_ONCE), strict=True
                    )
                ]
            )
            squared = [
                (network.decode(network.activated(z), labels)[1] - part) ** 2
                for z, labels, part in zip(
                    raw.split(AT_ONCE), y.split(AT_ONCE), scores.split(AT_ONCE), strict=True
                )
            ]
            total = (torch.cat(squared) * records.has_score).sum(dim=0)
            self._deviations = (total / records.has_score.sum(dim=0).clamp(min=1)).sqrt()
        training = (raw.cpu().numpy(), y.cpu().numpy(), self.spec.n_classes)
        self._densities = ClassDensities.fit(*training, seed=seed, per_component=PER_COMPONENT)
        if self.params.drawn_by == "neighbours":
            self._neighbours = ClassNeighbours.fit(*training, seed=seed)

    def draw(
        self, network: AutoencoderNetwork, y: Tensor, numbers: RecordNumbers
    ) -> tuple[Tensor, Tensor]:
        """Draw a vector of the class, then its codes and scores."""
        z = (self._neighbours or self._densities).draw(y, numbers)
        logits, means = network.decode(network.activated(z), y)
        codes = network.layout.draw(logits, numbers.uniforms(len(network.layout)))
        return codes, means + self._deviations * numbers.normals(network.n_scores)

    def encode(self, network: AutoencoderNetwork, codes: Tensor, scores: Tensor) -> Tensor:
        """Latent activations."""
        return network.activated(network.encode(network.inputs(codes, scores)))

    def likeliest(self, network: AutoencoderNetwork, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The most likely codes and the mean scores."""
        logits, means = network.decode(z, y)
        return network.layout.likeliest(logits), means

    def anomaly(self, network: AutoencoderNetwork, records: Encoded) -> Tensor:
        """Reconstruction error with the class hidden."""
        scores, unknown = records.middle_scores, torch.full_like(records.y, self.spec.n_classes)
        z = network.encode(network.inputs(records.codes, scores))
        return network.error(z, records.codes, scores, records.has_score, unknown)

    def extra_state(self) -> Arrays:
        """Densities, neighbours and deviations."""
        if self._network is None:
            return {}
        neighbours = {} if self._neighbours is None else self._neighbours.arrays()
        deviations = {"deviations": self._deviations.cpu().numpy()}
        return super().extra_state() | neighbours | deviations

    def load_extra_state(self, arrays: Arrays) -> None:
        """Inverse of :meth:`extra_state`."""
        super().load_extra_state(arrays)
        if self._network is not None:
            if self.params.drawn_by == "neighbours":
                self._neighbours = ClassNeighbours.from_arrays(arrays)
            deviations = torch.from_numpy(arrays["deviations"].copy())
            self._deviations = deviations.to(self.device.torch)
