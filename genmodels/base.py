"""Contracts of generative models: what they offer and what they get. Arrays only, no files or Arrow.

Models of images see uint8 arrays (n, size, size, channels) of one resolution. Models of tables see
the matrix form of :mod:`prefect_augment.encoding.tables`: float64, NaN for missing values, level
codes in category columns. Their classes are strata: the label's classes, or combinations with the
columns of ``balance.by``. The encoder owns decoding, types and domains.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from prefect_augment.nn.budget import (
    Arrays as Arrays,
    Calibration,
    Config as Config,
    FitContext as FitContext,
)

# Training records that a stratum needs before it is sampled; with fewer, a draw is close to a copy.
# It is plan.targets.MIN_SAMPLED less the fifth that is validation by default.
MIN_SAMPLED_RECORDS = 8


class _Spec:
    """What specs of tables and of images share."""

    classes: tuple[str, ...]

    def to_config(self) -> Config:
        """Return the spec as plain JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """Inverse of :meth:`to_config`."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()})

    @property
    def n_classes(self) -> int:
        """Number of strata."""
        return len(self.classes)


@dataclass(frozen=True)
class TableSpec(_Spec):
    """Shapes, column kinds and classes of an encoded table."""

    names: tuple[str, ...]  # learnt columns, in matrix order
    is_category: tuple[bool, ...]  # whether the column holds level codes
    n_levels: tuple[int, ...]  # per column, 0 for a number
    classes: tuple[str, ...]  # strata; y indexes them
    class_counts: tuple[int, ...]  # training records per stratum

    @property
    def n_columns(self) -> int:
        """Number of learnt columns."""
        return len(self.names)


@dataclass(frozen=True)
class TableData:
    """The training records of a table."""

    X: NDArray[np.float64]  # (n_records, n_columns), NaN is missing
    y: NDArray[np.int64]  # (n_records,) index of the stratum


@dataclass(frozen=True)
class ImageSpec(_Spec):
    """Shape and classes of encoded images."""

    size: int  # height and width in pixels
    channels: int  # 1 (gray) or 3 (RGB)
    classes: tuple[str, ...]  # strata; y indexes them
    class_counts: tuple[int, ...]  # training records per stratum

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        return self.size, self.size, self.channels


@dataclass(frozen=True)
class ImageData:
    """The training records of a set of images."""

    images: NDArray[np.uint8]  # (n_records, size, size, channels)
    y: NDArray[np.int64]  # (n_records,) index of the stratum


class GenerativeModel(Protocol):
    """A class-conditional model that draws exactly the requested records, without rejection.

    A record depends only on the fitted model, its class and its own seed, so any record can be
    drawn again by itself. Trees give the same bits in a batch of any size and order. A network
    gives the same bits at the same place in the micro-batch, and equal values within rounding
    elsewhere.
    """

    trained_in_steps: ClassVar[bool]

    @classmethod
    def build(cls, params: Any, spec: Any) -> Self:
        """Return an untrained model of a ``TableSpec`` or ``ImageSpec``.

        Raises ParameterError if the params do not fit the spec.
        """

    def fit(self, data: Any, ctx: FitContext) -> None:
        """Train on training records: ``TableData`` or ``ImageData``, matching the spec."""

    def sample(self, conditions: NDArray[np.int64], *, seeds: NDArray[np.int64]) -> NDArray[Any]:
        """Draw one record per condition.

        Parameters
        ----------
        conditions : ndarray of int64, shape (n,)
            The stratum of each record, an index into ``spec.classes``.
        seeds : ndarray of int64, shape (n,)
            Each record's own seed.

        Returns
        -------
        ndarray
            In the order of ``conditions``: the matrix form, float64 of shape (n, n_columns), or
            images, uint8 of shape (n, size, size, channels).
        """

    def state(self) -> tuple[Config, Arrays]:
        """Return everything that :meth:`from_state` needs: plain JSON and named arrays, no pickle."""

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays, *, device: str = "cpu") -> Self:
        """Return the model of a state; it draws the same bits."""

    @property
    def n_steps(self) -> int:
        """Training steps taken (trees: the number of trees)."""


@runtime_checkable
class Calibrates(Protocol):
    """A model trained in steps that can measure a step, which allows a budget in minutes."""

    def calibrate(self, data: Any, ctx: FitContext) -> Calibration:
        """Return how this machine would train; the model stays untrained.

        Where ``ctx.steps`` is 0, this measures the seconds per step and leaves ``steps`` at 0 for
        the caller. Otherwise it copies ``ctx.steps`` and measures nothing.
        """


@runtime_checkable
class SamplesWithValues(Protocol):
    """A model of tables that can draw records with fixed column values.

    Other models draw and keep the records that happen to match, which fails for continuous columns.
    """

    def sample_with_values(
        self,
        conditions: NDArray[np.int64],
        *,
        seeds: NDArray[np.int64],
        values: Mapping[int, float],
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Draw a record per condition with the fixed values, and keep some of them.

        Kept records follow the model's distribution of the other columns given these values.
        Whether a record is kept depends only on the model, its class, its seed and the values.
        These are by column of the matrix form; NaN requests a missing value.

        Returns
        -------
        kept : ndarray of int64, shape (n_kept,)
            Indices of the kept records, ascending.
        X : ndarray of float64, shape (n_kept, n_columns)
            The records; the fixed columns hold exactly the requested values.
        """


@runtime_checkable
class Encodes(Protocol):
    """A model with a latent space: records can be encoded and decoded.

    Records are arrays as in training: the matrix form of a table, or images. Nothing here is
    random, and a record's result depends on the record alone, within rounding.
    """

    @property
    def n_latent(self) -> int:
        """Size of a latent vector."""

    def embed(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """Return latent vectors, (n, n_latent), from the records without their class."""

    def decode_latents(self, Z: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[Any]:
        """Return the most likely record of each latent vector and stratum, in the input's form."""

    def anomaly_scores(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Return anomaly scores, shape (n,); higher is stranger.

        Models with a density give nats (the negative ELBO under the best stratum); others the
        reconstruction error in their training loss.
        """


@runtime_checkable
class ScoresClasses(Protocol):
    """A model that scores how likely a record is in each stratum."""

    def class_log_likelihoods(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Return log p(record | stratum) or a bound on it, in nats, shape (n, n_classes)."""


@runtime_checkable
class MapsAnomalies(Protocol):
    """A model of images with its own anomaly maps; for others the reconstruction error serves."""

    def anomaly_maps(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the anomaly of every pixel, shape (n, size, size); higher is stranger."""
