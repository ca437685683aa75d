"""Diffusion on one GPU beside NVlabs' EDM: `python benchmarks/diffusion.py --edm PATH [--json FILE]`.

PATH is a checkout of NVlabs/edm, whose own network (SongUNet ddpm++, class-conditional, 32 px), loss,
augmentation and sampler are used. In one run, at the same batch and about the same parameter count:

- training, images/s: the body of a step (zero the gradients, loss, backward, nan_to_num, Adam, average),
  8 warm-up steps, then the median of three blocks, and their spread. EDM in fp16 with TF32 off, as its
  train.py sets it (--tf32 is kinder to it), without DistributedDataParallel, images on the device; ours
  as it is, and compiled. Width by --edm-width (96; 64 and 128 are its small and full ones).
- sampling, images/s: its 18-step Heun sampler (35 evaluations, float64 state), ours with its default
  steps (12 evaluations) and with 18 steps of Heun's rule.

Goals: at least 2 times its training and 1.5 times its sampling. Without a GPU nothing is compared:
--quick runs ours alone, tiny, on a CPU, to see that the command works.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import json
import statistics
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefect_augment.genmodels.base import FitContext, ImageData, ImageSpec
from prefect_augment.genmodels.images.flow_matching import Diffusion
from prefect_augment.nn import loop
from prefect_augment.nn.devices import compiled
from prefect_augment.nn.networks import UNet
from prefect_augment.params import DiffusionModel

SIZE, CHANNELS, N_CLASSES = 32, 3, 10
WARM, BLOCKS, STEPS = 8, 3, 20  # steps before the clock, blocks, steps of a block


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edm", type=Path, help="checkout of NVlabs/edm")
    parser.add_argument("--edm-width", type=int, default=96)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--tf32", action="store_true", help="let EDM's fp32 parts use TF32")
    parser.add_argument("--quick", action="store_true", help="ours alone, tiny, on a CPU")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    if args.quick:
        rows = [ours(16, batch=8, device="cpu", name="ours, tiny, CPU")]
    else:
        if not torch.cuda.is_available():
            raise SystemExit(
                "there is no GPU here, and this benchmark compares speeds on one; run it where "
                "torch.cuda.is_available(), or with --quick to try the command."
            )
        if args.edm is None or not (args.edm / "training" / "networks.py").is_file():
            raise SystemExit("give the checkout of NVlabs/edm with --edm PATH.")
        peer = theirs(args)
        width = nearest_width(peer["parameters"])
        rows = [
            peer,
            ours(width, batch=args.batch, device="cuda", name="ours"),
            ours(width, batch=args.batch, device="cuda", name="ours, compiled", compile=True),
            ours(width, batch=args.batch, device="cuda", name="ours, heun 18", sampler_steps=18,
                 sampler="heun"),
        ]  # fmt: skip
        for row in rows:
            row["training_ratio"] = row["training"] / peer["training"]
            row["sampling_ratio"] = row["sampling"] / peer["sampling"]
    for row in rows:
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{v}" for k, v in row.items()))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


def ours(width: int, *, batch: int, device: str, name: str, **params: Any) -> dict[str, Any]:
    """Return our speeds at a width."""
    rng = np.random.default_rng(0)
    n = max(batch, 4_096 if device == "cuda" else 64)
    y = rng.integers(0, N_CLASSES, n)
    images = rng.integers(0, 256, (n, SIZE, SIZE, CHANNELS), dtype=np.uint8)
    counts = tuple(np.bincount(y, minlength=N_CLASSES).tolist())
    spec = ImageSpec(SIZE, CHANNELS, tuple(map(str, range(N_CLASSES))), counts)
    model = Diffusion.build(DiffusionModel(width=width, **params), spec)
    context = FitContext(seed=0, steps=1_000_000, device=device, batch_size=batch)
    phase, where = model._phase(ImageData(images, y), context)
    is_compiled = False
    if model.params.compile:
        generator = loop.step_generator(0, "compile", 0, phase.device)
        loss = partial(phase.loss, "velocity", phase.batch("velocity", generator))
        is_compiled = compiled(phase.network, loss, where)
    with where.settings():
        run = loop._Run(phase, context, where)
        training, spread = images_per_second(run.take_step, batch, device)
    assert run.ema is not None
    network: Any = run.ema.network
    model._network, model.device = network, where
    model.micro_batch = model.micro_batches[where.name]
    n_drawn = model.micro_batch * (4 if device == "cuda" else 1)
    asked = np.arange(n_drawn) % N_CLASSES
    sampling, _ = images_per_second(
        lambda: model.sample(asked, seeds=asked), n_drawn, device, warm=1, steps=1
    )
    return {
        "name": name,
        "parameters": count(phase.network),
        "precision": where.precision,
        "compiled": is_compiled,
        "training": training,
        "training_spread": spread,
        "sampling": sampling,
    }


def theirs(args: argparse.Namespace) -> dict[str, Any]:
    """Return EDM's speeds: its network, loss, augmentation and sampler."""
    sys.path.insert(0, str(args.edm))
    for name in ("psutil", "requests"):  # imported on the side, not used here
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            sys.modules[name] = types.ModuleType(name)
    networks = importlib.import_module("training.networks")
    losses = importlib.import_module("training.loss")
    augment = importlib.import_module("training.augment")
    sampler = importlib.import_module("generate").edm_sampler
    cuda = torch.device("cuda")
    with tf32(args.tf32):
        network = networks.EDMPrecond(
            img_resolution=SIZE, img_channels=CHANNELS, label_dim=N_CLASSES, use_fp16=True,
            model_type="SongUNet", embedding_type="positional", encoder_type="standard",
            decoder_type="standard", channel_mult_noise=1, resample_filter=[1, 1],
            model_channels=args.edm_width, channel_mult=[2, 2, 2], dropout=0.13, augment_dim=9,
        ).train().requires_grad_(True).to(cuda)  # fmt: skip
        average = copy.deepcopy(network).eval().requires_grad_(False)
        pipe = augment.AugmentPipe(
            p=0.12, xflip=1e8, yflip=1, scale=1, rotate_frac=1, aniso=1, translate_frac=1
        )
        loss_fn = losses.EDMLoss()
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
        images = torch.randint(0, 256, (args.batch, CHANNELS, SIZE, SIZE), device=cuda)
        x = images.float() / 127.5 - 1
        classes = torch.randint(0, N_CLASSES, (args.batch,), device=cuda)
        labels = torch.nn.functional.one_hot(classes, N_CLASSES).float()

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            loss_fn(net=network, images=x, labels=labels, augment_pipe=pipe).sum().mul(
                1 / args.batch
            ).backward()
            for p in network.parameters():
                if p.grad is not None:
                    torch.nan_to_num(p.grad, nan=0, posinf=1e5, neginf=-1e5, out=p.grad)
            optimizer.step()
            with torch.no_grad():
                for ours_, new in zip(average.parameters(), network.parameters(), strict=True):
                    ours_.copy_(new.detach().lerp(ours_, 0.999))

        training, spread = images_per_second(step, args.batch, "cuda")

        def draw() -> None:
            with torch.no_grad():
                latents = torch.randn(args.batch, CHANNELS, SIZE, SIZE, device=cuda)
                sampler(average, latents, labels, num_steps=18)

        sampling, _ = images_per_second(draw, args.batch, "cuda", warm=1, steps=1)
    return {
        "name": f"NVlabs EDM, {args.edm_width} channels, TF32 {'on' if args.tf32 else 'off'}",
        "parameters": count(network),
        "precision": "float16",
        "compiled": False,
        "training": training,
        "training_spread": spread,
        "sampling": sampling,
    }


@contextlib.contextmanager
def tf32(on: bool) -> Any:
    """Set what train.py sets, and restore what was there."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    benchmark = torch.backends.cudnn.benchmark
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = on
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
        torch.backends.cudnn.benchmark = benchmark


def images_per_second(
    work: Callable[[], object], n: int, device: str, *, warm: int = WARM, steps: int = STEPS
) -> tuple[float, float]:
    """Return the median over blocks, and the range over it."""
    if device == "cpu":
        warm, steps = 1, min(2, steps)
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    for _ in range(warm):
        work()
    rates = []
    for _ in range(BLOCKS):
        wait()
        start = time.perf_counter()
        for _ in range(steps):
            work()
        wait()
        rates.append(n * steps / (time.perf_counter() - start))
    middle = statistics.median(rates)
    return middle, (max(rates) - min(rates)) / middle


def nearest_width(parameters: int) -> int:
    """Return our width whose network has about so many parameters."""
    with torch.device("meta"):
        sizes = {
            width: count(UNet(size=SIZE, channels=CHANNELS, n_classes=N_CLASSES, width=width))
            for width in range(16, 513, 16)
        }
    return min(sizes, key=lambda width: abs(sizes[width] - parameters))


def count(network: torch.nn.Module) -> int:
    """Return the parameters of a network."""
    return sum(p.numel() for p in network.parameters())


if __name__ == "__main__":
    main()
