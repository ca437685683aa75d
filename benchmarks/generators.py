"""Every image generator in the same CPU time: `python benchmarks/generators.py [--quick] [--json FILE]`.

On fashion_lt (14,886 images, 6000 to 60 a class): each generator is trained for equal CPU seconds of one
thread (--seconds, 480 by default), by three seeds (--seeds). Of 100 images a class:

- Fréchet distance to held-out images over the four rarest classes, beside that of other held-out real
  images, label fidelity, density, coverage, near copies (1 % are expected of real images). The feature
  space is the last layer of a classifier trained on half of the test file, which no generator sees;
  the other half is split into what is compared with and what stands for a perfect generator.
- Downstream: a classifier of equal steps on classes filled to the majority beside bare resampling, and
  the best recipe found (only classes below 1,000, at most one synthetic image per real one, real images
  alone in the last 40 % of the steps, classic augmentation of half the images) beside resampling with
  classic augmentation of half the images; differences in balanced accuracy with 95 % intervals over
  records and seeds.

Kinds that the package does not make of images are left out, which is said. Latent SMOTE and the class
Gaussian draw from the codes of the same autoencoder, which is trained once a seed for both.

All of it takes hours: with --keep FOLDER what a generator drew, and what each
classifier was right on, is put there and not made again, so that it can be done in parts, several kinds
at the same time; use another folder where the code has changed.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from _image_scores import Oracle, Reference, coded, cpu_seconds, printed, read
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file

from prefect_augment.errors import ParameterError
from prefect_augment.evaluation.classifiers.base import balanced_weights
from prefect_augment.evaluation.classifiers.convnet import fit_image_classifier
from prefect_augment.evaluation.metrics.bootstrap import paired_bootstrap
from prefect_augment.genmodels.base import FitContext, ImageData, ImageSpec
from prefect_augment.nn import loop
from prefect_augment.params import ModelParams
from prefect_augment.registry import load_model_class, resolve_model

KINDS: dict[str, dict[str, Any]] = {
    "diffusion": {"kind": "diffusion"},
    "gan": {"kind": "gan"},
    "vae": {"kind": "vae"},
    "latent SMOTE": {"kind": "autoencoder", "drawn_by": "neighbours"},
    "class Gaussian": {"kind": "autoencoder", "drawn_by": "density"},
}
N_JUDGED = 100  # images of a class
MAX_DISTINCT = 1_000  # synthetic images of a class; drawn again and again where more are wanted
TOP_UP = 1_000


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    parser.add_argument("--seconds", type=float, default=480.0, help="CPU seconds of training each")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument(
        "--keep", type=Path, help="put what is finished here, and use what is there"
    )
    args = parser.parse_args()
    if args.quick:
        args.seconds, args.seeds = 5.0, 1
    torch.set_num_threads(1)
    # A quick run's classifiers are others, and so is what was drawn after other seconds.
    kept = args.keep and args.keep / f"{args.seconds:g}-seconds{'-quick' * args.quick}"
    evaluator = Bench(quick=args.quick, kept=Kept(kept))
    rows: list[dict[str, Any]] = [evaluator.of_real()]
    drawn: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for name in args.kinds:
        for seed in range(args.seeds):
            made = evaluator.kept.generator(
                name, seed, partial(evaluator.generator, name, args.seconds, seed)
            )
            if made is None:
                break
            rows.append(made[0])
            drawn.setdefault(name, []).append(made[1])
    printed(rows)
    differences = evaluator.downstream(drawn, args.seeds)
    printed(differences)
    if args.json:
        args.json.write_text(json.dumps({"generators": rows, "downstream": differences}, indent=1))


Made = tuple[dict[str, Any], tuple[np.ndarray, np.ndarray]]  # scores; images and their classes


class Kept:
    """What was finished before, in a folder; without one, everything is made."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder:
            folder.mkdir(parents=True, exist_ok=True)

    def oracle(self, n_classes: int, train: Callable[[int], Oracle]) -> Oracle:
        """Return the classifier that everything is measured by."""
        path = self.folder and self.folder / "oracle.safetensors"
        if path is None or not path.exists():
            oracle = train(n_classes)
            if path is not None:
                save_file({k: v.contiguous() for k, v in oracle.state_dict().items()}, path)
            return oracle
        oracle = Oracle(n_classes).to(memory_format=torch.channels_last)
        oracle.load_state_dict(load_file(path))
        return oracle.eval()

    def generator(self, name: str, seed: int, make: Callable[[], Made | None]) -> Made | None:
        """Return what a generator drew."""
        path = self._path(name, seed)
        if path is None or not path.exists():
            made = make()
            if path is not None and made is not None:
                row, (images, y) = made
                self._write(path, row=np.array(json.dumps(row)), images=images, y=y)
            return made
        with np.load(path, allow_pickle=False) as file:
            return json.loads(str(file["row"])), (file["images"], file["y"])

    def hits(self, strategy: str, seed: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Return what a classifier was right on."""
        path = self._path(f"hits {strategy}", seed)
        if path is None or not path.exists():
            found = make()
            if path is not None:
                self._write(path, hits=found)
            return found
        with np.load(path, allow_pickle=False) as file:
            hits: np.ndarray = file["hits"]
            return hits

    def _path(self, name: str, seed: int) -> Path | None:
        return self.folder and self.folder / f"{name.replace(' ', '_')}-{seed}.npz"

    def _write(self, path: Path, **arrays: np.ndarray) -> None:
        unfinished = path.with_suffix(".unfinished.npz")
        np.savez_compressed(unfinished, **arrays)
        unfinished.replace(path)


class Bench:
    """The data, the oracle, and what is measured."""

    def __init__(self, *, quick: bool, kept: Kept) -> None:
        self.quick, self.kept = quick, kept
        self.autoencoders: dict[int, tuple[Any, int]] = {}  # by seed: trained, and its steps
        self.images, labels = read("fashion_lt")
        self.classes = sorted(set(labels))
        self.y = coded(labels, self.classes)
        self.counts = np.bincount(self.y)
        test, test_labels = read("fashion_test")
        test_y = coded(test_labels, self.classes)
        order = np.random.default_rng(0).permutation(len(test))
        half, other = np.array_split(order, 2)
        self.oracle = kept.oracle(
            len(self.classes),
            lambda n: Oracle.trained(test[half], test_y[half], n, 60 if quick else 1_500),
        )
        self.test, self.test_y = test[other], test_y[other]
        features, self.said = self.oracle.see(self.test)
        a, b = np.array_split(np.arange(len(other)), 2)
        self.reference = Reference(
            train=(self.oracle.see(self.images)[0], self.y),
            held_out=(features[a], self.test_y[a]),
            other=(features[b], self.test_y[b]),
            tail=np.argsort(self.counts)[:4],
        )
        print(f"oracle: {np.mean(self.said == self.test_y):.3f} accuracy on the other half")

    def of_real(self) -> dict[str, Any]:
        """Score real images that nobody saw, as if they had been made."""
        features, y = self.reference.other
        said = self.said[len(self.reference.held_out[1]) :]
        # As many of a class as of generators: the distance grows as images get fewer.
        rows = np.concatenate([np.flatnonzero(y == k)[:N_JUDGED] for k in np.unique(y)])
        found = self.reference.scores(features[rows], y[rows], said[rows])
        return {"generator": "real, held out", "seed": 0, "steps": 0, "draws_per_s": 0.0, **found}

    def generator(self, name: str, seconds: float, seed: int) -> Made | None:
        """Train a generator, score what it draws, and return that for the classifiers too."""
        try:
            params: Any = TypeAdapter(ModelParams).validate_python(KINDS[name])
            resolve_model(params, modality="image")
        except (ValidationError, ParameterError):
            print(f"{name}: left out, this version does not make it of images")
            return None
        if params.kind == "autoencoder" and seed in self.autoencoders:
            model, steps = self._drawn_otherwise(params, seed)
            print(f"{name}, seed {seed}: the autoencoder of {steps} steps, trained before")
        else:
            model, steps = self._trained(name, params, seconds, seed)
        if params.kind == "autoencoder":
            self.autoencoders[seed] = (model, steps)
        asked = np.repeat(np.arange(len(self.classes)), N_JUDGED)
        start = time.process_time()
        features, said = self.oracle.see(model.sample(asked, seeds=np.arange(len(asked))))
        rate = len(asked) / (time.process_time() - start)
        found = self.reference.scores(features, asked, said)
        most = 20 if self.quick else MAX_DISTINCT
        wanted = np.minimum(self.counts.max() - self.counts, most)
        y = np.repeat(np.arange(len(self.classes)), wanted)
        images = model.sample(y, seeds=10_000 + np.arange(len(y)))
        row = {"generator": name, "seed": seed, "steps": steps, "draws_per_s": rate, **found}
        return row, (images, y)

    def _trained(self, name: str, params: Any, seconds: float, seed: int) -> tuple[Any, int]:
        spec = ImageSpec(28, 1, tuple(self.classes), tuple(self.counts.tolist()))
        model = load_model_class(params, modality="image").build(params, spec)
        data = ImageData(self.images, self.y)
        context = FitContext(seed=seed, steps=1_000_000, device="cpu", threads=1)
        steps = max(2, int(seconds / self._step_seconds(model, data, context)))
        took = cpu_seconds(
            lambda: model.fit(data, FitContext(seed=seed, steps=steps, device="cpu", threads=1))
        )
        print(f"{name}, seed {seed}: {steps} steps in {took:.0f} CPU s", flush=True)
        return model, steps

    def _drawn_otherwise(self, params: Any, seed: int) -> tuple[Any, int]:
        trained, steps = self.autoencoders[seed]
        model = copy.copy(trained)
        model.params = params
        context = FitContext(seed=seed, steps=1, device="cpu", threads=1)
        phase, _ = model._phase(ImageData(self.images, self.y), context)
        model.after_training(model.network, phase.records, seed)
        return model, steps

    def _step_seconds(self, model: Any, data: ImageData, context: FitContext) -> float:
        phase, device = model._phase(data, context)
        with device.settings():
            run = loop._Run(phase, context, device)
            run.take_step()
            return cpu_seconds(lambda: [run.take_step() for _ in range(5)]) / 5

    def downstream(self, drawn: dict[str, list[tuple[Any, Any]]], n_seeds: int) -> list[Any]:
        """Train classifiers with and without what was drawn, and compare them."""
        hits: dict[str, list[np.ndarray]] = {}
        for seed in range(n_seeds):
            even = balanced_weights(self.y)
            strategies: dict[str, dict[str, Any]] = {
                "resampled": {"weights": even},
                "resampled + classic": {"weights": even, "augment_prob": 0.5},
            }
            for name, made in drawn.items():
                strategies[f"{name}, filled"] = self._filled(*made[seed])
                strategies[f"{name}, recipe"] = self._recipe(*made[seed])
            for strategy, given in strategies.items():
                found = self.kept.hits(strategy, seed, partial(self._hits, seed, given))
                hits.setdefault(strategy, []).append(found)
                print(
                    f"{strategy}, seed {seed}: {hits[strategy][-1].mean():.4f} accuracy", flush=True
                )
        compared = np.ones(len(self.classes), dtype=bool)
        boot = paired_bootstrap(
            self.test_y,
            {strategy: np.stack(found) for strategy, found in hits.items()},
            compared=compared,
        )
        rows: list[Any] = []
        for strategy in hits:
            against = "resampled" if strategy.endswith("filled") else "resampled + classic"
            gap = boot.difference(strategy, against)
            score = boot.balanced_accuracy(strategy).estimate
            rows.append({"strategy": strategy, "balanced": score, "against": against,
                         "gain": gap.estimate, "low": gap.low, "high": gap.high})  # fmt: skip
        return rows

    def _filled(self, images: np.ndarray, y: np.ndarray) -> dict[str, Any]:
        """Every class as large as the largest, by as many distinct images as there are."""
        missing = (self.counts.max() - self.counts) / np.maximum(np.bincount(y, minlength=10), 1)
        weights = np.concatenate([np.ones(len(self.y)), missing[y]])
        return {"extra": (images, y), "weights": weights}

    def _recipe(self, images: np.ndarray, y: np.ndarray) -> dict[str, Any]:
        """At most one synthetic image per real one, below a thousand, and real ones at the end."""
        caps = np.where(self.counts < TOP_UP, np.minimum(self.counts, TOP_UP - self.counts), 0)
        rows = np.concatenate([np.flatnonzero(y == k)[:cap] for k, cap in enumerate(caps)])
        images, y = images[rows], y[rows]
        return {
            "extra": (images, y),
            "weights": balanced_weights(np.concatenate([self.y, y])),
            "augment_prob": 0.5,
            "synthetic": np.arange(len(self.y) + len(y)) >= len(self.y),
            "real_only_finish": 0.6,
        }

    def _hits(self, seed: int, given: dict[str, Any]) -> np.ndarray:
        images, y = given.pop("extra", (self.images[:0], self.y[:0]))
        estimator = fit_image_classifier(
            np.concatenate([self.images, images]),
            np.concatenate([self.y, y]),
            n_classes=len(self.classes),
            steps=10 if self.quick else 800,
            seed=seed,
            **given,
        )
        said = estimator.predict_proba(self.test).argmax(axis=1)
        return (said == self.test_y).astype(np.float64)


if __name__ == "__main__":
    main()
