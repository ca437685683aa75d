"""The small image generator on one CPU thread: `python benchmarks/diffusion_cpu.py [--quick] [--json FILE]`.

Ours (``genmodels/images/flow_matching.py`` through ``nn/loop.py``) beside a plain PyTorch version of the
prototype that the design's figures come from: a flow-matching U-Net of about 1.2 million weights on
14 × 14 squares of 28 px images, 48 and 112 channels, one group norm of 8 groups a block, plain
attention, batch 128, 6 midpoint steps; both in bf16 where the CPU multiplies it. Same data, same machine,
same run:

- training and sampling, images per CPU second, medians of interleaved repeats;
- without --quick, after equal CPU seconds of training (--seconds), 100 samples per class: Fréchet
  distance to held-out images, over all and over the four rarest classes, and label fidelity. The
  feature space is the last layer of a classifier trained on the other half of the (balanced) test
  file, which no generator sees. --sheet names a file for a picture of both.

The images are read from ../shared/data/images beside the repository.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
import torch.nn.functional as F
from _image_scores import Oracle, cpu_seconds, read
from PIL import Image
from torch import Tensor, nn

from prefect_augment.evaluation.quality.likeness import frechet_distance
from prefect_augment.genmodels.base import FitContext, ImageData, ImageSpec
from prefect_augment.genmodels.images.flow_matching import Diffusion, integrate, velocity_loss
from prefect_augment.nn import loop
from prefect_augment.nn.devices import choose_device
from prefect_augment.params import DiffusionModel

PEER = "plain PyTorch prototype, 1.2M"
DEVICE = choose_device("cpu", threads=1)
BATCH = 128
STEPS = 6  # midpoint steps of both


class Block(nn.Module):
    """The prototype's block."""

    def __init__(self, n_in: int, n_out: int, n_embedding: int, *, attention: bool = False) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, n_in)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.modulation = nn.Linear(n_embedding, 2 * n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        self.skip = nn.Conv2d(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        self.attention = attention
        if attention:
            self.qkv, self.out = nn.Conv2d(n_out, 3 * n_out, 1), nn.Conv2d(n_out, n_out, 1)
            nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, 1)
        h = self.conv1(F.silu(self.norm(x)))
        x = self.skip(x) + self.conv2(F.silu(h * (1 + scale) + shift))
        if self.attention:
            n, c, height, width = x.shape
            q, k, v = self.qkv(x).flatten(2).transpose(1, 2).chunk(3, -1)
            mixed = (q @ k.transpose(1, 2) * c**-0.5).softmax(-1) @ v
            x = x + self.out(mixed.transpose(1, 2).reshape(n, c, height, width))
        return x


class Prototype(nn.Module):
    """The prototype's U-Net."""

    def __init__(self, n_classes: int, a: int = 48, b: int = 112, e: int = 256) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(64, e), nn.SiLU(), nn.Linear(e, e))
        self.label = nn.Embedding(n_classes + 1, e)
        self.stem = nn.Conv2d(4, a, 3, padding=1)
        self.down = nn.ModuleList([Block(a, a, e), Block(a, a, e)])
        self.shrink = nn.Conv2d(a, b, 3, 2, 1)
        self.middle = nn.ModuleList([Block(b, b, e, attention=True) for _ in range(2)])
        self.grow = nn.Conv2d(b, a, 3, padding=1)
        self.up = nn.ModuleList([Block(2 * a, a, e), Block(a, a, e)])
        self.norm = nn.GroupNorm(8, a)
        self.out = nn.Conv2d(a, 4, 3, padding=1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        angles = t[:, None] * 1000.0 * torch.exp(-math.log(1e3) * torch.arange(32) / 32)
        embedding = self.time(torch.cat([angles.sin(), angles.cos()], 1)) + self.label(y)
        embedding = F.silu(embedding)
        h = self.stem(F.pixel_unshuffle(x, 2))
        for block in self.down:
            h = block(h, embedding)
        low = self.shrink(h)
        for block in self.middle:
            low = block(low, embedding)
        h = torch.cat([h, self.grow(F.interpolate(low, scale_factor=2.0))], 1)
        for block in self.up:
            h = block(h, embedding)
        return F.pixel_shuffle(self.out(F.silu(self.norm(h))), 2).float()


class Peer:
    """The prototype's training and sampling, as simple as they can be written."""

    def __init__(self, data: ImageData, n_classes: int) -> None:
        torch.manual_seed(0)
        self.n_classes = n_classes
        self.network = Prototype(n_classes).to(memory_format=torch.channels_last)
        self.average = Prototype(n_classes).to(memory_format=torch.channels_last)
        self.average.load_state_dict(self.network.state_dict())
        self.optimizer = torch.optim.AdamW(self.network.parameters(), 2e-3, weight_decay=0.0)
        self.images = torch.from_numpy(data.images.transpose(0, 3, 1, 2).copy())
        self.y = torch.from_numpy(data.y)
        self.weights = (torch.bincount(self.y).double() ** -0.5)[self.y]
        self.step_count = 0

    def step(self, factor: float = 1.0) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = 2e-3 * factor
        rows = torch.multinomial(self.weights, BATCH, replacement=True)
        x = self.images[rows].float() / 127.5 - 1
        y = torch.where(torch.rand(BATCH) < 0.1, self.n_classes, self.y[rows])
        with DEVICE.autocast():
            loss = velocity_loss(
                lambda p, t: self.network(p, t, y), x, torch.randn_like(x), torch.rand(BATCH)
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step_count += 1
        k = self.step_count
        keep = min(0.999, (1 + k) / (10 + k))
        with torch.no_grad():
            for ours, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
                ours.lerp_(new, 1 - keep)

    def velocity(self, y: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        def velocity(x: Tensor, t: Tensor) -> Tensor:
            with DEVICE.autocast():
                return self.average(x, t, y)

        return velocity

    @torch.inference_mode()
    def sample(self, y: Tensor) -> np.ndarray:
        x = integrate(self.velocity(y), torch.randn(len(y), 1, 28, 28), STEPS)
        return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def interleaved(
    ours: Callable[[], object], peer: Callable[[], object], repeats: int
) -> tuple[float, float]:
    """Return the median CPU seconds of each, after one warm-up."""
    ours(), peer()
    pairs = [(cpu_seconds(ours), cpu_seconds(peer)) for _ in range(repeats)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def sheet(path: Path, rows: list[tuple[str, np.ndarray]], n_classes: int) -> None:
    """Write 10 samples per class of each model, side by side."""
    tiles = [
        images.reshape(n_classes, 10, 28, 28).transpose(0, 2, 1, 3).reshape(n_classes * 28, 280)
        for _, images in rows
    ]
    gap = np.full((n_classes * 28, 8), 128, np.uint8)
    Image.fromarray(np.hstack([tiles[0], gap, tiles[1]])).resize((1136, 560)).save(path)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="speeds only, fewer repeats")
    parser.add_argument("--seconds", type=float, default=240.0, help="CPU seconds of training each")
    parser.add_argument("--sheet", type=Path, help="write samples of both here (PNG)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = read("fashion_lt")
    classes = sorted(set(labels))
    y = np.array([classes.index(name) for name in labels], dtype=np.int64)
    data = ImageData(images, y)
    spec = ImageSpec(28, 1, tuple(classes), tuple(int(n) for n in np.bincount(y)))

    model = Diffusion.build(DiffusionModel(sampler_steps=STEPS), spec)
    context = FitContext(seed=0, steps=1_000_000, device="cpu", threads=1)
    phase, device = model._phase(data, context)
    run = loop._Run(phase, context, device)
    peer = Peer(data, len(classes))
    print(f"weights: ours {count(phase.network):,}, peer {count(peer.network):,}; {device}")
    repeats = 5 if args.quick else 15
    ours_step, peer_step = interleaved(run.take_step, peer.step, repeats)
    model._network, model.device = phase.network.eval(), device
    asked = torch.arange(128) % len(classes)
    ours_draw, peer_draw = interleaved(
        lambda: model.sample(asked.numpy(), seeds=np.arange(128)), lambda: peer.sample(asked), 3
    )
    rows = [
        row(
            "training, one thread", "images/CPU s", phase.batch_size / ours_step, BATCH / peer_step
        ),
        row("sampling, one thread", "images/CPU s", 128 / ours_draw, 128 / peer_draw),
    ]
    if not args.quick:
        rows += equal_time(args, spec, data, classes, ours_step, peer_step)
    for r in rows:
        print(
            f"{r['metric']:<66} {r['unit']:<14} ours {r['ours']:9.4g}  peer {r['peer']:9.4g}  "
            f"ratio {r['ratio']:.2f}  goal {r['goal']}  {'met' if r['met'] else 'NOT met'}"
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


def equal_time(
    args: argparse.Namespace,
    spec: ImageSpec,
    data: ImageData,
    classes: list[str],
    ours_step: float,
    peer_step: float,
) -> list[dict[str, Any]]:
    """Train both for the same CPU seconds and compare their samples with held-out images."""
    images, labels = read("fashion_test")
    y = np.array([classes.index(name) for name in labels], dtype=np.int64)
    half, other = np.array_split(np.random.default_rng(0).permutation(len(images)), 2)
    oracle = Oracle.trained(images[half], y[half], len(classes), 900)
    real, predicted = oracle.see(images[other])
    print(f"oracle: {np.mean(predicted == y[other]):.3f} accuracy on the other half")

    ours = Diffusion.build(DiffusionModel(sampler_steps=STEPS), spec)
    n_ours, n_peer = round(args.seconds / ours_step), round(args.seconds / peer_step)
    took = cpu_seconds(
        lambda: ours.fit(data, FitContext(seed=0, steps=n_ours, device="cpu", threads=1))
    )
    peer = Peer(data, len(classes))
    peer_took = cpu_seconds(
        lambda: [peer.step(loop.warmup_cosine(k, n_peer)) for k in range(n_peer)]
    )
    print(f"trained: ours {n_ours} steps in {took:.0f} CPU s, peer {n_peer} in {peer_took:.0f}")

    asked = np.repeat(np.arange(len(classes)), 100)
    drawn = ours.sample(asked, seeds=np.arange(len(asked)))
    peer_drawn = peer.sample(torch.from_numpy(asked))
    if args.sheet:
        first = np.arange(len(asked)).reshape(-1, 100)[:, :10].ravel()
        sheet(args.sheet, [("ours", drawn[first]), (PEER, peer_drawn[first])], len(classes))
    (ours_seen, ours_said), (peer_seen, peer_said) = oracle.see(drawn), oracle.see(peer_drawn)
    tail = np.argsort(spec.class_counts)[:4]
    in_tail, real_tail = np.isin(asked, tail), np.isin(y[other], tail)
    after = f"after {args.seconds:.0f} CPU s"
    return [
        row(
            f"Frechet distance, all classes, {after}", "classifier's",
            frechet_distance(ours_seen, real), frechet_distance(peer_seen, real), lower=True,
        ),
        row(
            f"Frechet distance, four rarest, {after}", "classifier's",
            frechet_distance(ours_seen[in_tail], real[real_tail]),
            frechet_distance(peer_seen[in_tail], real[real_tail]), lower=True,
        ),
        row(
            f"label fidelity, {after}", "share",
            float(np.mean(ours_said == asked)), float(np.mean(peer_said == asked)),
        ),
    ]  # fmt: skip


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def row(metric: str, unit: str, ours: float, peer: float, *, lower: bool = False) -> dict[str, Any]:
    return {
        "metric": f"fashion_lt, 28 px: {metric}",
        "unit": unit,
        "ours": ours,
        "peer": peer,
        "peer_name": PEER,
        "ratio": ours / peer,
        "goal": "at most 1" if lower else "above 1",
        "met": ours <= peer if lower else ours > peer,
    }


if __name__ == "__main__":
    main()
