"""Does synthesis help a long tail? `python benchmarks/longtail.py [--quick] [--final] [--json FILE]`.

cifar10lt (12,406 images, 5000 to 50 a class), ResNet-32, three seeds, equal steps for every strategy. Strategies:
cross-entropy, class resampling, balanced softmax, resampling with classic augmentation; each without and
with synthetic images, drawn by the diffusion model after --minutes of training and sampling in all (10,
on one GPU). Every strategy has the customary crops and mirroring.

Without --final, classifiers learn from four fifths of each class of the training file and are tested on
the rest: that is where settings are chosen (--top-up, --finish, --width). With --final they learn from
all of it and cifar10_test is opened, once. Differences are in balanced accuracy, which on the balanced
test file is top-1, with 95 % intervals over records and seeds.

Of the synthetic images: label fidelity, density, coverage and near copies per class, in the features of
an oracle; with --final it learns from a half of the test file, and the other half alone is for testing images.
--quick runs everything at reduced size on a CPU, which says nothing but that it runs.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from _image_scores import Oracle, Reference, coded, printed, read
from torch import Tensor, nn

from prefect_augment.evaluation.classifiers.batch_transforms import ClassicRanges, classic_batch
from prefect_augment.evaluation.metrics.bootstrap import paired_bootstrap
from prefect_augment.evaluation.quality.likeness import likeness
from prefect_augment.genmodels.base import ImageData, ImageSpec
from prefect_augment.params import Budget, DiffusionModel
from prefect_augment.synthesis.train import fit_model
from prefect_augment.synthesis.training_budget import TRAINING_SHARE

BATCH = 128
TRAIN_SHARE = 0.75  # of the minutes; the rest draws and filters
STRATEGIES = ("cross-entropy", "resampling", "balanced softmax", "resampling + classic")


class ResNet(nn.Module):
    """He et al. 2016 for CIFAR: 6 n + 2 layers, shortcuts without weights."""

    def __init__(self, n_classes: int, n: int = 5, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        blocks: list[nn.Module] = []
        n_in = width
        for stage in range(3):
            for i in range(n):
                n_out = width * 2**stage
                blocks.append(Basic(n_in, n_out, 2 if stage and i == 0 else 1))
                n_in = n_out
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(n_in, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        found: Tensor = self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))
        return found


class Basic(nn.Module):
    """Two convolutions beside the image, thinned out and padded with zeros where the size changes."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.stride, self.missing = stride, n_out - n_in
        self.body = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return as many or twice the channels."""
        short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.missing))
        return F.relu(self.body(x) + short)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="reduced size, on a CPU")
    parser.add_argument("--final", action="store_true", help="open the test file")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training and sampling")
    parser.add_argument("--steps", type=int, default=13_000, help="of each classifier")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=256, help="of the diffusion model")
    parser.add_argument("--top-up", type=int, default=5_000, help="fill classes up to so many")
    parser.add_argument("--finish", type=float, default=0.8, help="share of steps with synthetic")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not args.quick:
        raise SystemExit("there is no GPU here: on a CPU this takes days; try it with --quick.")
    if args.quick:
        args.minutes, args.steps, args.seeds, args.width, args.top_up = 0.1, 5, 1, 16, 60
    evaluator = LongTail(args, device)
    report = evaluator.synthesise()
    rows = evaluator.compare()
    printed(report)
    printed(rows)
    if args.json:
        args.json.write_text(json.dumps({"synthetic": report, "strategies": rows}, indent=1))


class LongTail:
    """The data, what was drawn, and the classifiers."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device = args, device
        images, labels = read("cifar10lt", "RGB")
        self.classes = sorted(set(labels))
        y = coded(labels, self.classes)
        rng = np.random.default_rng(0)
        if args.quick:
            kept = rng.permutation(len(y))[:600]
            images, y = images[kept], y[kept]
        if args.final:
            self.test, test_labels = read("cifar10_test", "RGB")
            self.test_y = coded(test_labels, self.classes)
            self.images, self.y = images, y
        else:
            held = np.zeros(len(y), dtype=bool)
            for k in range(len(self.classes)):
                rows = rng.permutation(np.flatnonzero(y == k))
                held[rows[: max(2, len(rows) // 5)]] = True
            self.images, self.y = images[~held], y[~held]
            self.test, self.test_y = images[held], y[held]
        self.counts = np.bincount(self.y, minlength=len(self.classes))
        self.made = self.images[:0], self.y[:0]

    def synthesise(self) -> list[dict[str, Any]]:
        """Train and draw within the minutes, and return what the images are like, class by class."""
        start = time.monotonic()
        spec = ImageSpec(32, 3, tuple(self.classes), tuple(self.counts.tolist()))
        params = DiffusionModel(
            width=self.args.width, flip_prob=0.5, shift_prob=0.2, turn_prob=0.1,
            compile=self.device.type == "cuda",
        )  # fmt: skip
        # The budget's minutes are a whole run's, of which training has its share.
        minutes = self.args.minutes * TRAIN_SHARE / TRAINING_SHARE
        budget = Budget(minutes=minutes, device=self.device.type)
        model: Any = fit_model(ImageData(self.images, self.y), spec, params, 0, budget=budget)
        wanted = np.maximum(0, self.args.top_up - self.counts)
        y = np.repeat(np.arange(len(self.classes)), wanted)
        self.made = model.sample(y, seeds=np.arange(len(y))), y
        took = (time.monotonic() - start) / 60
        print(f"{model.n_steps} steps, {len(y)} images, {took:.1f} of {self.args.minutes} minutes")
        return self._described()

    def _described(self) -> list[dict[str, Any]]:
        half, other = np.array_split(np.random.default_rng(1).permutation(len(self.test_y)), 2)
        steps = 20 if self.args.quick else 3_000
        oracle = Oracle.trained(self.test[half], self.test_y[half], len(self.classes), steps)
        images, y = self.made
        features, said = oracle.see(images)
        real, real_y = oracle.see(self.test[other])[0], self.test_y[other]
        reference = Reference(
            (oracle.see(self.images)[0], self.y), (real, real_y), (real, real_y),
            np.argsort(self.counts)[:4],
        )  # fmt: skip
        rows: list[dict[str, Any]] = []
        # Classes of too few held-out images (with --quick) have nothing to be compared with.
        compared = [k for k in np.unique(y).tolist() if (real_y == k).any()]
        near = np.zeros(len(y), dtype=bool)
        of_judged = np.isin(y, compared)
        near[of_judged] = reference.near_copies(features[of_judged], y[of_judged])
        for k in compared:
            own = y == k
            alike = likeness(real[real_y == k], features[own])
            rows.append({
                "class": self.classes[k], "real": int(self.counts[k]), "made": int(own.sum()),
                "fidelity": float(np.mean(said[own] == k)), "density": alike.density,
                "coverage": alike.coverage, "near_copies": float(near[own].mean()),
            })  # fmt: skip
        return rows

    def compare(self) -> list[dict[str, Any]]:
        """Train every strategy without and with synthetic images, and return the differences."""
        hits: dict[str, list[np.ndarray]] = {}
        for seed in range(self.args.seeds):
            for strategy in STRATEGIES:
                for synthetic in (False, True):
                    name = f"{strategy} + ours" if synthetic else strategy
                    hits.setdefault(name, []).append(self._hits(strategy, synthetic, seed))
                    print(f"{name}, seed {seed}: {hits[name][-1].mean():.4f}", flush=True)
        compared = np.bincount(self.test_y, minlength=len(self.classes)) > 0
        stacked = {strategy: np.stack(found) for strategy, found in hits.items()}
        boot = paired_bootstrap(self.test_y, stacked, compared=compared)
        best = max(STRATEGIES, key=lambda strategy: boot.balanced_accuracy(strategy).estimate)
        rows = []
        for strategy in hits:
            gap, worst = (
                boot.difference(strategy, best),
                min(r.estimate for r in boot.class_recall(strategy).values()),
            )
            against = boot.difference(strategy, "resampling")
            score = boot.balanced_accuracy(strategy).estimate
            rows.append({"strategy": strategy, "balanced": score, "worst recall": worst,
                         "vs best real": gap.estimate, "low": gap.low, "high": gap.high,
                         "vs resampling": against.estimate})  # fmt: skip
        return rows

    def _hits(self, strategy: str, synthetic: bool, seed: int) -> np.ndarray:
        extra = self.made if synthetic else (self.images[:0], self.y[:0])
        images = np.concatenate([self.images, extra[0]])
        y = np.concatenate([self.y, extra[1]])
        torch.manual_seed(seed)
        network = ResNet(len(self.classes), n=1 if self.args.quick else 5).to(self.device)
        steps, rng = self.args.steps, torch.Generator(self.device).manual_seed(seed)
        optimizer = torch.optim.SGD(
            network.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True
        )
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(self.device)
        target = torch.from_numpy(y).to(self.device)
        real = np.arange(len(y)) < len(self.y)
        even = "resampling" in strategy
        both, alone = (self._draws(y, rows, even) for rows in (np.ones(len(y), bool), real))
        for k in range(steps):
            finish = synthetic and k >= self.args.finish * steps
            weights, prior = alone if finish else both
            for group in optimizer.param_groups:
                group["lr"] = 0.1 * min(1.0, (k + 1) / (0.05 * steps)) * (
                    0.5 + 0.5 * math.cos(math.pi * k / steps)
                )  # fmt: skip
            rows = torch.multinomial(weights, BATCH, replacement=True, generator=rng)
            batch = self._augmented(x[rows], rng, classic="classic" in strategy)
            logits = network(batch)
            if strategy == "balanced softmax":
                logits = logits + prior
            loss = F.cross_entropy(logits, target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return self._right(network.eval())

    def _draws(self, y: np.ndarray, rows: np.ndarray, even: bool) -> tuple[Tensor, Tensor]:
        """Return how often each record is drawn, and the logarithm of the classes' shares."""
        counts = np.maximum(np.bincount(y[rows], minlength=len(self.classes)), 1)
        weights = rows / counts[y] if even else rows.astype(np.float64)
        prior = torch.from_numpy(np.log(counts / counts.sum())).float()
        return torch.from_numpy(weights).to(self.device), prior.to(self.device)

    def _augmented(self, images: Tensor, rng: torch.Generator, *, classic: bool) -> Tensor:
        n, x = len(images), images.float() / 255.0
        mirrored = torch.rand(n, 1, 1, 1, generator=rng, device=self.device) < 0.5
        x = torch.where(mirrored, x.flip(3), x)
        if classic:
            x = classic_batch(x, rng, prob=0.5, ranges=ClassicRanges())
        padded = F.pad(x, (4, 4, 4, 4))
        down, right = torch.randint(0, 9, (2, n), generator=rng, device=self.device)
        places = torch.arange(32, device=self.device)
        picks = torch.arange(n, device=self.device)[:, None, None]
        rows, columns = down[:, None] + places, right[:, None] + places
        cropped = padded.permute(0, 2, 3, 1)[picks, rows[:, :, None], columns[:, None, :]]
        return ((cropped - 0.47) / 0.25).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def _right(self, network: nn.Module) -> np.ndarray:
        said = []
        for i in range(0, len(self.test), 500):
            part = torch.from_numpy(self.test[i : i + 500]).to(self.device)
            x = (part.permute(0, 3, 1, 2).float() / 255.0 - 0.47) / 0.25
            said.append(network(x).argmax(1).cpu().numpy())
        return (np.concatenate(said) == self.test_y).astype(np.float64)


if __name__ == "__main__":
    main()
