"""What every generative model offers, and what it is given: arrays, never files or Arrow tables.

A model of images sees uint8 arrays (n, size, size, channels), all of the encoder's resolution.

A model of tables sees the matrix form of :mod:`prefect_augment.encoding.tables`: float64, NaN where
a value is missing, level codes in category columns. Its classes are strata: the label's classes, or
their combinations with the columns of ``balance.by``. Decoding, types and domains belong to the
encoder, storage to the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from prefect_augment.nn.budget import Calibration

__all__ = [
    "MIN_SAMPLED_RECORDS",
    "Arrays",
    "Calibrates",
    "Config",
    "Denoises",
    "Encodes",
    "FitContext",
    "GenerativeModel",
    "ImageData",
    "ImageSpec",
    "MapsAnomalies",
    "SamplesGiven",
    "ScoresClasses",
    "TableData",
    "TableSpec",
]

# Fit records that a stratum needs before it is sampled: balancing.MIN_SAMPLED training records less
# the fifth of them that is validation by default. With fewer, a draw is close to a copy.
MIN_SAMPLED_RECORDS = 8

Config = dict[str, Any]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class TableSpec:
    """Shapes, column kinds and classes of an encoded table.

    Parameters
    ----------
    names : tuple of str
        Learnt columns, in the order of the matrix.
    is_category : tuple of bool
        Whether the column holds level codes.
    n_levels : tuple of int
        Levels of each category column, 0 for a numeric one.
    classes : tuple of str
        Strata; ``y`` holds indices into them.
    class_counts : tuple of int
        Fit records per stratum.
    """

    names: tuple[str, ...]
    is_category: tuple[bool, ...]
    n_levels: tuple[int, ...]
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]

    def to_config(self) -> Config:
        """Return the spec as plain JSON."""
        return {
            "names": list(self.names),
            "is_category": list(self.is_category),
            "n_levels": list(self.n_levels),
            "classes": list(self.classes),
            "class_counts": list(self.class_counts),
        }

    @classmethod
    def from_config(cls, config: Config) -> TableSpec:
        """Return the spec that :meth:`to_config` wrote down."""
        return cls(**{name: tuple(values) for name, values in config.items()})

    @property
    def n_columns(self) -> int:
        """Learnt columns."""
        return len(self.names)

    @property
    def n_classes(self) -> int:
        """Strata."""
        return len(self.classes)


@dataclass(frozen=True)
class TableData:
    """The training records of a table.

    Parameters
    ----------
    X : ndarray of float64, shape (n_records, n_columns)
        The matrix form; NaN is missing.
    y : ndarray of int64, shape (n_records,)
        Index of each record's stratum in ``TableSpec.classes``.
    """

    X: NDArray[np.float64]
    y: NDArray[np.int64]


@dataclass(frozen=True)
class ImageSpec:
    """Shape and classes of encoded images.

    Parameters
    ----------
    size : int
        Height and width in pixels: the encoder's resolution.
    channels : int
        1 (gray) or 3 (RGB).
    classes : tuple of str
        Strata; ``y`` holds indices into them.
    class_counts : tuple of int
        Fit records per stratum.
    """

    size: int
    channels: int
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]

    def to_config(self) -> Config:
        """Return the spec as plain JSON."""
        return {
            "size": self.size,
            "channels": self.channels,
            "classes": list(self.classes),
            "class_counts": list(self.class_counts),
        }

    @classmethod
    def from_config(cls, config: Config) -> ImageSpec:
        """Return the spec that :meth:`to_config` wrote down."""
        return cls(
            size=int(config["size"]),
            channels=int(config["channels"]),
            classes=tuple(config["classes"]),
            class_counts=tuple(config["class_counts"]),
        )

    @property
    def n_classes(self) -> int:
        """Strata."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        return self.size, self.size, self.channels


@dataclass(frozen=True)
class ImageData:
    """The training records of a set of images.

    Parameters
    ----------
    images : ndarray of uint8, shape (n_records, size, size, channels)
        All of the encoder's resolution.
    y : ndarray of int64, shape (n_records,)
        Index of each record's stratum in ``ImageSpec.classes``.
    """

    images: NDArray[np.uint8]
    y: NDArray[np.int64]


def _report_nothing(step: int, scalars: Mapping[str, float]) -> None:
    """Report to nobody."""


@dataclass(frozen=True)
class FitContext:
    """What a model is given for training beside the data.

    Parameters
    ----------
    seed : int
        Seed of everything random in training.
    steps : int
        Budget of a model that is trained in steps; others take no notice.
    device : str
        Where to train: ``cpu``, ``cuda``, or ``auto`` for a GPU where there is one.
    report : callable
        Called with the step and named scalars, for progress and curves.
    batch_size : int
        Records per step; 0 lets the model choose.
    threads : int
        Threads of one operation; 0 takes the cores there are.
    precision : str
        ``float32`` or ``bfloat16``; empty lets the hardware decide.
    checkpoint : callable, optional
        Called now and then with all that a resume needs: plain JSON and named arrays.
    restored : tuple, optional
        What ``checkpoint`` was last given by an interrupted run with the same seed and steps.
    checkpoint_seconds : float
        Between checkpoints; 0 makes one after every step.
    """

    seed: int
    steps: int = 0
    device: str = "cpu"
    report: Callable[[int, Mapping[str, float]], None] = _report_nothing
    batch_size: int = 0
    threads: int = 0
    precision: str = ""
    checkpoint: Callable[[tuple[Config, Arrays]], None] | None = None
    restored: tuple[Config, Arrays] | None = None
    checkpoint_seconds: float = 60.0


class GenerativeModel(Protocol):
    """A class-conditional model that draws records exactly as asked, without rejection.

    One record depends on the fitted model, its class and its own seed alone, so that any of them
    can be made again by itself: bit for bit in a batch of any size and order from trees; from a
    network bit for bit at its place in its micro-batch, and within rounding elsewhere.
    """

    trained_in_steps: ClassVar[bool]

    @classmethod
    def build(cls, params: Any, spec: Any) -> Self:
        """Return an untrained model of a ``TableSpec`` or ``ImageSpec``.

        Raises
        ------
        ParameterError
            If the params do not fit the spec.
        """
        ...

    def fit(self, data: Any, ctx: FitContext) -> None:
        """Train on training records: ``TableData`` or ``ImageData``, as the spec was."""
        ...

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
        ...

    def state(self) -> tuple[Config, Arrays]:
        """Return all that :meth:`from_state` needs: plain JSON and named arrays, no pickle."""
        ...

    @classmethod
    def from_state(cls, config: Config, arrays: Arrays, *, device: str = "cpu") -> Self:
        """Return the model whose state this is; it samples the same bits."""
        ...

    @property
    def n_steps(self) -> int:
        """Training steps taken (trees: the number of trees)."""
        ...


@runtime_checkable
class Calibrates(Protocol):
    """A model trained in steps that can say how long one takes, so that a budget in minutes works."""

    def calibrate(self, data: Any, ctx: FitContext) -> Calibration:
        """Return how this machine would train.

        Where ``ctx.steps`` is 0, the seconds of a step are measured and ``steps`` is left at 0 for
        the caller; else ``steps`` is what was given and nothing is measured. The model is as
        untrained as before.
        """
        ...


@runtime_checkable
class SamplesGiven(Protocol):
    """A model of tables that can draw records whose columns have given values by itself.

    Others are asked for records and those that happen to have the values are kept, which finds none
    where a column is continuous.
    """

    def sample_given(
        self,
        conditions: NDArray[np.int64],
        *,
        seeds: NDArray[np.int64],
        given: Mapping[int, float],
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Draw a record per condition with the given values, and keep some of them.

        Those that are kept follow the model's distribution of the other columns given these values.
        Whether a record is kept depends on the model, its class, its seed and the values alone.

        Parameters
        ----------
        conditions : ndarray of int64, shape (n,)
            The stratum of each record.
        seeds : ndarray of int64, shape (n,)
            Each record's own seed.
        given : mapping of int to float
            Value by column of the matrix form; NaN asks for a missing value.

        Returns
        -------
        kept : ndarray of int64, shape (n_kept,)
            Which of the n, in their order.
        X : ndarray of float64, shape (n_kept, n_columns)
            The records; the given columns hold exactly the given values.
        """
        ...


@runtime_checkable
class Encodes(Protocol):
    """A model with a latent space: records go in and come back.

    Records are what the model is fitted on, as arrays: the matrix form of a table, or images. None of
    this is random, and a record's result depends on the record alone, within rounding.
    """

    @property
    def n_latent(self) -> int:
        """Size of a latent vector."""
        ...

    def embed(self, X: NDArray[Any]) -> NDArray[np.float32]:
        """Return each record's latent vector, shape (n, n_latent), from its columns without its class."""
        ...

    def decode_latents(self, Z: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[Any]:
        """Return the most likely record of each latent vector and stratum, in the form of the input."""
        ...

    def anomaly_scores(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Return how badly the model accounts for each record, shape (n,); higher is stranger.

        A family with a density gives nats (the negative ELBO under the stratum that fits best), one
        without the error of reconstruction, in the loss it was trained on.
        """
        ...


@runtime_checkable
class ScoresClasses(Protocol):
    """A model that knows how likely a record is in each stratum."""

    def class_log_likelihoods(self, X: NDArray[Any]) -> NDArray[np.float64]:
        """Return log p(record | stratum) or a bound on it, in nats, shape (n, n_classes)."""
        ...


@runtime_checkable
class MapsAnomalies(Protocol):
    """A model of images that says itself where it accounts for an image badly.

    Of others with a latent space it is where their reconstruction is wrong.
    """

    def anomaly_maps(self, X: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the strangeness of every place, shape (n, size, size); higher is stranger."""
        ...


@runtime_checkable
class Denoises(Protocol):
    """A model of images that takes noise out of them."""

    def denoise(self, X: NDArray[np.uint8], noise: float) -> NDArray[np.uint8]:
        """Return the most likely images without their noise, in the form of the input.

        Parameters
        ----------
        X : ndarray of uint8, shape (n, size, size, channels)
            Images of the encoder's resolution.
        noise : float in (0, 1]
            Standard deviation of the Gaussian noise that they hold, white being 1.
        """
        ...
