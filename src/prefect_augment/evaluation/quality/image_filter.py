"""How the filter measures images: distances in a classifier's features, exact copies by their pixels.

The feature space is that of the user's pretrained encoder; without one, the penultimate layer of a class-balanced
convolutional classifier, trained on the training records with classic augmentation. It is no Inception space, and
nothing measured in it is called FID. The classifier's does not tell a training image moved by a pixel from a new one
(of such copies of 16x16 digits 14 % were caught), so pixels are compared too, over shifts by one pixel, and perceptual
hashes. Needs torch.
"""

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.fft import dctn

from prefect_augment.array_types import Float, Float32, Images, Int, Uint64
from prefect_augment.encoding.arrays import Labelled
from prefect_augment.evaluation.classifiers.base import balanced_weights
from prefect_augment.evaluation.classifiers.convnet import ImageClassifier, fit_image_classifier
from prefect_augment.evaluation.neighbours import Space
from prefect_augment.evaluation.quality.likeness import c2st_auc
from prefect_augment.evaluation.quality.near_copies import Measures
from prefect_augment.nn.threads import single_threaded

AUGMENT_PROB = 0.5
# Above 0, which is for equal pixels alone: the largest rounding error of a distance is far below.
SMALLEST_DISTANCE = 1e-6
MAX_SIDE = 32  # of pictures that are compared by pixels; larger ones are averaged down
PLAIN = 1e-3  # a window that varies less has no contrast to compare


def image_measures(
    training: Labelled,
    *,
    stratum_class: Int,
    steps: int,
    seed: int,
    device: str = "cpu",
    encoder: "Encodes | None" = None,
) -> Measures:
    """How images are measured, uint8 of shape (n, height, width, channels).

    ``steps`` are those of each of three classifiers: the label classifier and the utility filter, on a half
    of the training records each, and one for the feature space, whose place an ``encoder`` takes.
    """
    n_classes = int(stratum_class.max()) + 1

    def train(images: Images, y: Int) -> ImageClassifier:
        return fit_image_classifier(
            images,
            y,
            n_classes=n_classes,
            steps=steps,
            seed=seed,
            weights=balanced_weights(y),
            augment_prob=AUGMENT_PROB,
            device=device,
        )

    y = stratum_class[training.stratum]
    space = PictureSpace.of(encoder or train(training.X, y), training.X, y)

    def two_sample(real: Images, synthetic: Images) -> float:
        a, b = (space.place(images).features for images in (real, synthetic))
        return c2st_auc(
            a, b, n_levels=np.zeros(a.shape[1], dtype=np.int64), seed=seed, estimator="logistic"
        )

    moved = ShiftSpace()
    return Measures(
        space,
        train,
        two_sample,
        moved=moved,
        hashes=lambda images: perceptual_hashes(moved.place(images)),
        features=encoder.features if encoder else None,
    )


@dataclass(frozen=True)
class Pictures:
    """Images in the feature space."""

    features: Float  # (n, n_features)
    pixels: Int  # (n,) hash of each image's pixels

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: Any) -> "Pictures":
        return Pictures(self.features[rows], self.pixels[rows])


class Encodes(Protocol):
    """A pretrained encoder of images."""

    @property
    def title(self) -> str:
        """What the report calls its features."""
        ...

    def features(self, images: Images, /) -> Float32:
        """Features of images, uint8 of shape (n, height, width, channels), as (n, n_features)."""
        ...


@dataclass(frozen=True)
class PictureSpace(Space):
    """Euclidean distance between features, each over its standard deviation within the classes."""

    estimator: ImageClassifier | Encodes
    scale: Float  # (n_features,), 1 for a feature that does not vary within the classes

    @classmethod
    def of(cls, estimator: ImageClassifier | Encodes, images: Images, y: Int) -> "PictureSpace":
        """The space of a classifier or encoder, scaled by the training images."""
        features = estimator.features(images).astype(np.float64)
        counts = np.maximum(np.bincount(y), 1)
        mean = np.zeros((len(counts), features.shape[1]))
        np.add.at(mean, y, features)
        within = (features - (mean / counts[:, None])[y]) ** 2
        # A class counts once: the head's spread must not be the measure of the tail.
        weights = balanced_weights(y)
        scale = np.sqrt(np.average(within, axis=0, weights=weights))
        return cls(estimator, np.where(scale > 1e-6, scale, 1.0))

    @property
    def name(self) -> str:
        """What the report calls the space."""
        of = (
            "penultimate features of a class-balanced convolutional classifier trained on the "
            "training records"
            if isinstance(self.estimator, ImageClassifier)
            else self.estimator.title
        )
        return (
            f"Euclidean distance between the {len(self.scale)} {of}, each over its standard "
            "deviation within the classes; equal pixels have distance 0"
        )

    def place(self, images: Images) -> Pictures:
        """Images, uint8 of shape (n, height, width, channels), as points."""
        hashes = [hashlib.blake2b(i.tobytes(), digest_size=8).digest() for i in images]
        features = self.estimator.features(images).astype(np.float64) / self.scale
        return Pictures(features, np.frombuffer(b"".join(hashes), dtype=np.int64))

    def distances(self, a: Pictures, b: Pictures) -> Float:
        """All distances, shape (len(a), len(b)); the caller bounds the size."""
        # |a|² + |b|² - 2ab: a matrix product instead of a difference per pair and feature.
        with single_threaded():
            products = a.features @ b.features.T
        squares = (a.features**2).sum(axis=1)[:, None] + (b.features**2).sum(axis=1) - 2 * products
        distances: Float = np.sqrt(np.maximum(squares, SMALLEST_DISTANCE**2))
        distances[a.pixels[:, None] == b.pixels] = 0.0
        return distances


@dataclass(frozen=True)
class ShiftSpace(Space):
    """1 - correlation of gray images, the smallest over shifts by one pixel.

    Not a metric: an image and the same one moved have distance 0, and the border outside the inner
    window does not count.
    """

    @property
    def name(self) -> str:
        """What the report calls the space."""
        return (
            "1 - correlation of gray pixels, the smallest over shifts of up to one pixel "
            f"(images above {MAX_SIDE} pixels averaged down first)"
        )

    def place(self, images: Images) -> Float32:
        """Images, uint8 of shape (n, height, width, channels), as gray ones of at most 32 pixels."""
        step = -(-max(images.shape[1:3], default=1) // MAX_SIDE)
        height, width = (side // step * step for side in images.shape[1:3])
        gray = images[:, :height, :width].astype(np.float32).mean(axis=3)
        blocks = gray.reshape(len(gray), height // step, step, width // step, step)
        return blocks.mean(axis=(2, 4))

    def distances(self, a: Float32, b: Float32) -> Float:
        """All distances, shape (len(a), len(b)), in [0, 2]; 1 for an image without contrast."""
        inner = _standard(b[:, 1:-1, 1:-1]).T
        best = np.full((len(a), len(b)), -1.0, dtype=np.float32)
        height, width = a.shape[1] - 2, a.shape[2] - 2
        with single_threaded():
            for dy in range(3):
                for dx in range(3):
                    moved = _standard(a[:, dy : dy + height, dx : dx + width])
                    np.maximum(best, moved @ inner, out=best)
        return 1.0 - best.astype(np.float64)


def _standard(windows: Float32) -> Float32:
    """Windows as rows of mean 0 and length 1; zeros where they have no contrast."""
    rows = windows.reshape(len(windows), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    norm = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    unit: Float32 = np.where(norm > PLAIN, rows / np.maximum(norm, PLAIN), 0)
    return unit.astype(np.float32)


N_FREQUENCIES = 8  # in each direction: 64 bits


def perceptual_hashes(gray: Float32) -> Uint64:
    """64-bit hashes of gray images, (n, height, width); equal hashes mean similar images.

    One bit for each of the 8x8 lowest frequencies of the discrete cosine transform: whether it is
    above their median, without the mean brightness. Different small images of one kind may have
    equal hashes, so candidates' hashes are compared with those of validation's records. Zauner
    2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", section 3.2 (pHash).
    """
    if not len(gray):
        return np.empty(0, dtype=np.uint64)
    low = dctn(gray, axes=(1, 2), norm="ortho")[:, :N_FREQUENCIES, :N_FREQUENCIES]
    rows = low.reshape(len(gray), -1)
    bits = rows > np.median(rows[:, 1:], axis=1, keepdims=True)
    bits[:, 0] = False
    padded = np.zeros((len(gray), N_FREQUENCIES**2), dtype=bool)
    padded[:, : bits.shape[1]] = bits
    return np.packbits(padded, axis=1).view(np.uint64)[:, 0]
