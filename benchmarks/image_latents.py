"""Latent spaces of images, and attributes asked of them: `python benchmarks/image_latents.py [--quick] [--json FILE]`.

1. Embeddings. On mnist10k and fashion_lt, models at their defaults, and two more variants of the
   autoencoder, learn four fifths of the training file; 15 nearest neighbours, logistic
   regression and k-means learn their vectors of these records, and are scored on the test file
   beside PCA of the same size. Whether vectors are scaled first is chosen on the last fifth (validation),
   for each of them alike.
2. Interpolation. A classifier, trained on the real training images, looks at strips between test images
   of mnist10k by the same models: whether every image of a strip within a class is of that class, and
   whether the class changes once between two, from the first one's to the last one's. Strips between
   the most typical training images of two classes, which `interpolate` takes for a class, stand beside.
3. Shapes whose form, colour, size and position are known (32 px, RGB, drawn from a seed; `_shapes.py`):
   a. attributes. `form` is the label, and the others are what `balance.by` names, so that every
      combination (96) is a stratum; of each as many pictures are asked, and an oracle that reads pixels
      says which of the attributes are there. Its own accuracy is on pictures of another seed.
   b. factors. A VAE with 10 numbers, for beta 1 and 4, learns pictures without any label; MIG and
      DCI of its vectors of pictures that nobody has learnt (`_disentanglement.py`).

Models learn for as many steps as about an hour of one thread allows in all; the steps were not
chosen, and what else was tried, was tried on validation records, and on shapes of another seed. --json FILE
writes the goals, --sheet FILE a picture of the shapes asked for, a row per model, and --parts does some of
it. --quick shows that everything runs: its models have learnt next to nothing. The images are read from
../shared/data/images beside the repository.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from _goals import Goal, print_goals, print_heading, print_row
from _image_latents import Ends, ImageParts, classifier, strips_of
from _latent_scores import MEASURES, score_vectors
from _shape_scores import Wanted, disentangled, oracle_accuracy
from _shapes import ATTRIBUTES, FACTORS, with_factors
from PIL import Image
from sklearn.decomposition import PCA

from prefect_augment.params import AutoencoderModel, DiffusionModel, ModelParams, VaeModel

SETS = {
    "mnist10k": ("mnist10k_train", "mnist10k_test"),
    "fashion_lt": ("fashion_lt", "fashion_test"),
}
STRIPS_OF = ("mnist10k",)
COMPARED = ("k-NN accuracy", "logistic accuracy", "clusters' NMI")
KEPT, ONCE, PRESENT = 0.90, 0.80, 0.95
N_STEPS = 9  # of a strip: the command's default
N_FACTORS = 10  # numbers of a vector, as in the paper of MIG
BETAS = (1.0, 4.0)


@dataclass(frozen=True)
class Effort:
    """How much is done.

    Attributes
    ----------
    most : int
        Records of a file; 0 takes all.
    embedding : mapping of str to (params, steps)
    classifier_steps : int
    per_class : int
        Strips within a class.
    shapes, each : int
        Pictures to learn, and asked for of a combination.
    asked : mapping of str to (params, steps)
    factors, factor_steps : int
        Pictures to learn factors from; a quarter as many are for the test.
    """

    most: int
    embedding: dict[str, tuple[ModelParams, int]]
    classifier_steps: int
    per_class: int
    shapes: int
    each: int
    asked: dict[str, tuple[ModelParams, int]]
    factors: int
    factor_steps: int


FULL = Effort(
    most=0,
    embedding={
        "autoencoder": (AutoencoderModel(), 700),
        "conv": (AutoencoderModel(variant="conv", n_latent=64), 700),
        "contractive": (
            AutoencoderModel(
                variant="contractive", layers="dense", n_latent=64, width=1024, depth=1
            ),
            2000,
        ),
        "vae": (VaeModel(), 800),
    },
    classifier_steps=250,
    per_class=20,
    shapes=4800,
    each=10,
    asked={"vae": (VaeModel(), 1200), "diffusion": (DiffusionModel(), 3000)},
    factors=4000,
    factor_steps=500,
)
QUICK = Effort(
    most=1200,
    embedding={"vae": (VaeModel(), 40)},
    classifier_steps=30,
    per_class=4,
    shapes=960,
    each=1,
    asked={"vae": (VaeModel(), 40)},
    factors=400,
    factor_steps=40,
)


# --- embeddings and strips ------------------------------------------------------------------------


def of_real_images(name: str, effort: Effort, seed: int) -> list[Goal]:
    """Print what embeddings of a set hold, and its strips; return the goals."""
    parts = ImageParts.of(*SETS[name], seed=seed, most=effort.most)
    models: dict[str, Any] = {}
    found: dict[str, dict[str, float]] = {}
    print(
        f"\n### {name}: embeddings ({len(parts.training):,} training, {len(parts.test):,} test records)\n"
    )
    print_heading(["vectors", "numbers", *MEASURES, "fit CPU s"])
    for kind, (params, steps) in effort.embedding.items():
        models[kind], seconds = parts.train(params, steps=steps, seed=seed)
        size = models[kind].n_latent
        if (peer := f"PCA {size}") not in found:
            pca = PCA(size, random_state=seed).fit(parts.flat[parts.training])
            found[peer] = score_vectors(pca.transform(parts.flat), parts, seed)
            _compared(peer, size, found[peer], "")
        found[kind] = score_vectors(
            models[kind].embed(parts.images).astype(np.float64), parts, seed
        )
        _compared(f"{kind}, {steps} steps", size, found[kind], f"{seconds:.0f}")
    goals = [
        _at_least(f"{name}, {kind}: {measure}", found[kind][measure], found[peer][measure], peer)
        for kind, model in models.items()
        for peer in [f"PCA {model.n_latent}"]
        for measure in COMPARED
    ]
    return goals + (strips(name, parts, models, effort, seed) if name in STRIPS_OF else [])


def _compared(name: str, size: int, found: dict[str, float], seconds: str) -> None:
    print_row([name, str(size), *(f"{found[m]:.4f}" for m in MEASURES), seconds])


def _at_least(metric: str, ours: float, peer: float, peer_name: str) -> Goal:
    return Goal(metric, "share", ours, peer, peer_name, f"at least {peer_name}", ours >= peer)


def strips(
    name: str, parts: ImageParts, models: dict[str, Any], effort: Effort, seed: int
) -> list[Goal]:
    """Print what a classifier sees along the strips of each model; return the goals."""
    classify, accuracy = classifier(parts, steps=effort.classifier_steps, seed=seed)
    ends = Ends.drawn(parts, parts.test, per_class=effort.per_class, seed=seed)
    print(
        f"\n### {name}: strips of {N_STEPS} images, {len(ends.within)} within a class and "
        f"{len(ends.between)} between two (the classifier is right on {accuracy:.1%} of test images)\n"
    )
    print_heading(
        ["model", "class kept", "both ends right", "changes once", "both ends right",
         "typical records", "straight", "straight, typical records"]
    )  # fmt: skip
    goals = []
    for kind, model in models.items():
        s = strips_of(model, parts, ends, classify, n_steps=N_STEPS)
        shares = (
            s.kept, s.ends_within, s.once, s.ends_between, s.medoids, s.once_straight, s.medoids_straight,
        )  # fmt: skip
        print_row([kind, *(f"{share:.3f}" for share in shares)])
        goals += [
            _share(f"{name}, {kind}: strips within a class that keep it", s.kept, KEPT),
            _share(f"{name}, {kind}: strips between two that change once", s.once, ONCE),
            _share(f"{name}, {kind}: the same between typical records", s.medoids, ONCE),
        ]
    return goals


def _share(metric: str, ours: float, least: float) -> Goal:
    return Goal(metric, "share", ours, math.nan, "", f"at least {least:g}", ours >= least)


# --- shapes ---------------------------------------------------------------------------------------


def asked_for(effort: Effort, seed: int, sheet: Path | None) -> list[Goal]:
    """Print which attributes that were asked for are there; return the goals."""
    wanted = Wanted.of(effort.shapes, seed)
    n = len(wanted.codes)
    accuracy = oracle_accuracy(960, seed + 1000)
    print(
        f"\n### shapes: {effort.each} of each of {n} combinations asked for, {effort.shapes:,} learnt "
        f"(the oracle reads {accuracy:.2%} of other real ones right)\n"
    )
    print_heading(["model", "all attributes", *ATTRIBUTES, "fit CPU s", "draw CPU s"])
    goals, rows = [], []
    for kind, (params, steps) in effort.asked.items():
        found = wanted.asked_of(params, steps=steps, each=effort.each, seed=seed)
        shares = [f"{share:.3f}" for share in (found.every, *found.each)]
        print_row(
            [
                f"{kind}, {steps} steps",
                *shares,
                f"{found.fit_seconds:.0f}",
                f"{found.draw_seconds:.0f}",
            ]
        )
        goals.append(_share(f"shapes, {kind}: all attributes asked for", found.every, PRESENT))
        rows.append(np.concatenate(list(found.images[:: max(1, n // 24)]), axis=1))
    if sheet is not None:
        Image.fromarray(np.concatenate(rows)).save(sheet)
        print(f"\n{sheet}: {', '.join(effort.asked)}")
    return goals


def factors(effort: Effort, seed: int) -> list[Goal]:
    """Print MIG and DCI by beta; return as goals that the larger one disentangles more."""
    n_test = effort.factors // 4
    shapes = with_factors(effort.factors + n_test, seed)
    print(f"\n### shapes: factors in {N_FACTORS} numbers of a VAE, {effort.factor_steps} steps\n")
    print_heading(
        ["beta", "MIG", *(f"gap of {name}" for name in FACTORS), "disentanglement", "completeness",
         "informativeness", "numbers in use", "MSE"]
    )  # fmt: skip
    scores: dict[float, dict[str, float]] = {}
    for beta in BETAS:
        params = VaeModel(n_latent=N_FACTORS, beta=beta)
        d = disentangled(params, shapes, n_test=n_test, steps=effort.factor_steps, seed=seed)
        three = (d.dci.disentanglement, d.dci.completeness, d.dci.informativeness)
        cells = [f"{value:.3f}" for value in (d.mig, *d.gaps, *three)]
        print_row([f"{beta:g}", *cells, str(d.n_informative), f"{d.error:.5f}"])
        scores[beta] = {
            "MIG": d.mig,
            "DCI's disentanglement": three[0],
            "DCI's completeness": three[1],
        }
    low, high = BETAS
    return [
        Goal(f"shapes, vae, beta {high:g}: {name}", "share", ours, scores[low][name],
             f"beta {low:g}", f"above beta {low:g}", ours > scores[low][name])
        for name, ours in scores[high].items()
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one model, one set, few steps")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--sheet", type=Path, help="write a picture of the shapes here (PNG)")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which of them"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    effort = QUICK if args.quick else FULL
    goals: list[Goal] = []
    for part in args.parts:
        if part in SETS:
            if not args.quick or part in STRIPS_OF:
                goals += of_real_images(part, effort, args.seed)
        elif part == "attributes":
            goals += asked_for(effort, args.seed, args.sheet)
        else:
            goals += factors(effort, args.seed)
        if args.json:  # as far as it has come
            args.json.write_text(json.dumps([goal.row() for goal in goals], indent=1))
    print_goals(goals)


PARTS = (*SETS, "attributes", "factors")

if __name__ == "__main__":
    main()
