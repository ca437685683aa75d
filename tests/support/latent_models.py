"""A small linear model with a latent space, for tests of what is done with one."""

from typing import Any, ClassVar, Self

import numpy as np
import pytest
from numpy.typing import NDArray

from prefect_augment.genmodels.base import (
    Arrays,
    Config,
    Encodes,
    FitContext,
    ImageData,
    ImageSpec,
    TableSpec,
)


class LinearModel:
    """Principal components of standardised columns; per class a normal density with one variance.

    Its figures can be worked out by hand, and training takes milliseconds.
    """

    trained_in_steps: ClassVar[bool] = False

    def __init__(self, spec: Any, arrays: Arrays) -> None:
        self.spec = spec
        self.arrays = arrays

    @classmethod
    def build(cls, params: Any, spec: Any) -> Self:
        return cls(spec, {"n_latent": np.array([int(dict(params or {}).get("n_latent", 3))])})

    def fit(self, data: Any, ctx: FitContext) -> None:
        records = data.images if isinstance(data, ImageData) else data.X
        X = records.reshape(len(records), -1).astype(np.float64)
        mean = np.nan_to_num(np.nanmean(X, axis=0))
        scale = np.nan_to_num(np.nanstd(X, axis=0))
        scale[scale == 0] = 1.0
        S = np.nan_to_num((X - mean) / scale)
        axes = np.linalg.svd(S, full_matrices=False)[2][: self.n_latent]
        n_classes = len(self.spec.classes)
        centres = np.array(
            [
                S[data.y == k].mean(axis=0) if (data.y == k).any() else S[0] * 0
                for k in range(n_classes)
            ]
        )
        self.arrays = {
            "n_latent": np.array([len(axes)]),
            "mean": mean,
            "scale": scale,
            "axes": axes,
            "centres": centres,
        }

    def _standard(self, X: NDArray[Any]) -> NDArray[np.float64]:
        flat = X.reshape(len(X), -1).astype(np.float64)
        return np.nan_to_num((flat - self.arrays["mean"]) / self.arrays["scale"])

    @property
    def n_latent(self) -> int:
        return int(self.arrays["n_latent"][0])

    @property
    def n_steps(self) -> int:
        return 1

    def embed(self, X: NDArray[Any]) -> NDArray[np.float32]:
        return (self._standard(X) @ self.arrays["axes"].T).astype(np.float32)

    def decode_latents(self, Z: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[Any]:
        S = Z.astype(np.float64) @ self.arrays["axes"]
        X = S * self.arrays["scale"] + self.arrays["mean"]
        if isinstance(self.spec, ImageSpec):
            return np.clip(np.rint(X), 0, 255).astype(np.uint8).reshape(len(Z), *self.spec.shape)
        for j, n_levels in enumerate(self.spec.n_levels):
            if n_levels:
                X[:, j] = np.clip(np.rint(X[:, j]), 0, n_levels - 1)
        return X

    def anomaly_scores(self, X: NDArray[Any]) -> NDArray[np.float64]:
        S = self._standard(X)
        return ((S - S @ self.arrays["axes"].T @ self.arrays["axes"]) ** 2).mean(axis=1)

    def denoise(self, X: NDArray[Any], noise: float) -> NDArray[Any]:
        made = self.decode_latents(self.embed(X), np.zeros(len(X), dtype=np.int64))
        return np.rint(X + min(1.0, 2 * noise) * (made.astype(np.float64) - X)).astype(np.uint8)

    def class_log_likelihoods(self, X: NDArray[Any]) -> NDArray[np.float64]:
        S = self._standard(X)
        return -0.5 * ((S[:, None] - self.arrays["centres"]) ** 2).sum(axis=2)

    def sample(self, conditions: NDArray[np.int64], *, seeds: NDArray[np.int64]) -> NDArray[Any]:
        Z = np.array([np.random.default_rng(abs(int(s))).normal(size=self.n_latent) for s in seeds])
        return self.decode_latents(Z.astype(np.float32), conditions)

    def state(self) -> tuple[Config, Arrays]:
        return {
            "spec": self.spec.to_config(),
            "image": isinstance(self.spec, ImageSpec),
        }, self.arrays

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays, *, device: str = "cpu") -> Self:
        spec = (ImageSpec if config["image"] else TableSpec).from_config(config["spec"])
        return cls(spec, arrays)


def encoding(model: Any) -> Any:
    """The model, if it has a latent space."""
    if not isinstance(model, Encodes):
        pytest.skip("has no latent space")
    return model


def assert_embeds_alone(encodes: Any, X: Any) -> None:
    """A record's vector is the same whatever stands beside it."""
    Z = encodes.embed(X)
    assert Z.shape == (len(X), encodes.n_latent)
    assert Z.dtype == np.float32
    assert np.isfinite(Z).all()
    order = np.random.default_rng(0).permutation(len(X))
    np.testing.assert_allclose(encodes.embed(X[order]), Z[order], atol=1e-4)
    np.testing.assert_allclose(encodes.embed(X[5:6]), Z[5:6], atol=1e-4)
    assert encodes.embed(X[:0]).shape == (0, encodes.n_latent)
