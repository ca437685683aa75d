"""Wasserstein GAN of tables with an encoder.

The critic estimates the Wasserstein distance between real and generated records with their classes,
under a gradient penalty (Gulrajani et al. 2017, "Improved Training of Wasserstein GANs", equation
3). The generator maps a normal vector and a class to codes and scores (:mod:`.mixed_encoding`).
Codes are drawn by the straight-through Gumbel softmax (Jang et al. 2017), so the critic sees
choices as sharp as real ones. As in CTGAN (Xu et al. 2019) classes are drawn with p ∝ n_k**q, and
the critic may see several records at a time (Lin et al. 2018, "PacGAN").

An encoder inverts the generator, and both are trained to reconstruct every record (Larsen et al.
2016, "Autoencoding beyond pixels", VAE/GAN), which prevents mode collapse. The critic sees records
generated around the vectors of real ones, and records are drawn there: from a mixture of normals
per class (:class:`.ClassDensities`). None of these losses measures quality; early stopping uses the
energy distance between held-out and drawn records (Székely & Rizzo 2013).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.counter_rng import seeds_from
from prefect_augment.genmodels.network import RecordNumbers
from prefect_augment.genmodels.tables.latent import LatentNetwork, LatentTable
from prefect_augment.genmodels.tables.mixed_encoding import MixedSpace
from prefect_augment.genmodels.tables.training import Encoded, TablePhase, TableValidation
from prefect_augment.nn.early_stopping import Validation
from prefect_augment.nn.networks import ResidualMLP
from prefect_augment.params import GanModel

# Defaults of params that are 0.
WIDTH, DEPTH, CRITIC_STEPS = 192, 2, 2
GRADIENT_PENALTY, LEARNING_RATE = 10.0, 0.001
REACH = 0.25  # deviation of the latent noise around the vectors of real records
TEMPERATURE = 0.5  # of the Gumbel softmax
LATENT_PULL = 0.01  # weight decay of latent vectors, which would grow without bound otherwise
CLASS_DROPOUT = 0.5  # share of records reconstructed without their class, so that latents encode it
COPIES_COST = 1e6  # above any distance
MAX_COMPARED_RECORDS = 512  # records on a side of the energy distance


class GanNetwork(LatentNetwork):
    """Generator and encoder (``gan``), and the critic, which sees ``pack`` records at a time."""

    score_codes: Tensor

    def __init__(
        self, space: MixedSpace, n_classes: int, *, n_latent: int, width: int, depth: int, pack: int
    ) -> None:
        super().__init__(space, n_classes, n_latent)
        self.pack, n_record = pack, self.n_record
        generator = ResidualMLP(n_latent + n_classes, n_record, width=width, depth=depth)
        encoder = ResidualMLP(n_record, n_latent, width=width, depth=depth)
        self.gan = nn.ModuleDict({"generator": generator, "encoder": encoder})
        self.critic = ResidualMLP(pack * (n_record + n_classes), 1, width=width, depth=depth)
        # The code that marks a score as present; the constant 1 behind all codes where none does.
        score_codes = [
            int(self.layout.starts[score.choice + 1]) - 1
            if score.choice >= 0
            else self.layout.total
            for score in space.scores
        ]
        self.register_buffer(
            "score_codes", torch.tensor(score_codes, dtype=torch.int64), persistent=False
        )

    def decode(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Bounded logits (n, total) and scores (n, n_scores)."""
        return self.parts(self.gan["generator"](self.with_class(z, y)).float())

    def records(self, z: Tensor, y: Tensor, gumbel: Tensor) -> Tensor:
        """Generated records as the critic sees them, (n, total + n_scores), differentiable.

        ``gumbel`` (n, total) are draws of Gumbel's distribution.
        """
        logits, scores = self.decode(z, y)
        noisy = (logits + gumbel) / TEMPERATURE
        # Straight-through one-hot codes, choice by choice.
        parts = [noisy[:, self.layout.columns(i)] for i in range(len(self.layout))]
        probabilities = [part.softmax(dim=1) for part in parts]
        hard = [F.one_hot(p.argmax(dim=1), p.shape[1]).float() + s - s.detach()
                for p, s in zip(parts, probabilities, strict=True)]  # fmt: skip
        codes = torch.cat([*hard, scores.new_zeros(len(y), 0)], dim=1)
        has_score = torch.cat([codes, scores.new_ones(len(y), 1)], dim=1)[:, self.score_codes]
        return torch.cat([codes, scores * has_score], dim=1)

    def encode(self, inputs: Tensor) -> Tensor:
        """Latent vectors of records."""
        return self.gan["encoder"](inputs).float()

    def critic_scores(self, records: Tensor) -> Tensor:
        """The critic's scores of packs of records with their classes, (n // pack,)."""
        whole = len(records) // self.pack * self.pack
        packs = records[:whole].reshape(-1, self.pack * records.shape[1])
        return self.critic(packs)[:, 0].float()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, generated: Tensor, position: Tensor
) -> Tensor:
    """Mean of (slope - 1)² between real and generated records (Gulrajani et al. 2017, equation 3).

    ``position`` (n, 1) in [0, 1] interpolates between the two, and is constant within a pack.
    """
    between = torch.lerp(real, generated, position).detach().requires_grad_(True)
    numbers = critic(between)
    (slope,) = torch.autograd.grad(numbers.sum(), between, create_graph=True)
    per_pack = slope[: len(slope) // len(numbers) * len(numbers)].reshape(len(numbers), -1)
    # The square root has no gradient at zero.
    return ((per_pack.square().sum(dim=1) + 1e-12).sqrt() - 1.0).square().mean()


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """2 E|A - B| - E|A - A'| - E|B - B'| of two sets of vectors, a scalar; 0 for equal distributions.

    Székely & Rizzo 2013, "Energy statistics", equation 5.
    """
    within = sum(torch.cdist(x, x).sum() / max(1, len(x) * (len(x) - 1)) for x in (a, b))
    return 2 * torch.cdist(a, b).mean() - within


class GanPhase(TablePhase):
    """Critic, generator and encoder in turn."""

    name = "table-gan"
    params: GanModel

    def __init__(
        self, network: GanNetwork, records: Encoded, params: GanModel, batch_size: int
    ) -> None:
        if batch_size < network.pack:
            raise ParameterError(
                f"budget.batch_size is {batch_size}, and the critic looks at model.pack={network.pack} records at "
                "once; raise the first, or lower the second."
            )
        super().__init__(network, records, params, batch_size)
        self.together = params.pack

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Critic ``critic_steps`` times with one optimiser, then generator and encoder."""
        rate = self.params.learning_rate or LEARNING_RATE
        critic, gan = (
            self.adamw(part.parameters(), rate, betas=(0.5, 0.9))
            for part in (self.network.critic, self.network.gan)
        )
        n_critic = self.params.critic_steps or CRITIC_STEPS
        return {**{f"critic-{i}": critic for i in range(n_critic)}, "gan": gan}

    def noisy(self, records: Encoded, rows: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Codes, scores, has_score, classes, latent noise, Gumbel draws, positions and visible classes."""
        network, n, device = self.network, len(rows), rows.device
        has_score = records.has_score[rows]
        scores = records.drawn_scores(rows, rng) * has_score
        moves = REACH * torch.randn(n, network.n_latent, generator=rng, device=device)
        uniform = torch.rand(n, network.layout.total, generator=rng, device=device)
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-9, 1 - 1e-7)))
        position = torch.rand(n, 1, generator=rng, device=device)
        position = position[:: network.pack].repeat_interleave(network.pack, dim=0)[:n]
        hidden = torch.rand(n, generator=rng, device=device) < CLASS_DROPOUT
        codes, y = records.codes[rows], records.y[rows]
        visible_y = torch.where(hidden, network.n_classes, y)
        return codes, scores, has_score, y, moves, gumbel, position, visible_y

    def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
        """Loss of the critic, or of generator and encoder."""
        network = self.network
        codes, scores, _, y, moves, gumbel, position, _ = batch
        classes = F.one_hot(y, network.n_classes).float()
        real = network.inputs(codes, scores)
        with torch.set_grad_enabled(loss_name == "gan"):
            z = network.encode(real).detach() + moves
            generated = torch.cat([network.records(z, y, gumbel), classes], dim=1)
        if loss_name == "gan":
            network.critic.requires_grad_(False)
            loss = -network.critic_scores(generated).mean()
            network.critic.requires_grad_(True)
            return loss + self.part_losses(network, batch)["gan"]
        real = torch.cat([real, classes], dim=1)
        gap = network.critic_scores(generated).mean() - network.critic_scores(real).mean()
        penalty = gradient_penalty(network.critic_scores, real, generated, position)
        return gap + (self.params.gradient_penalty or GRADIENT_PENALTY) * penalty

    def part_losses(
        self, network: GanNetwork, batch: tuple[Tensor, ...], frozen: frozenset[str] = frozenset()
    ) -> dict[str, Tensor]:
        """Reconstruction loss of generator and encoder."""
        codes, scores, has_score, *_, y = batch
        z = network.encode(network.inputs(codes, scores))
        n_values = codes.shape[1] + scores.shape[1]
        error = network.error(z, codes, scores, has_score, y).mean() / n_values
        return {"gan": self.params.reconstruction * error + LATENT_PULL * z.square().mean()}


class GanValidation(TableValidation):
    """Energy distance of drawn records to the held-out ones, instead of a loss.

    The distance fluctuates, as does the share of near records. A network that memorises is rejected
    while there is another, and training continues.
    """

    def __call__(self, network: nn.Module) -> Validation:
        """Validate a network."""
        validation = super().__call__(network)
        penalty = COPIES_COST if validation.memorised else 0.0
        return Validation({name: loss + penalty for name, loss in validation.losses.items()})

    def losses(self, network: nn.Module) -> dict[str, float]:
        """Distance of as many drawn records of the same classes."""
        codes, scores, _, y, *_ = (part[:MAX_COMPARED_RECORDS] for part in self.batch)
        labels = y.cpu().numpy()
        seeds = seeds_from(self.seed, 1 << 20, len(labels))
        X = self.model.drawn(network, labels, seeds)
        drawn = Encoded.of(X, labels, self.model.space, self.model.device)
        # Different codes count like scores 1.4 deviations apart, different classes twice that.
        classes = 2.0 * F.one_hot(y, network.n_classes).float()
        sides = [network.inputs(codes, scores), network.inputs(drawn.codes, drawn.middle_scores)]
        a, b = (torch.cat([side, classes], dim=1) for side in sides)
        return {"gan": float(energy_distance(a, b))}


class TableGan(LatentTable[GanModel, GanNetwork]):
    """One generator for all classes; see the module."""

    params_class = GanModel
    phase_class = GanPhase
    validation_class = GanValidation
    min_steps = 250
    patience = 16  # the distance fluctuates: use the whole budget and keep the best

    def new_network(self) -> GanNetwork:
        """Generator, encoder and critic."""
        return GanNetwork(
            self.space,
            self.spec.n_classes,
            n_latent=self.latent_size,
            width=self.params.width or WIDTH,
            depth=self.params.depth or DEPTH,
            pack=self.params.pack,
        )

    def after_training(self, network: GanNetwork, records: Encoded, seed: int) -> None:
        """Fit a density per class to the records' latent vectors."""
        self.fit_densities(self.latents_of(network, records), records, seed)

    def draw(self, network: GanNetwork, y: Tensor, numbers: RecordNumbers) -> tuple[Tensor, Tensor]:
        """Draw a vector of the class, and the codes that it leaves open."""
        logits, scores = network.decode(self._densities.draw(y, numbers), y)
        return network.layout.draw(logits, numbers.uniforms(len(network.layout))), scores
