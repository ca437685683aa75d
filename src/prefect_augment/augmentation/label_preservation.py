"""Check of a policy: whether a classifier of real images still sees the class after each operation.

The probe learns the training images, half of them mildly changed (turned, scaled, shifted, lit), so that unusual images
alone do not fool it. Of the validation images that it classifies correctly, those that it takes for another class after
an operation count as flipped. Needs torch.
"""

import base64
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import stats

from prefect_augment.array_types import Images, Int
from prefect_augment.augmentation.image_pipeline import Operation
from prefect_augment.augmentation.image_policy import ImagePolicy, record_seed
from prefect_augment.encoding.arrays import training_table
from prefect_augment.encoding.images import encode_column
from prefect_augment.encoding.labels import label_text
from prefect_augment.errors import LabelDamageError, ParameterError
from prefect_augment.figures.image_grid import N_COLUMNS, rows_sheet
from prefect_augment.nn.machine import classifier_size
from prefect_augment.params import Balance, Classic
from prefect_augment.params.keys import step_key
from prefect_augment.schema import DatasetInfo, DatasetRef, OperationCheck, PolicyCheck
from prefect_augment.shards.staged import load_info
from prefect_augment.storage import Stage, Store
from prefect_augment.text import markdown_text

Change = Callable[[Images, Int], Images]  # images and a seed for each


@dataclass(frozen=True)
class Flips:
    """Images of one class that the probe takes for another class after a transform."""

    n: int  # images of the class that the probe classifies correctly
    n_flipped: int
    to: int  # the most frequent other class; -1 where there is none

    @property
    def rate(self) -> float:
        """Share of flipped images, 0 where there is no image."""
        return self.n_flipped / self.n if self.n else 0.0

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval, one-sided since only a high rate matters (Clopper & Pearson 1934)."""
        if not self.n_flipped:
            return 0.0
        return float(stats.beta.ppf(0.05, self.n_flipped, self.n - self.n_flipped + 1))


def label_flips(
    training: tuple[Images, Int],
    validation: tuple[Images, Int],
    changes: Mapping[str, Change],
    *,
    n_classes: int,
    steps: int,
    seed: int,
) -> tuple[float, dict[str, list[Flips]]]:
    """The probe's accuracy on unchanged validation images, and for each transform the flips per class.

    ``training`` and ``validation`` are images, uint8 of shape (n, height, width, channels), and classes (n,).
    """
    # Imported here: flows know this module, and have to load without torch.
    from prefect_augment.evaluation.classifiers.base import balanced_weights
    from prefect_augment.evaluation.classifiers.convnet import fit_image_classifier

    probe = fit_image_classifier(
        *training,
        n_classes=n_classes,
        steps=steps,
        seed=seed,
        weights=balanced_weights(training[1]),
        augment_prob=0.5,
    )
    X, y = validation
    correct = probe.predict_proba(X).argmax(axis=1) == y
    X, y = X[correct], y[correct]
    seeds = np.random.default_rng(seed).integers(0, 2**62, len(X))
    flips: dict[str, list[Flips]] = {}
    for name, change in changes.items():
        predicted = probe.predict_proba(change(X, seeds)).argmax(axis=1) if len(X) else y
        flips[name] = []
        for k in range(n_classes):
            others = predicted[(y == k) & (predicted != k)]
            to = int(np.bincount(others).argmax()) if len(others) else -1
            flips[name].append(Flips(int((y == k).sum()), len(others), to))
    return float(correct.mean()) if len(correct) else 0.0, flips


logger = logging.getLogger(__name__)

STEPS = 300  # of the classifier, which reaches 97 % on mnist10k
MAX_OF_CLASS = 100  # validation images of a class that are changed
MIN_OF_CLASS = 20  # images, below which one class is no evidence by itself
CLASS_DAMAGE = 0.5  # of one class's images: more often another class than its own
MIN_ACCURACY = 0.8  # of the classifier, below which the check says nothing
WHOLE = "the whole policy"
PICTURE = "policy.png"


def check_policy(dataset: DatasetRef, *, classic: Classic, seed: int, store: Store) -> PolicyCheck:
    """Return how often each operation of a policy makes a classifier see another class.

    Training and validation images are read, the hold-out is not. Raises ParameterError if the records are
    no images, or the policy does nothing.
    """
    info = load_info(dataset, store)
    if info.image is None:
        raise ParameterError(
            "check-policy is of images, and the source holds rows of a table; SMOTE methods stay within a class."
        )
    policy = ImagePolicy.from_params(classic)
    policy.check()
    if policy.is_none:
        raise ParameterError("classic.image is 'none': there is no policy to check.")
    stage = _stage(dataset, policy, classic, seed, store)
    return stage.outcome(PolicyCheck) or stage.finish(_check(info, policy, classic, seed, stage))


def find_check(
    dataset: DatasetRef, *, classic: Classic, seed: int, store: Store
) -> PolicyCheck | None:
    """Return the stored result of :func:`check_policy` for the same inputs, or None."""
    policy = ImagePolicy.from_params(classic)
    if policy.is_none:
        return None
    return _stage(dataset, policy, classic, seed, store).outcome(PolicyCheck)


def _stage(
    dataset: DatasetRef, policy: ImagePolicy, classic: Classic, seed: int, store: Store
) -> Stage:
    inputs = [dataset.key, policy.digest]
    key = step_key("check_policy", {"classic": classic}, inputs=inputs, seed=seed)
    return Stage(store, "check_policy", key)


def _check(
    info: DatasetInfo, policy: ImagePolicy, classic: Classic, seed: int, stage: Stage
) -> PolicyCheck:
    assert info.image is not None
    table, is_validation = training_table(stage.store, info)
    X = encode_column(
        table[info.image.column],
        size=classifier_size(info.image.most_common_size),
        channels=info.image.n_channels,
    )
    labels = np.array(label_text(table[info.label]).to_pylist())
    classes = sorted(set(labels.tolist()))
    y = np.searchsorted(classes, labels).astype(np.int64)
    rows = np.concatenate(
        [np.flatnonzero(is_validation & (y == k))[:MAX_OF_CLASS] for k in range(len(classes))]
    )
    # Train on training images, count label flips of changed validation images.
    changes = {name: each.always for name, each in _operations(policy).items()}
    accuracy, flips_of = label_flips(
        (X[~is_validation], y[~is_validation]), (X[rows], y[rows]), changes,
        n_classes=len(classes), steps=STEPS, seed=seed,
    )  # fmt: skip
    # Show one image of each class under every operation.
    path = f"{stage.prefix}/{PICTURE}"
    shown = [int(np.flatnonzero(y == k)[0]) for k in range(len(classes))][:N_COLUMNS]
    keys = table["aug_id"].take(pa.array(shown)).to_pylist()
    stage.store.put(path, policy_sheet(list(X[shown]), keys, policy))
    weak = accuracy < MIN_ACCURACY
    return PolicyCheck(
        policy=policy.name,
        digest=policy.digest,
        accuracy=accuracy,
        n_images=len(rows),
        operations=tuple(
            _compared(name, flips, classes, classic.max_label_damage, weak=weak)
            for name, flips in flips_of.items()
        ),
        picture=path,
        note=f"the classifier is right about {accuracy:.0%} of the unchanged images, too few to tell"
        if weak
        else "",
    )


def _operations(policy: ImagePolicy) -> dict[str, ImagePolicy]:
    """Return each operation alone, always applied, and all together."""
    policies: dict[str, ImagePolicy] = {}
    for operation in policy.operations:
        always = Operation(operation.name, {**operation.arguments, "p": 1.0}, operation.inner)
        name, n = operation.name, 2
        while name in policies:
            name, n = f"{operation.name} ({n})", n + 1
        policies[name] = ImagePolicy((always,), prob=1.0, name=operation.name)
    return {**policies, WHOLE: replace(policy, prob=1.0)}


def _compared(
    name: str, flips: Sequence[Flips], classes: Sequence[str], most: float, *, weak: bool
) -> OperationCheck:
    pooled = Flips(sum(f.n for f in flips), sum(f.n_flipped for f in flips), -1)
    worst = max(range(len(flips)), key=lambda k: flips[k].low)
    one_class = any(f.n >= MIN_OF_CLASS and f.low > CLASS_DAMAGE for f in flips)
    return OperationCheck(
        name=name,
        rate=pooled.rate,
        low=pooled.low,
        worst_class=classes[worst],
        worst_rate=flips[worst].rate,
        becomes=classes[flips[worst].to] if flips[worst].to >= 0 else "",
        damages=not weak and (pooled.low > most or one_class),
    )


def needs_check(classic: Classic, dataset: DatasetRef, balance: Balance) -> bool:
    """Whether a run checks its policy first: ``safe`` is known to keep labels, and boxes cannot be checked."""
    if balance.unit == "object":
        return False
    is_safe = classic.image in ("safe", "none") and not classic.policy and not classic.plugin
    return dataset.modality == "image" and classic.on_label_damage != "ignore" and not is_safe


def act_on(check: PolicyCheck, classic: Classic) -> None:
    """Warn about a policy that changes labels; LabelDamageError where ``on_label_damage`` is ``refuse``."""
    if check.note:
        logger.warning("The policy %r was not checked: %s.", check.policy, check.note)
    if not check.damaging:
        return
    words = [
        f"after {op.name} a classifier sees another class in {op.rate:.0%} of the images (of {op.worst_class!r} "
        f"{op.worst_rate:.0%}, mostly taken for {op.becomes!r})"
        for op in check.damaging
    ]
    message = (
        f"the policy {check.policy!r} may change what images show: {'; '.join(words)}. Look at {check.picture}; "
        "leave the operation out, or set classic.on_label_damage to 'ignore' if the class is still there and only "
        "looks unusual."
    )
    if classic.on_label_damage == "refuse":
        raise LabelDamageError(message, policy=check.policy)
    logger.warning("%s%s", message[0].upper(), message[1:])


def policy_sheet(
    images: Sequence[NDArray[np.uint8]], keys: Sequence[str], policy: ImagePolicy
) -> bytes:
    """Return a PNG of less than 200 kB: images, and below them each operation and the whole policy.

    ``keys`` name the images (height, width, channels) for their seeds.
    """
    rows: list[tuple[str, list[NDArray[np.uint8]]]] = [("as they are", list(images))]
    for name, each in _operations(policy).items():
        changed = [
            each.apply(image, seed=record_seed(0, key, 0), prob=1.0)
            for image, key in zip(images, keys, strict=True)
        ]
        rows.append((name, changed))
    return rows_sheet(f"policy {policy.name}", rows)


def policy_page(check: PolicyCheck, store: Store, *, show_pictures: bool = True) -> str:
    """Return a page of markdown: the verdict, the images, a row per operation."""
    bad = ", ".join(op.name for op in check.damaging)
    if check.note:
        verdict = f"Not checked: {check.note}."
    elif bad:
        verdict = f"May change what images show: {bad}."
    else:
        verdict = "No operation changes the class that the classifier sees."
    lines = [f"**{markdown_text(verdict)}**"]
    if show_pictures:
        picture = base64.b64encode(store.read(check.picture)).decode()
        lines.append(f"![operations](data:image/png;base64,{picture})")
    rows = [
        "| operation | another class | at least | worst class | of it | taken for |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rows += [
        f"| {markdown_text(op.name)} | {op.rate:.1%} | {op.low:.1%} | {markdown_text(op.worst_class)} | "
        f"{op.worst_rate:.1%} | {markdown_text(op.becomes)} |"
        for op in check.operations
    ]
    lines.append("\n".join(rows))
    lines.append(
        f"A classifier that is right about {check.accuracy:.1%} of {check.n_images:,} validation images was shown "
        "each under every operation, always applied. It has never learnt strong changes: what it takes for another "
        "class may still be its own to you. Look at the pictures."
    )
    return "\n\n".join(lines)
