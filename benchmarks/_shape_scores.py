"""What models make of pictures of shapes: attributes asked for, and factors in latent vectors."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _disentanglement import Dci, dci, gaps, mutual_information
from _shapes import BY, LABEL, SIZE, Shapes, as_table, read, with_attributes
from numpy.typing import NDArray

from prefect_augment.encoding.images import ImageEncoder
from prefect_augment.encoding.strata import table_strata
from prefect_augment.genmodels.base import ImageData, ImageSpec
from prefect_augment.genmodels.latents import bound_log_scale
from prefect_augment.params import Budget, ModelParams, VaeModel
from prefect_augment.synthesis.draw import candidate_seeds
from prefect_augment.synthesis.model_store import image_spec
from prefect_augment.synthesis.train import fit_model

__all__ = ["Disentangled", "Found", "Wanted", "disentangled", "oracle_accuracy"]

BATCH = 64  # on a CPU twice the steps of half the records learn more in the same time


def oracle_accuracy(n: int, seed: int) -> float:
    """Return the share of real pictures, of a seed of their own, of which all attributes are read."""
    real = with_attributes(n, seed)
    return float((read(real.images)[0] == real.codes).all(axis=1).mean())


# --- attributes asked for -------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What the oracle finds in drawn pictures.

    Attributes
    ----------
    every : float
        Share of pictures with all attributes that were asked for.
    each : ndarray of float64, shape (n_attributes,)
        Shares with each of them.
    fit_seconds, draw_seconds : float
        CPU seconds.
    images : ndarray of uint8, shape (n, 32, 32, 3)
        One of each combination.
    """

    every: float
    each: NDArray[np.float64]
    fit_seconds: float
    draw_seconds: float
    images: NDArray[np.uint8]


@dataclass(frozen=True)
class Wanted:
    """Training pictures, balanced within combinations of attributes as ``balance.by`` has it.

    Attributes
    ----------
    encoder : ImageEncoder
        Its strata are the combinations.
    data : ImageData
    spec : ImageSpec
    codes : ndarray of int64, shape (n_strata, n_attributes)
        The attributes of each stratum.
    """

    encoder: ImageEncoder
    data: ImageData
    spec: ImageSpec
    codes: NDArray[np.int64]

    @classmethod
    def of(cls, n: int, seed: int) -> Wanted:
        """Draw pictures and take them through the package's encoder."""
        shapes = with_attributes(n, seed)
        table = as_table(shapes)
        encoder = ImageEncoder.fit(table, column="image", label=LABEL, by=BY)
        names = table_strata(table, label=LABEL, by=BY)
        y = np.array([encoder.strata.index(name) for name in names])
        codes = np.stack([shapes.codes[y == k][0] for k in range(len(encoder.strata))])
        data = ImageData(encoder.encode(table), y)
        return cls(encoder, data, image_spec(encoder, y), codes)

    def asked_of(self, params: ModelParams, *, steps: int, each: int, seed: int) -> Found:
        """Train a model and ask for so many pictures of each combination."""
        started = time.process_time()
        budget = Budget(steps=steps, device="cpu", batch_size=BATCH)
        model = fit_model(self.data, self.spec, params, seed, budget=budget)
        trained = time.process_time()
        y = np.repeat(np.arange(len(self.codes)), each)
        seeds = [candidate_seeds(seed, name, 0, each) for name in self.encoder.strata]
        images = model.sample(y, seeds=np.concatenate(seeds))
        drawn = time.process_time()
        right = read(images)[0] == self.codes[y]
        return Found(
            every=float(right.all(axis=1).mean()),
            each=right.mean(axis=0),
            fit_seconds=trained - started,
            draw_seconds=drawn - trained,
            images=images[::each],
        )


# --- factors in latent vectors --------------------------------------------------------------------


@dataclass(frozen=True)
class Disentangled:
    """Scores of a model's vectors.

    Attributes
    ----------
    gaps : ndarray of float64, shape (n_factors,)
        Their mean is MIG.
    dci : Dci
    n_informative : int
        Numbers that say more than 0.1 nats about a picture.
    error : float
        Squared error per pixel of test pictures as they come back, black to white being 1.
    """

    gaps: NDArray[np.float64]
    dci: Dci
    n_informative: int
    error: float

    @property
    def mig(self) -> float:
        """The mutual information gap."""
        return float(self.gaps.mean())


LEAST_INFORMATION = 0.1  # nats


def informative(model: Any, X: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return how informative each latent number of a VAE is, mean nats of shape (n_latent,).

    The divergence of q(z_j | x) from a normal with the prior's mean and deviation over all classes.
    """
    prior = model.network.prior
    with torch.inference_mode():
        variance = (2 * bound_log_scale(prior.log_scale)).exp().mean(dim=0)
        deviation = (variance + prior.mean.var(dim=0, correction=0)).sqrt()
        images = torch.from_numpy(np.ascontiguousarray(X.transpose(0, 3, 1, 2))) / 255.0
        mean, log_scale = model.network.posterior(images)
        offset = ((mean - prior.mean.mean(dim=0)) / deviation) ** 2
        ratio = (2 * log_scale).exp() / deviation**2
        return (0.5 * (ratio + offset - 1 - ratio.log())).mean(dim=0).double().numpy()


def disentangled(
    params: VaeModel, shapes: Shapes, *, n_test: int, steps: int, seed: int
) -> Disentangled:
    """Train a VAE on pictures without any label, embed them, and score the vectors.

    Parameters
    ----------
    params : VaeModel
    shapes : Shapes
        From :func:`with_factors`.
    n_test : int
        The last pictures, which neither VAE nor forests learn from; all scores are theirs.
    steps, seed : int
    """
    n = len(shapes.images) - n_test
    X, V = shapes.images, shapes.codes
    spec = ImageSpec(SIZE, X.shape[3], ("shape",), (n,))
    data = ImageData(X[:n], np.zeros(n, dtype=np.int64))
    budget = Budget(steps=steps, device="cpu", batch_size=BATCH)
    model: Any = fit_model(data, spec, params, seed, budget=budget)
    Z = model.embed(X).astype(np.float64)
    back = model.reconstruct(X[n:])
    return Disentangled(
        gaps=gaps(*mutual_information(Z[n:], V[n:])),
        dci=dci(Z[:n], V[:n], Z[n:], V[n:], seed=seed),
        n_informative=int((informative(model, X[n:]) > LEAST_INFORMATION).sum()),
        error=float(np.mean((back / 255.0 - X[n:] / 255.0) ** 2)),
    )
