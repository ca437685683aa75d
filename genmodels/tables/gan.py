"""Adversarial networks of tables: a generator, a critic that tells its records from real ones.

The critic bounds the Wasserstein distance between real and made records with their classes, held to
slopes of one by a gradient penalty (Gulrajani et al. 2017, "Improved Training of Wasserstein GANs",
equation 3). The generator makes codes and scores (:mod:`.table_mixed`) of a normal vector and a class;
codes are drawn by Gumbel's trick, the gradient passing through the softmax (Jang et al. 2017), so that
the critic sees choices as sharp as those of real records. As in CTGAN (Xu et al. 2019) classes are
drawn more evenly than they occur, with p ∝ n_k**q, and the critic may look at several records at a
time (Lin et al. 2018, "PacGAN").

An encoder says where the generator has a record, and both are held to bring every record back (Larsen
et al. 2016, "Autoencoding beyond pixels", VAE/GAN): what keeps the generator from leaving kinds of
records out. The critic sees what is made around the vectors of real records, and records are drawn
there: from a mixture of normals per class (:class:`.table_latents.ClassDensities`). No loss of these
says how good records are: the records held back do, by their energy distance to those drawn (Székely
& Rizzo 2013), and the networks that were best stay.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from prefect_augment.errors import ParameterError
from prefect_augment.genmodels.base import TableData
from prefect_augment.genmodels.counter_rng import seeds_from
from prefect_augment.genmodels.latent_density import ClassDensities
from prefect_augment.genmodels.record_numbers import RecordNumbers
from prefect_augment.genmodels.tables.latent import LatentTable
from prefect_augment.genmodels.tables.mixed_encoding import CodeLayout, MixedSpace, bounded
from prefect_augment.genmodels.tables.training import Encoded, TablePhase, TableValidation
from prefect_augment.nn.early_stopping import Validation
from prefect_augment.nn.networks import ResidualMLP
from prefect_augment.params import GanModel

__all__ = ["GanNetwork", "GanPhase", "TableGan", "energy_distance", "gradient_penalty"]

# Where the wish does not say, being 0.
MAX_LATENT = 16
WIDTH, DEPTH, CRITIC_STEPS = 192, 2, 2
GRADIENT_PENALTY, LEARNING_RATE = 10.0, 0.001
REACH = 0.25  # deviation of the moves from the vectors of records to those that the critic judges
TEMPERATURE = 0.5  # of the softmax that the gradient passes through
LATENT_PULL = 0.01  # of vectors towards zero: without it they drift apart
CLASS_DROPOUT = 0.5  # share of records brought back without their class, so that vectors carry it
COPIES_COST = 1e6  # more than any distance
MAX_COMPARED_RECORDS = 512  # records on a side of the energy distance


class GanNetwork(nn.Module):
    """Generator and encoder (``gan``), and the critic.

    Parameters
    ----------
    space : MixedSpace
        Says which code gates a score.
    n_classes, n_latent : int
    width, depth : int
        Of all three networks.
    pack : int
        Records that the critic sees at a time.
    """

    gates: Tensor

    def __init__(
        self,
        space: MixedSpace,
        n_classes: int,
        *,
        n_latent: int,
        width: int,
        depth: int,
        pack: int,
    ) -> None:
        super().__init__()
        self.layout = CodeLayout(space.n_codes)
        self.n_scores, self.n_classes = space.n_scores, n_classes
        self.n_latent, self.pack = n_latent, pack
        n_record = self.layout.total + self.n_scores
        self.gan = nn.ModuleDict(
            {
                "generator": ResidualMLP(n_latent + n_classes, n_record, width=width, depth=depth),
                "encoder": ResidualMLP(n_record, n_latent, width=width, depth=depth),
            }
        )
        self.critic = ResidualMLP(pack * (n_record + n_classes), 1, width=width, depth=depth)
        # The code that says that a score has a value; the constant behind all codes where none does.
        gates = [
            int(self.layout.starts[choice + 1]) - 1 if choice >= 0 else self.layout.total
            for choice in space.score_choices
        ]
        self.register_buffer("gates", torch.tensor(gates, dtype=torch.int64), persistent=False)

    def made(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return bounded logits (n, total) and scores (n, n_scores); class n_classes: not told."""
        classes = F.one_hot(y, self.n_classes + 1)[:, : self.n_classes].float()
        out = self.gan["generator"](torch.cat([z, classes], dim=1)).float()
        return bounded(out[:, : self.layout.total]), out[:, self.layout.total :]

    def records(self, z: Tensor, y: Tensor, gumbel: Tensor) -> Tensor:
        """Return made records as the critic sees them, (n, total + n_scores), with a gradient.

        Parameters
        ----------
        gumbel : Tensor, shape (n, total)
            Draws of Gumbel's distribution.
        """
        logits, scores = self.made(z, y)
        noisy = (logits + gumbel) / TEMPERATURE
        # Per choice; at once for all of them by sums over codes.
        parts = [noisy[:, self.layout.columns(i)] for i in range(len(self.layout))]
        soft = [part.softmax(dim=1) for part in parts]
        hard = [F.one_hot(p.argmax(dim=1), p.shape[1]).float() + s - s.detach()
                for p, s in zip(parts, soft, strict=True)]  # fmt: skip
        codes = torch.cat([*hard, scores.new_zeros(len(y), 0)], dim=1)
        filtered = torch.cat([codes, scores.new_ones(len(y), 1)], dim=1)[:, self.gates]
        return torch.cat([codes, scores * filtered], dim=1)

    def real(self, codes: Tensor, scores: Tensor) -> Tensor:
        """Return real records as the critic sees them; scores are 0 where there is none."""
        return torch.cat([self.layout.one_hot(codes), scores], dim=1)

    def encode(self, records: Tensor) -> Tensor:
        """Return the vectors that the generator would make these of."""
        z: Tensor = self.gan["encoder"](records)
        return z.float()

    def compared(self, records: Tensor) -> Tensor:
        """Return the critic's numbers of packs of records with their classes, (n // pack,)."""
        whole = len(records) // self.pack * self.pack
        packs = records[:whole].reshape(-1, self.pack * records.shape[1])
        found: Tensor = self.critic(packs)
        return found[:, 0].float()

    def error(
        self, z: Tensor, codes: Tensor, scores: Tensor, has_score: Tensor, y: Tensor
    ) -> Tensor:
        """Return how far what is made of vectors is from records: nats and squared error, (n,)."""
        logits, means = self.made(z, y)
        entropy = self.layout.cross_entropy(logits, codes).sum(dim=1)
        return entropy + ((means - scores) ** 2 * has_score).sum(dim=1)


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, made: Tensor, place: Tensor
) -> Tensor:
    """Return the mean of (slope - 1)² between real and made records.

    Parameters
    ----------
    critic : callable
        Takes (n, n_values), returns one number per pack of records.
    real, made : Tensor, shape (n, n_values)
    place : Tensor, shape (n, 1)
        Where between the two, in [0, 1]; the same within a pack.

    References
    ----------
    Gulrajani et al. 2017, equation 3.
    """
    between = torch.lerp(real, made, place).detach().requires_grad_(True)
    numbers = critic(between)
    (slope,) = torch.autograd.grad(numbers.sum(), between, create_graph=True)
    per_pack = slope[: len(slope) // len(numbers) * len(numbers)].reshape(len(numbers), -1)
    # The square root of zero has no slope.
    return ((per_pack.square().sum(dim=1) + 1e-12).sqrt() - 1.0).square().mean()


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return 2 E|A - B| - E|A - A'| - E|B - B'| of two sets of vectors, a scalar, 0 if the same.

    References
    ----------
    Székely & Rizzo 2013, "Energy statistics", equation 5.
    """
    own = sum(torch.cdist(x, x).sum() / max(1, len(x) * (len(x) - 1)) for x in (a, b))
    return 2 * torch.cdist(a, b).mean() - own


class GanPhase(TablePhase):
    """Critic, generator and encoder in turn."""

    name = "table-gan"
    params: GanModel

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Critic several times, then generator and encoder; the critic's are one and the same."""
        network, rate = self.network, self.params.learning_rate or LEARNING_RATE
        assert isinstance(network, GanNetwork)
        critic = self.adamw(network.critic, rate, betas=(0.5, 0.9))
        optimizers = {
            f"critic-{i}": critic for i in range(self.params.critic_steps or CRITIC_STEPS)
        }
        return {**optimizers, "gan": self.adamw(network.gan, rate, betas=(0.5, 0.9))}

    def noisy(self, data: Encoded, rows: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Return codes, scores, which there are, classes, moves, Gumbel's draws, places, classes told."""
        network, n, device = self.network, len(rows), rows.device
        assert isinstance(network, GanNetwork)
        has_score = data.has_score[rows]
        scores = data.drawn_scores(rows, rng) * has_score
        moves = REACH * torch.randn(n, network.n_latent, generator=rng, device=device)
        uniform = torch.rand(n, network.layout.total, generator=rng, device=device)
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-9, 1 - 1e-7)))
        place = torch.rand(n, 1, generator=rng, device=device)
        place = place[:: network.pack].repeat_interleave(network.pack, dim=0)[:n]
        hidden = torch.rand(n, generator=rng, device=device) < CLASS_DROPOUT
        told = torch.where(hidden, network.n_classes, data.y[rows])
        return data.codes[rows], scores, has_score, data.y[rows], moves, gumbel, place, told

    def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the critic's loss, or that of generator and encoder."""
        network = self.network
        assert isinstance(network, GanNetwork)
        codes, scores, _, y, moves, gumbel, place, _ = batch
        classes = F.one_hot(y, network.n_classes).float()
        real = network.real(codes, scores)
        with torch.set_grad_enabled(loss_name == "gan"):
            z = network.encode(real).detach() + moves
            made = torch.cat([network.records(z, y, gumbel), classes], dim=1)
        if loss_name == "gan":
            network.critic.requires_grad_(False)
            loss = -network.compared(made).mean()
            network.critic.requires_grad_(True)
            return loss + self.part_losses(network, batch)["gan"]
        real = torch.cat([real, classes], dim=1)
        gap = network.compared(made).mean() - network.compared(real).mean()
        penalty = gradient_penalty(network.compared, real, made, place)
        return gap + (self.params.gradient_penalty or GRADIENT_PENALTY) * penalty

    def part_losses(
        self,
        network: GanNetwork,
        batch: tuple[Tensor, ...],
        resting: frozenset[str] = frozenset(),
    ) -> dict[str, Tensor]:
        """Return what bringing records back costs generator and encoder."""
        codes, scores, has_score, *_, y = batch
        z = network.encode(network.real(codes, scores))
        n_values = codes.shape[1] + scores.shape[1]
        error = network.error(z, codes, scores, has_score, y).mean() / n_values
        return {"gan": self.params.reconstruction * error + LATENT_PULL * z.square().mean()}


class GanValidation(TableValidation):
    """The energy distance of drawn records to those held back, in the place of a loss.

    It goes up and down, as the share of near records does: a network that gives records back is not
    taken while there is another, and training goes on.
    """

    def __call__(self, network: nn.Module) -> Validation:
        """Judge a network."""
        found = super().__call__(network)
        behind = COPIES_COST if found.memorised else 0.0
        return Validation({name: loss + behind for name, loss in found.losses.items()})

    def losses(self, network: nn.Module) -> dict[str, float]:
        """Return the distance of as many records, of the same classes."""
        assert isinstance(network, GanNetwork)
        codes, scores, _, y, *_ = (part[:MAX_COMPARED_RECORDS] for part in self.batch)
        labels = y.cpu().numpy()
        seeds = seeds_from(self.seed & 0xFFFFFFFFFFFFFFFF, 1 << 20, len(labels))
        X = self.model.drawn(network, labels, seeds)
        drawn = Encoded.of(X, labels, self.model.space, self.model.device)
        # Codes that differ count like scores that are 1.4 deviations apart, classes twice that.
        classes = 2.0 * F.one_hot(y, network.n_classes).float()
        sides = [network.real(codes, scores), network.real(drawn.codes, drawn.middle_scores)]
        a, b = (torch.cat([side, classes], dim=1) for side in sides)
        return {"gan": float(energy_distance(a, b))}


class TableGan(LatentTable[GanModel, GanNetwork]):
    """One generator for all classes; see the module.

    Parameters
    ----------
    params : GanModel
        The wish.
    spec : TableSpec
        Columns and classes.
    """

    params_class = GanModel
    min_steps = 250
    patience = 16  # the distance goes up and down: all of the budget is taken, and the best stays

    @property
    def n_latent(self) -> int:
        """Size of a latent vector."""
        return self.network.n_latent

    def new_network(self, space: MixedSpace) -> GanNetwork:
        """Return generator, encoder and critic."""
        n_columns = len({*space.choice_columns, *space.score_columns})
        return GanNetwork(
            space,
            self.spec.n_classes,
            n_latent=self.params.n_latent or min(MAX_LATENT, max(2, n_columns)),
            width=self.params.width or WIDTH,
            depth=self.params.depth or DEPTH,
            pack=self.params.pack,
        )

    def new_phase(
        self, network: GanNetwork, records: Encoded, space: MixedSpace, batch_size: int
    ) -> GanPhase:
        """Train them against each other."""
        if batch_size < network.pack:
            raise ParameterError(
                f"budget.batch_size is {batch_size}, and the critic looks at model.pack={network.pack} records at "
                "once; raise the one, or lower the other."
            )
        return GanPhase(
            network, records, self.params, batch_size=batch_size, n_classes=self.spec.n_classes
        )

    def new_validation(
        self,
        phase: TablePhase,
        data: TableData,
        trained: NDArray[np.int64],
        held_back: NDArray[np.int64],
        seed: int,
    ) -> TableValidation:
        """Judge by what is drawn."""
        return GanValidation(self, phase, data, trained, held_back, seed)

    def settle(self, network: GanNetwork, records: Encoded, seed: int) -> None:
        """Fit a density per class to the vectors of the records."""
        self._densities = ClassDensities.fit(
            self.latents_of(network, records),
            records.y.cpu().numpy(),
            self.spec.n_classes,
            seed=seed,
        )

    def draw(self, network: GanNetwork, y: Tensor, numbers: RecordNumbers) -> tuple[Tensor, Tensor]:
        """Draw a vector of the class, and the codes that it leaves open."""
        logits, scores = network.made(self._densities.draw(y, numbers), y)
        return network.layout.draw(logits, numbers.uniforms(len(network.layout))), scores

    def encode(self, network: GanNetwork, codes: Tensor, scores: Tensor) -> Tensor:
        """Return the vectors that the generator would make the records of."""
        return network.encode(network.real(codes, scores))

    def likeliest(self, network: GanNetwork, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the generator makes, its most likely codes."""
        logits, scores = network.made(z, y)
        return network.layout.likeliest(logits), scores

    def strangeness(self, network: GanNetwork, records: Encoded) -> Tensor:
        """Return how far from each record the generator brings it back, the class not told."""
        scores, unknown = records.middle_scores, torch.full_like(records.y, self.spec.n_classes)
        z = network.encode(network.real(records.codes, scores))
        return network.error(z, records.codes, scores, records.has_score, unknown)
