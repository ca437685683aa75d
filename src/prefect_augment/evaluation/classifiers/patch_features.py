"""Patch features: a linear classifier of images, on features that are learnt without labels.

The filters are whitened patches of the training images; a feature is how strongly one of them answers in a part of
the image. It trains no network, and has much less than one to overfit a rare class with. Needs torch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import torch
from scipy.linalg import solve
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, check_random_state
from torch import Tensor
from torch.nn import functional

from prefect_augment.array_types import Array, Bool, Float, Images, Int
from prefect_augment.encoding.images import encode_column
from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.classifiers.base import checked_weights
from prefect_augment.evaluation.classifiers.convnet import one_torch_thread
from prefect_augment.nn.devices import Device, choose_device
from prefect_augment.nn.threads import single_threaded
from prefect_augment.schema import Mirroring

if TYPE_CHECKING:
    from prefect_augment.schema import Recipe

N_FILTERS = 300
# Side of the patches, what is added to their variance (10 for values up to 255) and to the variances that are
# whitened: Coates & Ng 2012, "Learning Feature Representations with K-means", sections 3, 4. The threshold is untuned.
SIDE, CONTRAST, WHITENING, THRESHOLD = 6, 10.0 / 255**2, 0.1, 0.5
N_PATCHES = 40_000  # that the whitening is estimated from
POSITIONS = 32  # about, along a side of the image
PARTS = 2  # of an image's side, in each of which answers are averaged
# Of the scores, which are shares of the classes more or less, as logits. Cross-entropy on validation records was least
# at 4 to 12 (magnetic_tile, cifar10lt).
SHARPNESS = 8.0
BATCH = 32
# Records that the regression sees, so that its seconds stay below those of a network.
MOST_RECORDS = 15_000
# Axes of (n, channels, height, width) along which the copies are mirrored that features are averaged over.
_COPIES: dict[Mirroring, tuple[tuple[int, ...], ...]] = {
    "": ((),),
    "horizontal": ((), (3,)),
    "both": ((), (2,), (3,), (2, 3)),
}


@dataclass(frozen=True)
class PatchFilters:
    """Filters, and the features of images by them."""

    weight: Tensor  # (n_filters, channels, SIDE, SIDE)
    offset: Tensor  # (n_filters,)
    stride: int
    mirroring: Mirroring
    device: Device

    @property
    def n_features(self) -> int:
        """Of an image: of each filter and sign, the mean answer in each part and the largest one."""
        return 2 * len(self.weight) * (PARTS**2 + 1)

    def features(self, images: Images) -> Tensor:
        """Features of a batch of images, float32 of shape (n, n_features)."""
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self.device.torch)
        x = pixels.permute(0, 3, 1, 2).float() / 255
        copies = _COPIES[self.mirroring]
        return torch.stack([self._answers(x.flip(axes)) for axes in copies]).mean(dim=0)

    def _answers(self, x: Tensor) -> Tensor:
        with self.device.autocast():
            z = functional.conv2d(x, self.weight, stride=self.stride)
        # Pooling over channels that lie side by side takes a fraction of the time.
        z = z.contiguous(memory_format=torch.channels_last)
        z.div_(_deviations(x, self.stride).to(z.dtype)).sub_(
            self.offset.view(1, -1, 1, 1).to(z.dtype)
        )
        whole = (z.shape[2], z.shape[3])
        most, least = functional.max_pool2d(z, whole), functional.max_pool2d(-z, whole)
        largest = torch.cat([most, least], dim=1).flatten(1).float()
        # Both signs at once, since memory is what this waits for: their difference, then their sum.
        z = functional.softshrink(z, THRESHOLD)
        difference = functional.adaptive_avg_pool2d(z, PARTS).float()
        total = functional.adaptive_avg_pool2d(z.abs_(), PARTS).float()
        means = torch.cat([total + difference, total - difference], dim=1).flatten(1) / 2
        return torch.cat([means, (largest - THRESHOLD).clamp_(min=0.0)], dim=1)


@dataclass(frozen=True)
class PatchFit:
    """A ridge regression of the classes on patch features."""

    filters: PatchFilters
    coef: Tensor  # (n_features, n_classes)
    intercept: Tensor  # (n_classes,)
    seen: Bool  # (n_classes,)

    def predict_proba(self, images: Images, /) -> Float:
        """Probability of every class, shape (n, n_classes); 0 for a class never seen."""
        scores = np.empty((len(images), len(self.seen)))
        with one_torch_thread(), torch.inference_mode():
            for start in range(0, len(images), BATCH):
                features = self.filters.features(images[start : start + BATCH])
                scores[start : start + BATCH] = (
                    (features @ self.coef + self.intercept).cpu().numpy()
                )
        scores[:, ~self.seen] = -np.inf
        return np.asarray(softmax(SHARPNESS * scores, axis=1))


def fit_patches(
    images: Images,  # (n_images, height, width, channels)
    y: Int,  # (n,) class codes; classes may be absent
    *,
    n_classes: int,
    seed: int,  # of the patches
    rows: Int | None = None,  # (n,) the image of each record; by default there is one for each
    weights: Float | None = None,  # (n,), in proportion
    n_filters: int = N_FILTERS,
    C: float = 1.0,  # inverse of the L2 penalty, of standardised features and weights of mean 1
    mirroring: Mirroring = "",  # features are means over the mirrored copies
    device: str = "cpu",
) -> PatchFit:
    """Weighted ridge regression of the classes on how strongly random patches of the images answer.

    Answers are soft-thresholded products of a whitened patch and a filter, a patch drawn from the images
    (Coates & Ng 2011, "The Importance of Encoding Versus Training with Sparse Coding and Vector
    Quantization", sections 3 and 5: drawn filters do nearly as well as learnt ones). They are averaged in each
    quarter of the image, and the largest counts by itself: a defect may be small. Of more than
    :data:`MOST_RECORDS` records so many are drawn, heavy ones first. EmptyClassError if no record has a
    positive weight; ParameterError if weights are negative or not finite, or if images are smaller than a patch.
    """
    if min(images.shape[1:3]) < SIDE:
        raise ParameterError(
            f"images have {images.shape[1]} by {images.shape[2]} pixels; patches need {SIDE} or more a side."
        )
    weights = checked_weights(weights, len(y))
    where = np.arange(len(y)) if rows is None else rows
    used = weights > 0
    where, y, weights = where[used], y[used], weights[used]
    share = weights / weights.sum()
    if len(y) > MOST_RECORDS:
        drawn, weights = _draw_in_proportion(share, MOST_RECORDS, seed=seed)
        where, y, share = where[drawn], y[drawn], weights / weights.sum()
    chosen = choose_device(device, threads=1)
    with one_torch_thread(), single_threaded(), torch.inference_mode():
        filters = _make_filters(images, where, share, n_filters, mirroring, chosen, seed=seed)
        coef, intercept = _ridge(filters, images, where, y, share, n_classes, l2=1.0 / C)
    seen = np.bincount(y, minlength=n_classes) > 0
    return PatchFit(filters, coef.to(chosen.torch), intercept.to(chosen.torch), seen)


class PatchClassifier(ClassifierMixin, BaseEstimator):
    """The classifier of the strategy *patch features*, which trains no network.

    Parameters
    ----------
    n_filters : int, default=300
        Patches that images are compared with; ``dataset.recipe.strategy.patches``.
    C : float, default=1.0
        Inverse of the L2 penalty.
    mirroring : {"", "horizontal", "both"}, default=""
        Over which mirrored copies features are averaged.
    squares : (int, int), default=(0, 0)
        Side and channels that files of images are scaled to; ``dataset.recipe.squares``.
    random_state : int, RandomState or None, default=None
        Of the patches.

    Attributes
    ----------
    classes_ : ndarray, shape (n_classes,)

    Examples
    --------
    >>> model = RecipeClassifier(PatchClassifier.of(dataset.recipe), dataset.recipe)  # doctest: +SKIP
    >>> train = dataset.to_table()  # doctest: +SKIP
    >>> model.fit(train["image"], train["label"], dataset.sample_weight())  # doctest: +SKIP
    >>> model.predict(dataset.to_table("holdout")["image"])  # doctest: +SKIP
    """

    of_patches = True

    def __init__(
        self,
        n_filters: int = N_FILTERS,
        C: float = 1.0,
        mirroring: Mirroring = "",
        squares: tuple[int, int] = (0, 0),
        random_state: Any = None,
    ) -> None:
        self.n_filters = n_filters
        self.C = C
        self.mirroring = mirroring
        self.squares = squares
        self.random_state = random_state

    @classmethod
    def of(cls, recipe: "Recipe") -> "PatchClassifier":
        """Return the unfitted classifier of a recipe; ParameterError if the recipe has none."""
        strategy = recipe.strategy
        if not strategy.patches:
            raise ParameterError(f"the recipe {strategy.name!r} has no patch features.")
        return cls(strategy.patches, strategy.C, strategy.mirroring, recipe.squares)

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on images and the class of each.

        Images are a column of files, as ``dataset.to_table()`` has it, or pixels of one size, uint8 of shape
        (n, height, width, channels). ParameterError if files are given without ``squares``.
        """
        self.classes_, codes = np.unique(y, return_inverse=True)
        self.fitted_ = fit_patches(
            self._pixels(X),
            codes,
            n_classes=len(self.classes_),
            seed=int(check_random_state(self.random_state).randint(2**31 - 1)),
            weights=sample_weight,
            n_filters=self.n_filters,
            C=self.C,
            mirroring=self.mirroring,
        )
        return self

    def predict_proba(self, X: Any) -> Float:
        """Probability of each class, shape (n, n_classes), of files, or of pixels of the size trained on."""
        check_is_fitted(self)
        return self.fitted_.predict_proba(self._pixels(X))

    def predict(self, X: Any) -> Array:
        """The most probable class of each image."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])

    def _pixels(self, X: Any) -> Images:
        if isinstance(X, np.ndarray) and X.ndim == 4:
            return X
        side, channels = self.squares
        if not side:
            raise ParameterError(
                "files of images need the size of the comparison; use PatchClassifier.of(recipe), or give squares."
            )
        column = X if isinstance(X, (pa.Array, pa.ChunkedArray)) else pa.array([*X])
        return encode_column(column, size=side, channels=channels)


def _draw_in_proportion(share: Float, n: int, *, seed: int) -> tuple[Int, Float]:
    """Rows of n records, each at most once, and weights that make up for what was not drawn.

    Systematic sampling with probabilities in proportion to ``share``; what these would draw more than once is
    surely drawn.
    """
    probability = n * share
    while (over := probability > 1.0).any():
        rest = ~over & (probability < 1.0)
        probability = np.where(over, 1.0, probability)
        probability[rest] *= (n - np.sum(~rest)) / probability[rest].sum()
    steps = np.floor(np.cumsum(probability) + np.random.default_rng(seed).random())
    rows = np.flatnonzero(np.diff(steps, prepend=0.0))
    return rows, share[rows] / probability[rows]


def _deviations(x: Tensor, stride: int) -> Tensor:
    """Standard deviation of each patch's values, shape (n, 1, height, width)."""
    n = x.shape[1] * SIDE**2
    mean, square = (
        functional.avg_pool2d(v.mean(dim=1, keepdim=True), SIDE, stride) for v in (x, x * x)
    )
    variance = (square - mean * mean).clamp_(min=0.0) * (n / (n - 1))
    return (variance + CONTRAST).sqrt_()


def _make_filters(
    images: Images,
    where: Int,
    share: Float,
    n_filters: int,
    mirroring: Mirroring,
    device: Device,
    *,
    seed: int,
) -> PatchFilters:
    rng = np.random.default_rng(seed)
    _, height, width, channels = images.shape
    of = rng.choice(where, N_PATCHES, p=share)
    top, left = (rng.integers(side - SIDE + 1, size=N_PATCHES) for side in (height, width))
    across = np.arange(SIDE)
    patches = images[
        of[:, None, None], top[:, None, None] + across[:, None], left[:, None, None] + across
    ]  # (N_PATCHES, SIDE, SIDE, channels)
    flat = patches.transpose(0, 3, 1, 2).reshape(N_PATCHES, -1) / 255
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.sqrt(flat.var(axis=1, ddof=1, keepdims=True) + CONTRAST)
    mean = flat.mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov(flat, rowvar=False))
    whiten = axes / np.sqrt(np.maximum(variances, 0.0) + WHITENING) @ axes.T
    drawn = (flat[:n_filters] - mean) @ whiten
    drawn /= np.maximum(np.linalg.norm(drawn, axis=1, keepdims=True), 1e-9)
    # The mean of a patch is in the null space of the whitened patches; the filters are cleared of what rounding left.
    weight = drawn @ whiten
    weight -= weight.mean(axis=1, keepdims=True)
    shape = (n_filters, channels, SIDE, SIDE)
    return PatchFilters(
        weight=torch.from_numpy(weight.reshape(shape)).float().to(device.torch),
        offset=torch.from_numpy(weight @ mean).float().to(device.torch),
        stride=max(1, round(min(height, width) / POSITIONS)),
        mirroring=mirroring,
        device=device,
    )


def _ridge(
    filters: PatchFilters,
    images: Images,
    where: Int,
    y: Int,
    share: Float,
    n_classes: int,
    *,
    l2: float,
) -> tuple[Tensor, Tensor]:
    """Coefficients and intercept; features are never held for more than a batch of images."""
    d = filters.n_features
    sizes = ((d, d), (d,), (d, n_classes))
    product, total, of_class = (torch.zeros(size, dtype=torch.float64) for size in sizes)
    targets = np.eye(n_classes)[y] * share[:, None]
    block: list[Tensor] = []
    for start in range(0, len(y), BATCH):
        batch = slice(start, start + BATCH)
        block.append(filters.features(images[where[batch]]).cpu())
        # A product of many rows at once takes a fraction of the time.
        if len(block) * BATCH >= 2048 or start + BATCH >= len(y):
            x = torch.cat(block)
            part = slice(start + len(block[-1]) - len(x), start + len(block[-1]))
            weight = torch.from_numpy(share[part]).float()
            product += x.T @ (x * weight[:, None])
            total += x.T @ weight
            of_class += x.T @ torch.from_numpy(targets[part]).float()
            block = []
    mean, prior = total.numpy(), targets.sum(axis=0)
    gram = product.numpy() - np.outer(mean, mean)
    # Of constant features nothing is left but rounding.
    scale = np.sqrt(np.maximum(np.diag(gram), 0.0)) + 1e-4
    gram /= np.outer(scale, scale)
    gram[np.diag_indices(d)] += l2
    right = (of_class.numpy() - np.outer(mean, prior)) / scale[:, None]
    coef = solve(gram, right, assume_a="pos") / scale[:, None]
    intercept = prior - mean @ coef
    return torch.from_numpy(coef).float(), torch.from_numpy(intercept).float()
