"""The classifier that judges a strategy of images: a small convolutional network.

Every strategy trains it with the same number of steps, batch size and learning rate, from the same
initial weights and, under one seed, with the same random numbers; strategies differ in what is drawn how
often, in the loss and in classic augmentation alone. A fit uses one thread unless told otherwise,
so that its outcome does not depend on the machine's thread count and two strategies can be judged beside
one another. Needs torch.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from prefect_augment.errors import EmptyClassError, ParameterError
from prefect_augment.evaluation.classifiers.batch_transforms import ClassicRanges, classic_batch
from prefect_augment.nn.devices import Device, choose_device
from prefect_augment.nn.loop import train
from prefect_augment.nn.machine import NARROW_BELOW

__all__ = [
    "BATCH_SIZE",
    "ConvNet",
    "ImageClassifier",
    "balanced_draws",
    "balanced_softmax_loss",
    "fit_image_classifier",
    "one_torch_thread",
]

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]
Images = NDArray[np.uint8]
Loss = Literal["ce", "balanced_softmax"]
Change = Callable[[Images, Int], Images]

BATCH_SIZE = 128
# AdamW with one cycle, as the prototype had it (research on images, section 9).
PEAK_RATE = 3e-3
WEIGHT_DECAY = 1e-2
WARM_UP = 0.3  # share of the steps
START, END = 1 / 25, 1 / 2.5e5  # of the peak
CHANNELS = (32, 64, 96, 128)
FINAL_SIDE = 7  # of the last feature map, about, whatever the images' size
PREDICT_BATCH = 512


def fit_image_classifier(
    images: Images,
    y: Int,
    *,
    n_classes: int,
    steps: int,
    seed: int,
    weights: Float | None = None,
    loss: Loss = "ce",
    prior: Float | None = None,
    augment_prob: float = 0.0,
    ranges: ClassicRanges | None = None,
    change: Change | None = None,
    synthetic: Bool | None = None,
    real_only_finish: float = 1.0,
    batch_size: int = BATCH_SIZE,
    width: float = 1.0,
    device: str = "cpu",
) -> ImageClassifier:
    """Train a convolutional classifier on drawn batches of images.

    Parameters
    ----------
    images : ndarray of uint8, shape (n_records, height, width, channels)
    y : ndarray of int64, shape (n_records,)
        Class codes; classes may be absent.
    n_classes : int
        Width of the probabilities.
    steps : int
        Optimiser steps; :func:`~prefect_augment.plan.estimate.classifier_steps` has the rule.
    seed : int
        Of the initial weights, the draws and the augmentation: same seed, same estimator.
    weights : ndarray of float64, shape (n_records,), optional
        How often each record is drawn, in proportion; equally often by default.
    loss : {"ce", "balanced_softmax"}
        Cross-entropy, or cross-entropy with the log prior added to the logits in training.
    prior : ndarray of float64, shape (n_classes,), optional
        For the balanced softmax, in proportion; the classes' shares of the draws by default.
    augment_prob : float in [0, 1]
        Probability that a drawn image is changed by classic augmentation.
    ranges : ClassicRanges, optional
        How far.
    change : callable, optional
        Changes images under one seed each, instead: (images, seeds) to images of the same shape.
    synthetic : ndarray of bool, shape (n_records,), optional
        Records that are no longer drawn after the share ``real_only_finish`` of the steps; each
        class keeps its share of the draws, and one without real records its synthetic ones.
    real_only_finish : float in [0, 1]
        1 draws all records to the end.
    batch_size : int
    width : float
        Times the network's channels; no more than a half of them for fewer than 2,000 records.
    device : str
        ``auto``, ``cpu`` or ``cuda``.

    Returns
    -------
    ImageClassifier

    Raises
    ------
    EmptyClassError
        If no record has a positive weight.
    ParameterError
        If the weights are negative or not finite, or the loss is unknown.

    References
    ----------
    Ren et al. 2020, "Balanced Meta-Softmax for Long-Tailed Visual Recognition", equation 3. The
    real-only finish: research on images of this project, section 9.
    """
    if loss not in ("ce", "balanced_softmax"):
        raise ParameterError(f"loss {loss!r} is unknown; choose 'ce' or 'balanced_softmax'.")
    weights = _checked(weights, len(y))
    where = choose_device(device, threads=1)
    scale = _value_scale(images)
    if (weights > 0).sum() < NARROW_BELOW:
        width = min(width, 0.5)
    network = _make_network(images, n_classes, width=width, seed=seed)
    phase = _Classifying(
        network=network.to(where.torch, memory_format=torch.channels_last),
        images=torch.from_numpy(np.ascontiguousarray(images)).to(where.torch),
        y=torch.from_numpy(y).to(where.torch),
        scale=scale,
        draws=_draws(y, weights, synthetic, where.torch),
        last_synthetic_step=round(real_only_finish * steps),
        log_prior=_log_prior(y, weights, prior, n_classes).to(where.torch)
        if loss == "balanced_softmax"
        else None,
        augment_prob=augment_prob,
        ranges=ranges or ClassicRanges(),
        change=change,
        batch_size=batch_size,
    )
    with one_torch_thread():
        train(phase, steps=steps, seed=seed, device=where, max_norm=0.0)
    seen = np.bincount(y[weights > 0], minlength=n_classes) > 0
    return ImageClassifier(phase.network, seen, scale, where)


def balanced_draws(y: Int) -> Float:
    """Draw weight of each record with which every class that occurs is drawn equally often; mean 1."""
    counts = np.bincount(y)
    return len(y) / (np.count_nonzero(counts) * counts[y])


def balanced_softmax_loss(logits: Tensor, y: Tensor, log_prior: Tensor) -> Tensor:
    """Mean cross-entropy of softmax(logits + log prior).

    Parameters
    ----------
    logits : Tensor of float32, shape (n, n_classes)
    y : Tensor of int64, shape (n,)
    log_prior : Tensor of float32, shape (n_classes,)
        Minus infinity for a class without records, which then takes no part.

    References
    ----------
    Ren et al. 2020, "Balanced Meta-Softmax for Long-Tailed Visual Recognition", equation 3.
    """
    return functional.cross_entropy(logits + log_prior, y)


@dataclass(frozen=True)
class ImageClassifier:
    """A trained classifier of images.

    Attributes
    ----------
    network : ConvNet
    seen : ndarray of bool, shape (n_classes,)
        Classes that it was trained on.
    scale : tuple of float
        Mean and standard deviation of the training images' values, in [0, 1].
    device : Device
    """

    network: ConvNet
    seen: Bool
    scale: tuple[float, float]
    device: Device

    def predict_proba(self, images: Images, /) -> Float:
        """Probability of every class, shape (n, n_classes); 0 for a class never seen."""
        head = self.network.head
        weight, bias = (p.detach().double().cpu().numpy() for p in (head.weight, head.bias))
        logits = self.features(images).astype(np.float64) @ weight.T + bias
        logits[:, ~self.seen] = -np.inf
        odds = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        found: Float = odds / odds.sum(axis=1, keepdims=True)
        return found

    def features(self, images: Images, /) -> NDArray[np.float32]:
        """Penultimate layer, float32 of shape (n, n_features)."""
        found = [np.zeros((0, self.network.n_features), dtype=np.float32)]
        # Without autocast: bfloat16's three digits would blur the distance of a near copy.
        with one_torch_thread(), torch.inference_mode():
            for start in range(0, len(images), PREDICT_BATCH):
                part = torch.from_numpy(images[start : start + PREDICT_BATCH])
                x = _scaled(_to_batch(part.to(self.device.torch)), self.scale)
                found.append(self.network.body(x).float().cpu().numpy())
        return np.concatenate(found)


class ConvNet(nn.Module):
    """Four 3x3 convolutions with batch norm and ReLU, global average pooling, a linear layer.

    Parameters
    ----------
    n_channels, n_classes : int
    side : int
        Shorter side of the images; the first convolutions halve it until about 7 are left.
    width : float
        Times the channels.
    """

    def __init__(self, n_channels: int, n_classes: int, *, side: int, width: float) -> None:
        super().__init__()
        n_halved = max(0, round(math.log2(side / FINAL_SIDE)))
        layers: list[nn.Module] = []
        previous = n_channels
        for i, n in enumerate(round(width * n) for n in CHANNELS):
            stride = 2 if i < n_halved else 1
            layers += [
                nn.Conv2d(previous, n, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(n),
                nn.ReLU(),
            ]
            previous = n
        self.n_features = previous
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(previous, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (n, n_classes)."""
        logits: Tensor = self.head(self.body(x))
        return logits


# --- training ---------------------------------------------------------------------------------


@dataclass
class _Classifying:
    """The phase that the shared loop trains."""

    network: nn.Module
    images: Tensor  # uint8, (n_records, height, width, channels), on the device
    y: Tensor
    scale: tuple[float, float]
    draws: tuple[Tensor, Tensor]  # cumulated draw probabilities: of all records, of the real ones
    last_synthetic_step: int
    log_prior: Tensor | None
    augment_prob: float
    ranges: ClassicRanges
    batch_size: int
    change: Change | None = None
    name: str = "classifier"
    step: int = 0

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=PEAK_RATE, weight_decay=WEIGHT_DECAY
        )
        return {"classifier": optimizer}

    def lr_factor(self, step: int, n_steps: int) -> float:
        """One cycle: half a cosine up, half a cosine down to almost nothing (torch's OneCycleLR)."""
        # The loop opens every step by asking this, and tells its number nowhere else.
        self.step = step
        n_up = max(1.0, WARM_UP * n_steps)
        if step < n_up:
            return _half_cosine(START, 1.0, step / n_up)
        return _half_cosine(1.0, END, (step - n_up) / max(1.0, n_steps - 1 - n_up))

    def batch(self, loss_name: str, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw records with replacement, and change some of them."""
        cumulated = self.draws[self.step >= self.last_synthetic_step]
        uniform = torch.rand(
            self.batch_size, generator=rng, device=cumulated.device, dtype=torch.float64
        )
        rows = torch.searchsorted(cumulated, uniform, right=True)
        images = self.images[rows]
        if self.augment_prob > 0 and self.change is not None:
            images = _changed(images, rng, self.change, self.augment_prob)
        x = _to_batch(images)
        if self.augment_prob > 0 and self.change is None:
            x = classic_batch(x, rng, prob=self.augment_prob, ranges=self.ranges)
        return _scaled(x, self.scale), self.y[rows]

    def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
        x, y = batch
        logits = self.network(x).float()
        if self.log_prior is None:
            return functional.cross_entropy(logits, y)
        return balanced_softmax_loss(logits, y, self.log_prior)


def _changed(images: Tensor, rng: torch.Generator, change: Change, prob: float) -> Tensor:
    """Change some of the images, uint8 of (n, height, width, channels), one by one."""
    draws = torch.rand(len(images), generator=rng, device=images.device)
    seeds = torch.randint(2**62, (len(images),), generator=rng, device=images.device)
    rows = torch.nonzero(draws < prob)[:, 0]
    made = change(images[rows].cpu().numpy(), seeds[rows].cpu().numpy())
    found = images.clone()
    found[rows] = torch.from_numpy(made).to(images.device)
    return found


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2


def _draws(
    y: Int, weights: Float, synthetic: Bool | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cumulated draw probabilities with synthetic records, and without them."""
    finish = weights
    if synthetic is not None:
        real = np.where(synthetic, 0.0, weights)
        total, of_real = np.bincount(y, weights), np.bincount(y, real)
        factor = np.divide(total, of_real, out=np.zeros_like(total), where=of_real > 0)
        finish = np.where(of_real[y] > 0, real * factor[y], weights)
    # Divided by the last sum, so that it is 1 exactly: draws are below 1 and always find a record.
    sums = [np.cumsum(w) for w in (weights, finish)]
    all_records, real_only = (torch.from_numpy(s / s[-1]).to(device) for s in sums)
    return all_records, real_only


def _checked(weights: Float | None, n: int) -> Float:
    weights = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise ParameterError("weights must be finite and not negative; found others.")
    if not (weights > 0).any():
        raise EmptyClassError("no record has a positive weight, so there is nothing to learn from.")
    return weights


def _log_prior(y: Int, weights: Float, prior: Float | None, n_classes: int) -> Tensor:
    shares = np.bincount(y, weights, minlength=n_classes) if prior is None else prior
    found = np.full(n_classes, -np.inf)
    np.log(shares / shares.sum(), out=found, where=shares > 0)
    return torch.from_numpy(found.astype(np.float32))


def _make_network(images: Images, n_classes: int, *, width: float, seed: int) -> ConvNet:
    """The network for these images, with initial weights that the seed alone decides."""
    n_channels = images.shape[3]
    # Made without values, which would come from torch's global generator.
    with torch.device("meta"):
        network = ConvNet(n_channels, n_classes, side=min(images.shape[1:3]), width=width)
    network = network.to_empty(device="cpu")
    rng = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=rng)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5, generator=rng)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return network


def _value_scale(images: Images) -> tuple[float, float]:
    """Mean and standard deviation of all values, from their counts: exact, without a float copy."""
    counts = np.bincount(images.ravel(), minlength=256)
    values = np.arange(256) / 255
    mean = float(np.average(values, weights=counts))
    variance = float(np.average((values - mean) ** 2, weights=counts))
    return mean, math.sqrt(variance) or 1.0


def _to_batch(images: Tensor) -> Tensor:
    """Images of shape (n, h, w, c) as float32 in [0, 1] of shape (n, c, h, w)."""
    return images.permute(0, 3, 1, 2).float().div_(255.0)


def _scaled(x: Tensor, scale: tuple[float, float]) -> Tensor:
    return ((x - scale[0]) / scale[1]).contiguous(memory_format=torch.channels_last)


# --- threads ----------------------------------------------------------------------------------

_lock = threading.Lock()
_users = 0
_threads_before = 1


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch uses one thread inside this block; blocks of several threads may overlap.

    Part of the number is the whole process's: the first block in remembers it, the last one out
    restores it. Otherwise the one that leaves first would lift the limit of the others.
    """
    global _users, _threads_before
    with _lock:
        if _users == 0:
            _threads_before = torch.get_num_threads()
        _users += 1
    try:
        torch.set_num_threads(1)  # in every thread: OpenMP keeps a number for each
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                torch.set_num_threads(_threads_before)
