"""The classifier of images that every strategy trains: a small convolutional network.

Steps, batch size, learning rate, initial weights and, under one seed, random numbers are the same
for all strategies; they differ in how often records are drawn, in the loss, in classic augmentation
and in mixing. Training uses one thread, so that results do not depend on the machine's thread count
and two strategies can train side by side. Needs torch.
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from prefect_augment.array_types import Bool, Float, Float32, Images, Int
from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.classifiers.base import checked_weights
from prefect_augment.evaluation.classifiers.batch_transforms import (
    LEAST_LOG_PRIOR,
    ClassicRanges,
    classic_batch,
    mix_batch,
    soft_targets,
)
from prefect_augment.nn.budget import FitContext
from prefect_augment.nn.devices import Device, choose_device
from prefect_augment.nn.loop import Phase, train
from prefect_augment.nn.machine import NARROW_BELOW
from prefect_augment.schema import Mixing

Loss = Literal["ce", "balanced_softmax"]
Change = Callable[[Images, Int], Images]
MakeNetwork = Callable[[int, int, int], nn.Module]

BATCH_SIZE = 128
# AdamW with one cycle, as the prototype had it (research on images, section 9). For the built-in network twice the
# prototype's rate is worth about three points on magnetic_tile and in short training on cifar10lt, half a point in
# 730 steps; 12e-3 loses that on the former. The user's network may need the lower rate. A shorter warm-up lost points,
# and averaged weights brought none (docs/search.md).
PEAK_RATE, OWN_PEAK_RATE = 6e-3, 3e-3
WEIGHT_DECAY = 1e-2
WARM_UP = 0.3  # share of the steps
START, END = 1 / 25, 1 / 2.5e5  # of the peak
CHANNELS = (32, 64, 96, 128)
FINAL_SIDE = 7  # of the last feature map, about, whatever the images' size
PREDICT_BATCH = 512


def fit_image_classifier(
    images: Images,  # (n_images, height, width, channels)
    y: Int,  # (n,) class codes; classes may be absent
    *,
    n_classes: int,
    steps: int,  # see prefect_augment.plan.estimate.classifier_steps
    seed: int,  # of the initial weights, the draws and the augmentation
    rows: Int | None = None,  # (n,) the image of each record; by default there is one for each
    weights: Float | None = None,  # (n,) how often each record is drawn, in proportion
    loss: Loss = "ce",
    prior: Float | None = None,  # (n_classes,), in proportion; by default the shares of the draws
    augment_prob: float = 0.0,
    ranges: ClassicRanges | None = None,
    change: Change | None = None,
    mixing: Mixing = "",
    mixing_prob: float = 0.0,
    smoothing: Float | None = None,  # (n_classes,) share of a label that goes to other classes
    deferred: float = 0.0,  # share of the steps, the first ones, that draw without weights
    synthetic: Bool | None = None,  # (n,)
    real_only_finish: float = 1.0,
    batch_size: int = BATCH_SIZE,
    width: float = 1.0,  # times the channels; at most half with fewer than 2,000 records
    device: str = "cpu",
    # (n_classes, size, channels) -> another network; width is not used
    make: MakeNetwork | None = None,
) -> "ImageClassifier":
    """Train a convolutional classifier on batches that are drawn with replacement.

    ``balanced_softmax`` adds the log prior to the logits in training (Ren et al. 2020, "Balanced Meta-Softmax for
    Long-Tailed Visual Recognition", equation 3). ``change`` maps (images, seeds) to images and replaces classic
    augmentation. ``mixing`` is :func:`.mix_batch`'s, after classic augmentation. With ``deferred`` the weights count
    after that share of the steps (Cao et al. 2019, "Learning Imbalanced Datasets with Label-Distribution-Aware Margin
    Loss", algorithm 1; a weight is a number of draws here). Logit adjustment after training (Menon et al. 2021) is
    what tuned thresholds do, so it is no loss here. ``synthetic`` records are not drawn after the share
    ``real_only_finish`` of the steps; each class keeps its share of the draws, and one without real records its
    synthetic ones. EmptyClassError if no record has a positive weight; ParameterError if weights are negative or not
    finite, or the loss is unknown.
    """
    if loss not in ("ce", "balanced_softmax"):
        raise ParameterError(f"loss {loss!r} is unknown; choose 'ce' or 'balanced_softmax'.")
    weights = checked_weights(weights, len(y))
    where = choose_device(device, threads=1)
    scale = _value_scale(images, np.arange(len(y)) if rows is None else rows)
    if (weights > 0).sum() < NARROW_BELOW:
        width = min(width, 0.5)
    network: nn.Module
    if make is None:
        network = _make_network(images, n_classes, width=width, seed=seed)
    else:
        network = own_network(make, n_classes, images.shape[1:], seed=seed)
    seen = np.bincount(y[weights > 0], minlength=n_classes) > 0
    phase = _Classifying(
        network=network.to(where.torch, memory_format=torch.channels_last),
        images=torch.from_numpy(np.ascontiguousarray(images)).to(where.torch),
        rows=None if rows is None else torch.from_numpy(rows).to(where.torch),
        y=torch.from_numpy(y).to(where.torch),
        scale=scale,
        draws=_draws(y, weights, synthetic, where.torch),
        last_synthetic_step=round(real_only_finish * steps),
        n_deferred=round(deferred * steps),
        mixing=mixing if mixing_prob > 0 else "",
        mixing_prob=mixing_prob,
        smoothing=None if smoothing is None else torch.from_numpy(smoothing).to(where.torch),
        seen=torch.from_numpy(seen).to(where.torch),
        log_prior=_log_prior(y, weights, prior, n_classes).to(where.torch)
        if loss == "balanced_softmax"
        else None,
        augment_prob=augment_prob,
        ranges=ranges or ClassicRanges(),
        change=change,
        batch_size=batch_size,
        peak_rate=PEAK_RATE if make is None else OWN_PEAK_RATE,
    )
    with one_torch_thread(), nullcontext() if make is None else _global_draws(seed, where):
        train(phase, FitContext(seed, steps), where)
    return ImageClassifier(phase.network, seen, scale, where)


def time_steps(side: int, n_channels: int, *, steps: int, device: str) -> None:
    """Train the narrow network for ``steps`` on a batch of noise: what a timer measures before there are images."""
    noise = np.random.default_rng(0).integers(0, 256, (BATCH_SIZE, side, side, n_channels))
    fit_image_classifier(
        noise.astype(np.uint8),
        np.arange(BATCH_SIZE) % 2,
        n_classes=2,
        steps=steps,
        seed=0,
        width=0.5,
        device=device,
    )


def own_network(
    make: MakeNetwork, n_classes: int, shape: tuple[int, ...], *, seed: int
) -> nn.Module:
    """A network of the user's for images of ``shape`` (height, width, channels), tried once.

    The seed decides its weights. ParameterError unless it gives logits of shape (n, n_classes).
    """
    with _global_draws(seed):
        network = make(n_classes, shape[0], shape[2])
        try:
            with torch.no_grad():
                logits = network.eval()(torch.zeros(2, shape[2], *shape[:2]))
        except (RuntimeError, ValueError, TypeError) as exc:
            raise ParameterError(
                f"the network {type(network).__name__} fails on images of shape (2, {shape[2]}, {shape[0]}, "
                f"{shape[1]}): {exc}"
            ) from exc
    shape_of_logits = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape_of_logits != (2, n_classes):
        raise ParameterError(
            f"the network {type(network).__name__} gives {shape_of_logits} for two images; expected logits of shape "
            f"(2, {n_classes}), a column for each class."
        )
    return network.train()


def balanced_softmax_loss(logits: Tensor, y: Tensor, log_prior: Tensor) -> Tensor:
    """Mean cross-entropy of softmax(logits + log prior), logits of shape (n, n_classes).

    ``y`` is class codes, or class shares of shape (n, n_classes). The log prior is minus infinity for a class without
    records. Ren et al. 2020, "Balanced Meta-Softmax for Long-Tailed Visual Recognition", equation 3.
    """
    if y.is_floating_point():
        log_prior = log_prior.clamp(min=LEAST_LOG_PRIOR)
    return functional.cross_entropy(logits + log_prior, y)


@dataclass(frozen=True)
class ImageClassifier:
    """A trained classifier of images."""

    network: nn.Module
    seen: Bool  # (n_classes,) classes that it was trained on
    scale: tuple[float, float]  # mean and standard deviation of the training values, in [0, 1]
    device: Device

    def predict_proba(self, images: Images, /) -> Float:
        """Probability of every class, shape (n, n_classes); 0 for a class never seen."""
        if isinstance(self.network, ConvNet):
            head = self.network.head
            weight, bias = (p.detach().double().cpu().numpy() for p in (head.weight, head.bias))
            logits = self.features(images).astype(np.float64) @ weight.T + bias
        else:
            logits = self._outputs(self.network, images, len(self.seen)).astype(np.float64)
        logits[:, ~self.seen] = -np.inf
        odds = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        return odds / odds.sum(axis=1, keepdims=True)

    def features(self, images: Images, /) -> Float32:
        """Penultimate layer of the built-in network, float32 of shape (n, n_features)."""
        assert isinstance(self.network, ConvNet)
        return self._outputs(self.network.body, images, self.network.n_features)

    def _outputs(self, network: nn.Module, images: Images, n: int) -> Float32:
        """The ``n`` outputs of a network, or of a part of it, for each image."""
        # One array: outputs kept batch by batch lie in the gaps that the network's large arrays left, and these then
        # find no place in them.
        outputs = np.empty((len(images), n), dtype=np.float32)
        # Without autocast: bfloat16's three digits would blur the distance of a near copy.
        with one_torch_thread(), torch.inference_mode():
            for start in range(0, len(images), PREDICT_BATCH):
                batch = torch.from_numpy(images[start : start + PREDICT_BATCH])
                x = _scaled(_to_batch(batch.to(self.device.torch)), self.scale)
                outputs[start : start + PREDICT_BATCH] = network(x).float().cpu().numpy()
        return outputs


class ConvNet(nn.Module):
    """Four 3x3 convolutions with batch norm and ReLU, global average pooling, a linear layer.

    The first convolutions halve the shorter ``side`` until about 7 pixels are left.
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
        return self.head(self.body(x))


@dataclass
class _Classifying(Phase):
    """The training phase that the shared loop runs."""

    network: nn.Module
    images: Tensor  # uint8, (n_images, height, width, channels), on the device
    y: Tensor
    scale: tuple[float, float]
    # Cumulative draw probabilities: of all records by weight, of real ones by weight, of all without weights.
    draws: tuple[Tensor, Tensor, Tensor]
    last_synthetic_step: int
    log_prior: Tensor | None
    augment_prob: float
    ranges: ClassicRanges
    batch_size: int
    rows: Tensor | None = None  # of each record, its image; None where there is one for each
    change: Change | None = None
    n_deferred: int = 0
    mixing: Mixing = ""
    mixing_prob: float = 0.0
    smoothing: Tensor | None = None
    seen: Tensor | None = None  # (n_classes,) classes with records; for soft targets
    peak_rate: float = PEAK_RATE
    name: str = "classifier"
    max_norm: float = 0.0
    step: int = 0

    def make_optimizers(self) -> dict[str, torch.optim.Optimizer]:
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=self.peak_rate, weight_decay=WEIGHT_DECAY
        )
        return {"classifier": optimizer}

    def lr_factor(self, step: int, n_steps: int) -> float:
        """One cycle: half a cosine up, half a cosine down to almost nothing (torch's OneCycleLR)."""
        # The loop starts every step with this call, and passes the step's number nowhere else.
        self.step = step
        n_up = max(1.0, WARM_UP * n_steps)
        if step < n_up:
            return _half_cosine(START, 1.0, step / n_up)
        return _half_cosine(1.0, END, (step - n_up) / max(1.0, n_steps - 1 - n_up))

    def batch(self, loss_name: str, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw records with replacement, change and mix some of them; targets are codes or class shares."""
        cumulative = self.draws[self.step >= self.last_synthetic_step]
        if self.step < self.n_deferred:
            cumulative = self.draws[2]
        uniform = torch.rand(
            self.batch_size, generator=rng, device=cumulative.device, dtype=torch.float64
        )
        rows = torch.searchsorted(cumulative, uniform, right=True)
        images = self.images[rows if self.rows is None else self.rows[rows]]
        if self.augment_prob > 0 and self.change is not None:
            images = _changed(images, rng, self.change, self.augment_prob)
        x = _to_batch(images)
        if self.augment_prob > 0 and self.change is None:
            x = classic_batch(x, rng, prob=self.augment_prob, ranges=self.ranges)
        y = target = self.y[rows]
        if self.seen is not None and (self.mixing or self.smoothing is not None):
            target = soft_targets(y, self.seen, self.smoothing)
        if self.mixing:
            x, target = mix_batch(x, y, target, rng, mixing=self.mixing, prob=self.mixing_prob)
        return _scaled(x, self.scale), target

    def loss(self, loss_name: str, batch: tuple[Tensor, ...]) -> Tensor:
        x, y = batch
        logits = self.network(x).float()
        if self.log_prior is None:
            return functional.cross_entropy(logits, y)
        return balanced_softmax_loss(logits, y, self.log_prior)


def _changed(images: Tensor, rng: torch.Generator, change: Change, prob: float) -> Tensor:
    """Change some of the images, uint8 of shape (n, height, width, channels), one by one."""
    draws = torch.rand(len(images), generator=rng, device=images.device)
    seeds = torch.randint(2**62, (len(images),), generator=rng, device=images.device)
    rows = torch.nonzero(draws < prob)[:, 0]
    changed = change(images[rows].cpu().numpy(), seeds[rows].cpu().numpy())
    result = images.clone()
    result[rows] = torch.from_numpy(changed).to(images.device)
    return result


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2


def _draws(
    y: Int, weights: Float, synthetic: Bool | None, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Cumulative draw probabilities with synthetic records, without them, and with both but without weights."""
    finish = weights
    if synthetic is not None:
        real = np.where(synthetic, 0.0, weights)
        total, of_real = np.bincount(y, weights), np.bincount(y, real)
        factor = np.divide(total, of_real, out=np.zeros_like(total), where=of_real > 0)
        finish = np.where(of_real[y] > 0, real * factor[y], weights)
    # Divided by the last sum, so that it is 1 exactly: draws are below 1 and always find a record.
    sums = [np.cumsum(w) for w in (weights, finish, (weights > 0).astype(np.float64))]
    all_records, real_only, natural = (torch.from_numpy(s / s[-1]).to(device) for s in sums)
    return all_records, real_only, natural


def _log_prior(y: Int, weights: Float, prior: Float | None, n_classes: int) -> Tensor:
    shares = np.bincount(y, weights, minlength=n_classes) if prior is None else prior
    log_prior = np.full(n_classes, -np.inf)
    np.log(shares / shares.sum(), out=log_prior, where=shares > 0)
    return torch.from_numpy(log_prior.astype(np.float32))


def _make_network(images: Images, n_classes: int, *, width: float, seed: int) -> ConvNet:
    """The network for these images; the seed alone decides its initial weights."""
    n_channels = images.shape[3]
    # Created without values, which would come from torch's global generator.
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


def _value_scale(images: Images, rows: Int) -> tuple[float, float]:
    """Mean and standard deviation of the values of these rows, from their counts: exact, without a float copy."""
    counts = np.zeros(256, dtype=np.int64)
    # In batches, since numpy counts in a copy of eight bytes a value.
    for start in range(0, len(rows), PREDICT_BATCH):
        some = images[rows[start : start + PREDICT_BATCH]]
        counts += np.bincount(some.ravel(), minlength=256)
    values = np.arange(256) / 255
    mean = float(np.average(values, weights=counts))
    variance = float(np.average((values - mean) ** 2, weights=counts))
    return mean, math.sqrt(variance) or 1.0


def _to_batch(images: Tensor) -> Tensor:
    """Images of shape (n, h, w, c) as float32 in [0, 1] of shape (n, c, h, w)."""
    return images.permute(0, 3, 1, 2).float().div_(255.0)


def _scaled(x: Tensor, scale: tuple[float, float]) -> Tensor:
    return ((x - scale[0]) / scale[1]).contiguous(memory_format=torch.channels_last)


_global_lock = threading.RLock()


@contextmanager
def _global_draws(seed: int, device: Device | None = None) -> Iterator[None]:
    """Torch's global generator from the seed, for initial weights and dropout of the user's networks.

    All threads share it, so only one of them is in here at a time.
    """
    on_gpu = device is not None and device.torch.type == "cuda"
    with _global_lock, torch.random.fork_rng([torch.cuda.current_device()] if on_gpu else []):
        torch.manual_seed(seed)
        yield


_lock = threading.Lock()
_users = 0
_threads_before = 1


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Torch uses one thread inside this block; blocks of several threads may overlap.

    The number is partly the process's: the first block in remembers it and the last one out
    restores it; otherwise the first to leave would lift the limit of the others.
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
