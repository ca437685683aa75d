"""A variational autoencoder of tables, class-conditional by its prior.

An encoder q(z | x) sees a record's codes and scores (:mod:`.mixed_encoding`) without its class.
Every class has a normal prior p(z | y). A decoder p(x | z, y) predicts posteriors of the codes and
normal mixtures of the scores (Kingma & Welling 2014, with the conditional prior of Sohn et al.
2015). The encoder does not see the class, so the latent vectors encode it, and log p(x | y) can be
bounded for every class.

The decoder works in two ways. It predicts all columns at once from z and y, which trains the latent
vectors. It also predicts one column after the other given the columns before (Hoogeboom et al.
2022, equation 5; choices first, then scores), which drawing uses so that columns keep their
dependence. Values are drawn from the predictions, never their mode.

Vectors are drawn from a mixture of normals per class, fitted to draws from q(z | x) of the training
records, instead of the prior, which the encoder seldom matches (Ghosh et al. 2020, section 4).
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefect_augment.array_types import Float
from prefect_augment.genmodels.latents import Prior, bound_log_scale, kl_divergence
from prefect_augment.genmodels.network import RecordNumbers
from prefect_augment.genmodels.tables.latent import LatentNetwork, LatentTable
from prefect_augment.genmodels.tables.mixed_encoding import (
    MixedSpace,
    bounded,
    drawn_code,
    drawn_together,
)
from prefect_augment.genmodels.tables.training import Encoded, TablePhase
from prefect_augment.nn import loop
from prefect_augment.nn.networks import ResidualMLP
from prefect_augment.params import VaeModel

N_COMPONENTS = 5  # normals in the mixture of a score
MIN_SCALE = 0.01  # of a component; scores have variance 1, and ties are spread over their ranks


class VaeNetwork(LatentNetwork):
    """Encoder q(z | x), prior p(z | y) and decoder p(x | z, y, the columns shown)."""

    def __init__(
        self, space: MixedSpace, n_classes: int, *, n_latent: int, width: int, depth: int
    ) -> None:
        super().__init__(space, n_classes, n_latent)
        total, n_scores = self.layout.total, self.n_scores
        self.vae = nn.ModuleDict(
            {
                "encoder": ResidualMLP(total + n_scores, 2 * n_latent, width=width, depth=depth),
                "prior": Prior(n_classes, n_latent),
                "decoder": ResidualMLP(
                    n_latent + n_classes + total + 2 * n_scores,
                    total + 3 * N_COMPONENTS * n_scores,
                    width=width,
                    depth=depth,
                ),
            }
        )
        # Equal components would stay equal.
        with torch.no_grad():
            spread = torch.linspace(-1.5, 1.5, N_COMPONENTS).repeat(n_scores)
            start = total + N_COMPONENTS * n_scores
            self.vae["decoder"].last.bias[start : start + N_COMPONENTS * n_scores] = spread

    def posterior(self, codes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log scales of q(z | x), each (n, n_latent)."""
        mean, log_scale = self.vae["encoder"](self.inputs(codes, scores)).float().chunk(2, dim=1)
        return mean, bound_log_scale(log_scale)

    def prior(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log scales of p(z | y), each (n, n_latent)."""
        return self.vae["prior"](y)

    def known(
        self,
        z: Tensor,
        y: Tensor,
        codes: Tensor,
        scores: Tensor,
        shown: Tensor,
        shown_scores: Tensor,
    ) -> Tensor:
        """What the decoder reads, from z (n, n_latent), classes (n,) and the columns shown.

        Class ``n_classes`` is hidden; ``shown_scores`` are both shown and present.
        """
        shown_scores = shown_scores.float()
        columns = [self.layout.one_hot(codes, shown), scores * shown_scores, shown_scores]
        return torch.cat([self.with_class(z, y), *columns], dim=1)

    def predict(self, known: Tensor) -> tuple[Tensor, Tensor]:
        """Bounded logits (n, total) and mixtures (n, 3, n_scores, n_components)."""
        out = self.vae["decoder"](known).float()
        total = self.layout.total
        mixtures = out[:, total:].view(len(out), 3, self.n_scores, N_COMPONENTS)
        return bounded(out[:, :total]), mixtures

    def hidden_nll(self, known: Tensor, codes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """-log p of each choice, (n, n_choices), and of each score, (n, n_scores), in nats."""
        logits, mixtures = self.predict(known)
        return self.layout.cross_entropy(logits, codes), mixture_nll(mixtures, scores)


def mixture_parts(mixtures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log weights, means and scales, each (n, n_scores, n_components)."""
    weights, means, scales = mixtures.unbind(dim=1)
    return F.log_softmax(weights, dim=-1), means, MIN_SCALE + F.softplus(scales)


def mixture_nll(mixtures: Tensor, scores: Tensor) -> Tensor:
    """-log density of scores, (n, n_scores), under their normal mixtures."""
    log_weights, means, scales = mixture_parts(mixtures)
    offset = (scores[..., None] - means) / scales
    log_density = log_weights - 0.5 * offset**2 - scales.log() - 0.5 * math.log(2 * math.pi)
    return -torch.logsumexp(log_density, dim=-1)


def draw_score(mixtures: Tensor, i: int, uniforms: Tensor, normals: Tensor) -> Tensor:
    """Draws of score ``i``, (n,); uniforms are (n, 1), normals (n,)."""
    log_weights, means, scales = (part[:, i] for part in mixture_parts(mixtures))
    place = drawn_code(log_weights, uniforms)[:, None]
    return means.gather(1, place)[:, 0] + scales.gather(1, place)[:, 0] * normals


WIDTH, SMALL_WIDTH, FEW_RECORDS = 256, 128, 1000  # default width
ALONE = 0.25  # share of records decoded from the latent vector and the class alone
CLASS_DROPOUT = 0.5  # share of those with the class hidden, so that the vector encodes it
AT_ONCE = 2048
N_IMPORTANCE = 16  # draws of z in the bound of log p(x | y)


class VaePhase(TablePhase):
    """Negative ELBO: reconstruction and, warmed up, the divergence from the class's prior."""

    name = "table-vae"
    params: VaeModel
    warmth = 1.0  # share of beta at this step

    def lr_factor(self, step: int, n_steps: int) -> float:
        """Warm-up and half a cosine; the divergence warms up too (Sønderby et al. 2016)."""
        self.warmth = min(1.0, (step + 1) / max(1.0, self.params.kl_warmup * n_steps))
        return loop.warmup_cosine(step, n_steps)

    def noisy(self, records: Encoded, rows: Tensor, rng: torch.Generator) -> tuple[Tensor, ...]:
        """Codes, scores, has_score, classes, noise, column weights, shown columns and visible classes."""
        codes, has_score = records.codes[rows], records.has_score[rows]
        scores = records.drawn_scores(rows, rng) * has_score
        n, n_choices, n_scores = len(rows), codes.shape[1], scores.shape[1]
        device, n_columns = rows.device, n_choices + n_scores
        noise = torch.randn(n, self.network.n_latent, generator=rng, device=device)
        # A random position in a random drawing order, choices before scores. Columns before it are
        # shown; it and the later columns of its group are predicted.
        place = torch.randint(n_columns, (n, 1), generator=rng, device=device)
        chance = torch.rand(n, n_columns, generator=rng, device=device)
        order = torch.cat(
            [
                chance[:, :n_choices].argsort(dim=1).argsort(dim=1),
                n_choices + chance[:, n_choices:].argsort(dim=1).argsort(dim=1),
            ],
            dim=1,
        )
        of_choices = place < n_choices
        is_choice = torch.arange(n_columns, device=device) < n_choices
        predicted = (order >= place) & (of_choices == is_choice)
        weights = predicted * (n_columns / predicted.sum(dim=1, keepdim=True))
        shown = order < place
        # Some records are decoded from z alone, half of these without their class.
        chance = torch.rand(n, 1, generator=rng, device=device)
        alone, y = chance < ALONE, records.y[rows]
        weights = torch.where(alone, 1.0, weights)
        visible_y = torch.where(chance[:, 0] < ALONE * CLASS_DROPOUT, self.network.n_classes, y)
        return codes, scores, has_score, y, noise, weights, shown & ~alone, visible_y

    def part_losses(
        self, network: VaeNetwork, batch: tuple[Tensor, ...], frozen: frozenset[str] = frozenset()
    ) -> dict[str, Tensor]:
        """Negative ELBO per column, with the divergence times beta."""
        reconstruction, divergence = elbo_parts(network, batch)
        warmth = self.warmth if torch.is_grad_enabled() else 1.0
        loss = reconstruction + self.params.beta * warmth * divergence
        n_columns = batch[5].shape[1]
        return {"vae": loss.mean() / n_columns}


def elbo_parts(network: VaeNetwork, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Each record's reconstruction error and divergence, both (n,) in nats.

    Their sum is one draw of the negative ELBO if all columns are predicted and none is shown; with
    others shown, of that of the decoder that draws column after column.
    """
    codes, scores, has_score, y, noise, weights, shown, visible_y = batch
    n_choices = codes.shape[1]
    mean, log_scale = network.posterior(codes, scores)
    z = mean + log_scale.exp() * noise
    shown_scores = shown[:, n_choices:] & has_score
    known = network.known(z, visible_y, codes, scores, shown[:, :n_choices], shown_scores)
    of_choices, of_scores = network.hidden_nll(known, codes, scores)
    nll = torch.cat([of_choices, of_scores * has_score], dim=1)
    return (nll * weights).sum(dim=1), kl_divergence((mean, log_scale), network.prior(y))


class TableVae(LatentTable[VaeModel, VaeNetwork]):
    """One variational autoencoder for all classes; see the module."""

    params_class = VaeModel
    phase_class = VaePhase
    min_steps = 320

    def new_network(self) -> VaeNetwork:
        """Encoder, prior and decoder."""
        n_records = sum(self.spec.class_counts)
        return VaeNetwork(
            self.space,
            self.spec.n_classes,
            n_latent=self.latent_size,
            width=self.params.width or (WIDTH if n_records >= FEW_RECORDS else SMALL_WIDTH),
            depth=self.params.depth,
        )

    def after_training(self, network: VaeNetwork, records: Encoded, seed: int) -> None:
        """Fit a density per class to draws of q(z | x)."""
        scores, draws = records.middle_scores, []
        rng = loop.step_generator(seed, "table-vae/settle", 0, records.y.device)
        with torch.inference_mode():
            for codes, part in zip(
                records.codes.split(AT_ONCE), scores.split(AT_ONCE), strict=True
            ):
                mean, log_scale = network.posterior(codes, part)
                noise = torch.randn(mean.shape, generator=rng, device=mean.device)
                draws.append(mean + log_scale.exp() * noise)
        self.fit_densities(torch.cat(draws).cpu().numpy(), records, seed)

    def draw(self, network: VaeNetwork, y: Tensor, numbers: RecordNumbers) -> tuple[Tensor, Tensor]:
        """Draw a vector of the class, then each column given the class, the vector and those before."""
        n_choices, n_scores = len(network.layout), network.n_scores
        z = self._densities.draw(y, numbers)
        uniforms = numbers.uniforms(n_choices + n_scores)
        normals = numbers.normals(n_scores)
        codes, scores, shown, shown_scores = _nothing_shown(network, y)
        for together in drawn_together(n_choices):
            logits, _ = network.predict(network.known(z, y, codes, scores, shown, shown_scores))
            for i in together:
                columns = network.layout.columns(i)
                codes[:, i] = drawn_code(logits[:, columns], uniforms[:, i : i + 1])
            shown[:, together] = True
        present = self.has_score(codes)
        for together in drawn_together(n_scores):
            _, mixtures = network.predict(network.known(z, y, codes, scores, shown, shown_scores))
            for i in together:
                at = n_choices + i
                scores[:, i] = draw_score(mixtures, i, uniforms[:, at : at + 1], normals[:, i])
            shown_scores[:, together] = present[:, together]
        return codes, scores

    def encode(self, network: VaeNetwork, codes: Tensor, scores: Tensor) -> Tensor:
        """Means of q(z | x)."""
        return network.posterior(codes, scores)[0]

    def likeliest(self, network: VaeNetwork, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The most likely codes and the mixtures' means, all columns at once."""
        logits, mixtures = network.predict(_alone(network, z, y))
        weights, means = mixtures[:, 0].softmax(dim=-1), mixtures[:, 1]
        return network.layout.likeliest(logits), (weights * means).sum(dim=-1)

    def anomaly(self, network: VaeNetwork, records: Encoded) -> Tensor:
        """Negative bound under the best class."""
        return -self._bounds(network, records).max(dim=1).values

    def class_log_likelihoods(self, X: Float) -> Float:
        """Return a bound on log p(record | class); see :class:`.base.ScoresClasses`.

        Burda et al. 2016, "Importance Weighted Autoencoders", equation 8.
        """
        return self.scored(X, self._bounds)

    def _bounds(self, network: VaeNetwork, records: Encoded) -> Tensor:
        """Bounds of log p(x | y), (n, n_classes) in nats; every record gets the same noise."""
        scores = records.middle_scores
        mean, log_scale = network.posterior(records.codes, scores)
        rng = loop.step_generator(0, "table-vae/bound", 0, mean.device)
        noise = torch.randn(N_IMPORTANCE, 1, self.n_latent, generator=rng, device=mean.device)
        bounds = mean.new_full((N_IMPORTANCE, len(mean), self.spec.n_classes), 0.0)
        for i in range(N_IMPORTANCE):
            z = mean + log_scale.exp() * noise[i]
            own = (0.5 * noise[i] ** 2 + log_scale).sum(dim=1)  # -log q(z | x) but for a constant
            for k in range(self.spec.n_classes):
                y = torch.full_like(records.y, k)
                known = _alone(network, z, y)
                of_choices, of_scores = network.hidden_nll(known, records.codes, scores)
                nll = of_choices.sum(dim=1) + (of_scores * records.has_score).sum(dim=1)
                centre, spread = network.prior(y)
                offset = (z - centre) * torch.exp(-spread)
                prior = -(0.5 * offset**2 + spread).sum(dim=1)  # log p(z | y), but for the same
                bounds[i, :, k] = prior + own - nll
        return torch.logsumexp(bounds, dim=0) - float(np.log(N_IMPORTANCE))


def _nothing_shown(network: VaeNetwork, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes, scores, and which of either the decoder is shown: zeros and none."""
    codes = torch.zeros(len(y), len(network.layout), dtype=torch.int64, device=y.device)
    scores = torch.zeros(len(y), network.n_scores, device=y.device)
    return codes, scores, codes.bool(), scores.bool()


def _alone(network: VaeNetwork, z: Tensor, y: Tensor) -> Tensor:
    """What the decoder reads of a vector and a class alone."""
    return network.known(z, y, *_nothing_shown(network, y))
