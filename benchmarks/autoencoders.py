"""Autoencoders and VAE of images: `python benchmarks/autoencoders.py [--quick] [--json FILE] [--sheet FILE]`.

Every kind learns the training file of mnist10k (8,000 images) for the steps in :data:`KINDS`, batch 128,
one thread; settings were chosen on a part of that file, and the test file (2,000) gives the figures:

- squared error per pixel of test images as they come back, beside the mean image, PCA of the same
  number of components, and the AE and VAE of the `pythae` package (0.1.2, its default 784-512-16,
  in an environment of its own that is made once in --cache; without it they are left out);
- images per CPU second in training; for pythae's AE also at its own architecture;
- the ratio of bytes of an image to float32 numbers of a code, 16, 32 and 64 of them;
- denoising: PSNR gained at a deviation of 0.5, of images stored as uint8, where noise beyond black and
  white is lost already, and against the noise before that;
- AUROC of the nine other digits where one is learnt, mean over the ten, one configuration.

What embeddings hold is measured by `image_latents.py`.
--sheet writes a picture: test images, and below as each kind brings them back. The images are read
from ../shared/data/images beside the repository.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from _image_scores import read
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from prefect_augment.genmodels.base import FitContext, ImageData, ImageSpec
from prefect_augment.genmodels.images.autoencoder import Autoencoder
from prefect_augment.genmodels.images.vae import Vae
from prefect_augment.params import AutoencoderModel, VaeModel

BATCH = 128
SIGMA = 0.5
# Kind: params and steps.
KINDS: dict[str, tuple[AutoencoderModel | VaeModel, int]] = {
    "dense 784-64-784": (AutoencoderModel(variant="dense", n_latent=64), 2331),
    "conv": (AutoencoderModel(variant="conv", n_latent=64), 400),
    "deep": (AutoencoderModel(variant="deep", n_latent=64, learning_rate=0.003), 1500),
    "denoising": (AutoencoderModel(variant="denoising", n_latent=64), 600),
    "sparse": (AutoencoderModel(variant="sparse", n_latent=64), 400),
    "contractive": (
        AutoencoderModel(variant="contractive", layers="dense", n_latent=64, width=1024, depth=1),
        1000,
    ),
    "vae": (VaeModel(n_latent=32), 400),
}  # fmt: skip
QUICK_KINDS = ("dense 784-64-784", "contractive")
COMPRESSED_STEPS = 300
STRANGE = AutoencoderModel(variant="denoising", layers="dense", n_latent=32)
STRANGE_STEPS = 400
PYTHAE = {"AE": 16, "VAE": 16}
PEER_EPOCHS = 10
# What pythae takes beside the packages that our own environment has.
PEER_PACKAGES = ("pythae==0.1.2", "imageio==2.37.0", "cloudpickle==3.1.1", "tqdm==4.67.1")


@dataclass(frozen=True)
class Images:
    """Training and test part of a set."""

    X: NDArray[np.uint8]
    y: NDArray[np.int64]
    test_X: NDArray[np.uint8]
    test_y: NDArray[np.int64]
    classes: tuple[str, ...]

    @classmethod
    def of(cls, train: str, test: str) -> Images:
        """Read both files."""
        X, labels = read(train)
        test_X, test_labels = read(test)
        classes = tuple(sorted(set(labels)))
        y, test_y = (np.array([classes.index(n) for n in ls]) for ls in (labels, test_labels))
        return cls(X, y, test_X, test_y, classes)

    @property
    def spec(self) -> ImageSpec:
        """Shape and classes."""
        counts = np.bincount(self.y, minlength=len(self.classes))
        return ImageSpec(28, 1, self.classes, tuple(counts.tolist()))


def fitted(params: Any, data: ImageData, spec: ImageSpec, steps: int) -> tuple[Any, float]:
    """Return a trained model and its CPU seconds."""
    model: Any = (Vae if isinstance(params, VaeModel) else Autoencoder).build(params, spec)
    start = time.process_time()
    model.fit(data, FitContext(seed=0, steps=steps, batch_size=BATCH, threads=1))
    return model, time.process_time() - start


def step_speed(params: Any, images: Images) -> float:
    """Return images per CPU second of training steps alone, the median of three runs."""
    spec, data, n = images.spec, ImageData(images.X, images.y), 120
    found = []
    for _ in range(3):
        model = Autoencoder.build(params, spec)
        context = FitContext(seed=0, steps=n, batch_size=BATCH, threads=1)
        phase, device = model._phase(data, context)
        start = time.process_time()
        model.train(phase, device, context)
        found.append(n * BATCH / (time.process_time() - start))
    return statistics.median(found)


def error(images: NDArray[Any], others: NDArray[Any]) -> float:
    """Return the squared error per pixel of uint8 images, black to white being 1."""
    return float(np.mean((images / 255.0 - others / 255.0) ** 2))


def row(
    metric: str, unit: str, ours: float, peer: float, peer_name: str, goal: float, *,
    lower: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Return one line of the JSON, and print it."""
    met = ours <= goal if lower else ours >= goal
    print(
        f"{metric:52} {ours:10.4f} {unit:10} {peer_name} {peer:.4f}, goal {goal:.4f} "
        f"{'met' if met else 'NOT MET'}",
        flush=True,
    )
    return {
        "metric": metric, "unit": unit, "ours": ours, "peer": peer, "peer_name": peer_name,
        "ratio": ours / peer if peer else None,
        "goal": f"{'at most' if lower else 'at least'} {goal:.4g}", "met": bool(met),
    }  # fmt: skip


# --- each kind ------------------------------------------------------------------------------------


def kinds(images: Images, names: tuple[str, ...], models: dict[str, Any]) -> list[dict[str, Any]]:
    """Train each kind, keep it in ``models``; return errors and speeds."""
    data, rows = ImageData(images.X, images.y), []
    mean = error(np.round(images.X.mean(axis=0)), images.test_X)
    print(f"mean image: {mean:.4f}")
    pca = principal(images)
    for name in names:
        params, steps = KINDS[name]
        model, seconds = fitted(params, data, images.spec, steps)
        models[name] = model
        mse = error(model.reconstruct(images.test_X), images.test_X)
        speed = steps * BATCH / seconds
        print(
            f"{name}: {steps} steps, {seconds:.0f} CPU s, {speed:,.0f} img/s, code {model.n_latent}"
        )
        size = model.n_latent
        goal = 0.0059 if name.startswith("dense") else mean / (2 if name == "vae" else 5)
        rows.append(
            row(
                f"{name}: test MSE, {steps} steps",
                "MSE",
                mse,
                pca[size],
                f"PCA {size}",
                goal,
                lower=True,
            )
        )
        rows[-1]["images_per_s"] = speed
    return rows


def principal(images: Images) -> dict[int, float]:
    """Return PCA's error by its number of components."""
    flat, test = (X.reshape(len(X), -1) / 255.0 for X in (images.X, images.test_X))
    pca = PCA(64, random_state=0).fit(flat)
    found = {}
    for n in (16, 32, 64):
        axes = pca.components_[:n]
        back = (test - pca.mean_) @ axes.T @ axes + pca.mean_
        found[n] = float(np.mean((back - test) ** 2))
    return found


def compression(images: Images, steps: int) -> list[dict[str, Any]]:
    """Return the error at three sizes of the code, beside PCA's."""
    pca, rows = principal(images), []
    for n in (16, 32, 64):
        params = AutoencoderModel(variant="conv", n_latent=n)
        model, _ = fitted(params, ImageData(images.X, images.y), images.spec, steps)
        mse = error(model.reconstruct(images.test_X), images.test_X)
        what = f"conv, {n} numbers, 1 : {784 / (4 * n):.1f} in bytes, {steps} steps: test MSE"
        rows.append(row(what, "MSE", mse, pca[n], f"PCA {n}", pca[n], lower=True))
    return rows


def denoising(images: Images, model: Any) -> list[dict[str, Any]]:
    """Return the gain in PSNR, of stored images and against the noise before they were stored."""
    clean = images.test_X / 255.0
    noise = SIGMA * np.random.default_rng(0).normal(size=clean.shape)
    noisy = np.round(np.clip(clean + noise, 0, 1) * 255).astype(np.uint8)

    def psnr(difference: NDArray[Any]) -> float:
        return float(-10 * np.log10(np.mean(difference**2)))

    after = psnr(model.denoise(noisy, SIGMA) / 255.0 - clean)
    stored, before = psnr(noisy / 255.0 - clean), psnr(noise)
    return [
        row("denoising: PSNR gained, noise of 0.5", "dB", after - before, before, "noise", 12.0),
        row("denoising: PSNR gained, image stored as uint8", "dB", after - stored, stored, "image", 12.0),
    ]  # fmt: skip


def anomalies(images: Images, digits: range) -> list[dict[str, Any]]:
    """Return the AUROC where one digit is learnt, beside PCA's error and the nearest record."""
    found: dict[str, list[float]] = {"ours": [], "PCA 32": [], "nearest record": []}
    test = images.test_X.reshape(len(images.test_X), -1) / 255.0
    for k in digits:
        own, truth = images.X[images.y == k], images.test_y != k
        spec = ImageSpec(28, 1, (images.classes[k],), (len(own),))
        data = ImageData(own, np.zeros(len(own), dtype=np.int64))
        model, _ = fitted(STRANGE, data, spec, STRANGE_STEPS)
        flat = own.reshape(len(own), -1) / 255.0
        pca = PCA(32, random_state=0).fit(flat)
        left = ((pca.inverse_transform(pca.transform(test)) - test) ** 2).sum(axis=1)
        near = KNeighborsClassifier(1).fit(flat, np.zeros(len(flat))).kneighbors(test)[0][:, 0]
        scores = {
            "ours": model.anomaly_scores(images.test_X),
            "PCA 32": left,
            "nearest record": near,
        }
        for who, values in scores.items():
            found[who].append(float(roc_auc_score(truth, values)))
    for who, values in found.items():
        print(
            f"  {who:16}" + " ".join(f"{v:.3f}" for v in values) + f"   mean {np.mean(values):.4f}"
        )
    ours, peer = float(np.mean(found["ours"])), float(np.mean(found["PCA 32"]))
    return [row("anomalies, one digit learnt: mean AUROC", "AUROC", ours, peer, "PCA 32", 0.95)]


# --- pythae ---------------------------------------------------------------------------------------


def peer_python(cache: Path) -> str:
    """Return the interpreter of the peer's environment, made where it is not there; empty where that fails.

    PyTorch and numpy are those of this environment, so that both sides compute with the same ones.
    """
    name = hashlib.sha256(repr((PEER_PACKAGES, sys.version_info[:2])).encode()).hexdigest()[:12]
    home = cache / f"autoencoder-peers-{name}"
    python = home / "bin" / "python"
    if (home / "whole").exists():
        return str(python)
    print(f"making the peer's environment in {home}", flush=True)
    pip = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    shared = Path(torch.__file__).resolve().parent.parent
    for step in (
        [sys.executable, "-m", "venv", "--clear", str(home)],
        [*pip, *PEER_PACKAGES],
    ):
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip() or "no reason given").splitlines()[-1]
            print(f"not measured: pythae; its environment cannot be made: {said}")
            return ""
    packages = next((home / "lib").glob("python*/site-packages"))
    (packages / "shared.pth").write_text(f"{shared}\n")
    (home / "whole").touch()
    return str(python)


def peers(images: Images, python: str, epochs: int) -> list[dict[str, Any]]:
    """Return pythae's AE and VAE, and ours at the AE's architecture."""
    rows = []
    pca = principal(images)
    same = AutoencoderModel(
        variant="denoising", layers="dense", noise=1e-6, n_latent=16, width=512, depth=1
    )
    steps = epochs * (len(images.X) // BATCH)
    ours, _ = fitted(same, ImageData(images.X, images.y), images.spec, steps)
    n_weights = sum(p.numel() for p in ours.network.parameters())
    vae, _ = fitted(VaeModel(n_latent=16), ImageData(images.X, images.y), images.spec, steps // 3)
    mine = {
        "AE": error(ours.reconstruct(images.test_X), images.test_X),
        "VAE": error(vae.reconstruct(images.test_X), images.test_X),
    }
    for name, n_latent in PYTHAE.items():
        with tempfile.TemporaryDirectory() as folder:
            for part, X in (("train", images.X), ("test", images.test_X)):
                pixels = (X / 255.0).astype(np.float32).transpose(0, 3, 1, 2)
                np.save(Path(folder) / f"{part}.npy", pixels)
            task = {"folder": folder, "model": name, "n_latent": n_latent, "epochs": epochs,
                    "batch_size": BATCH}  # fmt: skip
            (Path(folder) / "task.json").write_text(json.dumps(task))
            script = Path(__file__).with_name("_autoencoder_peers.py")
            done = subprocess.run(
                [python, str(script), f"{folder}/task.json"], capture_output=True, text=True
            )
            if done.returncode:
                print(
                    f"not measured: pythae {name}: {(done.stderr.strip() or '?').splitlines()[-1]}"
                )
                continue
            cost = json.loads((Path(folder) / "cost.json").read_text())
            back = np.load(Path(folder) / "back.npy").transpose(0, 2, 3, 1).reshape(-1, 28, 28, 1)
        mse = float(np.mean((back - images.test_X / 255.0) ** 2))
        took = steps if name == "AE" else steps // 3
        print(f"pythae {name}: {cost['n_weights']:,} weights, PCA {n_latent}: {pca[n_latent]:.4f}")
        what = f"{name}, 16 numbers, ours after {took} steps and pythae's {steps}: test MSE"
        rows.append(row(what, "MSE", mine[name], mse, "pythae", mse, lower=True))
        if name == "AE":
            speed = step_speed(same, images)
            what = f"784-512-16-512-784 ({n_weights:,} weights): training"
            rows.append(
                row(what, "img/CPU s", speed, cost["images_per_s"], "pythae", cost["images_per_s"])
            )
    return rows


# --- the picture ----------------------------------------------------------------------------------


def sheet(path: Path, images: Images, models: dict[str, Any]) -> None:
    """Write two test images of each digit, and each kind's below."""
    first = np.concatenate([np.flatnonzero(images.test_y == k)[:2] for k in range(10)])
    shown = [images.test_X[first], *(m.reconstruct(images.test_X[first]) for m in models.values())]
    tiles = np.concatenate([np.concatenate(list(X[..., 0]), axis=1) for X in shown])
    Image.fromarray(tiles).resize((tiles.shape[1] * 2, tiles.shape[0] * 2)).save(path)
    print(f"{path}: records, {', '.join(models)}")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two kinds, one digit, no peers")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--sheet", type=Path, help="write a picture of every kind here (PNG)")
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "prefect-augment-benchmarks",
        help="where the peer's environment is kept",
    )  # fmt: skip
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = Images.of("mnist10k_train", "mnist10k_test")
    models: dict[str, Any] = {}
    rows = kinds(images, QUICK_KINDS if args.quick else tuple(KINDS), models)
    if args.sheet:
        sheet(args.sheet, images, models)

    def part(name: str, work: Callable[[], list[dict[str, Any]]]) -> None:
        print(f"\n{name}")
        rows.extend(work())
        if args.json:  # as far as it has come
            args.json.write_text(json.dumps(rows, indent=1))

    part("anomalies", lambda: anomalies(images, range(1) if args.quick else range(10)))
    if not args.quick:
        part("denoising", lambda: denoising(images, models["denoising"]))
        part("compression", lambda: compression(images, COMPRESSED_STEPS))
        if python := peer_python(args.cache):
            part("pythae", lambda: peers(images, python, PEER_EPOCHS))


if __name__ == "__main__":
    main()
