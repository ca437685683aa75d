"""Check a policy: whether a classifier of real images still sees the class once an operation was applied."""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prefect_augment.augmentation.image_policy import ImagePolicy, Operation, record_seed
from prefect_augment.encoding.arrays import training_table
from prefect_augment.encoding.images import encode_column
from prefect_augment.encoding.labels import label_text
from prefect_augment.encoding.pixels import resize
from prefect_augment.errors import LabelDamageError, ParameterError
from prefect_augment.evaluation.classifiers.label_preservation import Change, Flips, label_flips
from prefect_augment.figures.image_grid import N_COLUMNS, rows_sheet
from prefect_augment.nn.machine import classifier_size
from prefect_augment.params import Balance, Classic
from prefect_augment.params.keys import step_key
from prefect_augment.schema.base import DatasetInfo, DatasetRef
from prefect_augment.schema.report import OperationCheck, PolicyCheck
from prefect_augment.shards.staged import load_info
from prefect_augment.storage.staging import Stage
from prefect_augment.storage.store import Store
from prefect_augment.text import markdown_text

__all__ = [
    "OperationCheck",
    "PolicyCheck",
    "act_on",
    "check_picture",
    "check_policy",
    "find_check",
    "needs_check",
    "policy_page",
    "policy_sheet",
]

logger = logging.getLogger(__name__)

STEPS = 300  # of the probe: it is right about 97 % of mnist10k after them
MOST_OF_CLASS = 100  # validation images of a class that are changed
LEAST_OF_CLASS = 20  # images, below which a class says nothing by itself
CLASS_DAMAGE = 0.5  # of one class's images: more often another class than its own
LEAST_ACCURACY = 0.8  # of the probe, below which it is too weak to tell
WHOLE = "the whole policy"
PICTURE = "policy.png"


def check_policy(dataset: DatasetRef, *, classic: Classic, seed: int, store: Store) -> PolicyCheck:
    """Return how often each operation of a policy makes an image another class's, in a probe's eyes.

    Parameters
    ----------
    dataset : DatasetRef
        Staged images; training and validation are read, the hold-out is not.
    classic : Classic
        The policy, and how much damage is too much.
    seed : int
    store : Store
        The destination, under whose ``_staging`` the result goes.

    Raises
    ------
    ParameterError
        If the records are no images, or the policy is none.
    """
    info = load_info(dataset, store)
    if info.image is None:
        raise ParameterError(
            "check-policy is of images, and the source holds rows of a table; SMOTE and its kin stay within a class."
        )
    policy = ImagePolicy.from_params(classic)
    policy.check()
    if policy.is_none:
        raise ParameterError("classic.image is 'none': there is no policy to check.")
    stage = _stage(dataset, policy, classic, seed, store)
    known = stage.outcome(PolicyCheck)
    return known or stage.finish(_check(info, policy, classic, seed, stage))


def find_check(
    dataset: DatasetRef, *, classic: Classic, seed: int, store: Store
) -> PolicyCheck | None:
    """Return what :func:`check_policy` found of the same, or None where nobody asked."""
    policy = ImagePolicy.from_params(classic)
    if policy.is_none:
        return None
    return _stage(dataset, policy, classic, seed, store).outcome(PolicyCheck)


def check_picture(check: PolicyCheck | None, store: Store) -> bytes | None:
    """Return the sheet of a check as PNG bytes; None for no check."""
    return store.read(check.picture) if check else None


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
        [np.flatnonzero(is_validation & (y == k))[:MOST_OF_CLASS] for k in range(len(classes))]
    )
    of = _operations(policy)
    accuracy, found = label_flips(
        (X[~is_validation], y[~is_validation]), (X[rows], y[rows]), {name: _change(p) for name, p in of.items()},
        n_classes=len(classes), steps=STEPS, seed=seed,
    )  # fmt: skip
    path = f"{stage.prefix}/{PICTURE}"
    shown = [int(np.flatnonzero(y == k)[0]) for k in range(len(classes))][:N_COLUMNS]
    stage.store.put(
        path,
        policy_sheet(list(X[shown]), table["aug_id"].take(pa.array(shown)).to_pylist(), policy),
    )
    weak = accuracy < LEAST_ACCURACY
    return PolicyCheck(
        policy=policy.name,
        digest=policy.digest,
        accuracy=accuracy,
        n_images=len(rows),
        operations=tuple(
            _compared(name, flips, classes, classic.max_label_damage, weak=weak)
            for name, flips in found.items()
        ),
        picture=path,
        note=f"the probe is right about {accuracy:.0%} of the unchanged images, too few to tell"
        if weak
        else "",
    )


def _operations(policy: ImagePolicy) -> dict[str, ImagePolicy]:
    """Return each operation alone, always applied, and all together."""
    found: dict[str, ImagePolicy] = {}
    for operation in policy.operations:
        always = Operation(operation.name, {**operation.arguments, "p": 1.0}, operation.inner)
        name, n = operation.name, 2
        while name in found:
            name, n = f"{operation.name} ({n})", n + 1
        found[name] = ImagePolicy((always,), prob=1.0, name=operation.name)
    return {**found, WHOLE: replace(policy, prob=1.0)}


def _change(policy: ImagePolicy) -> Change:
    def change(images: NDArray[np.uint8], seeds: NDArray[np.int64]) -> NDArray[np.uint8]:
        height, width = images.shape[1:3]
        made = policy.batch(images, seeds.tolist(), [1.0] * len(images))
        return np.stack([resize(image, width, height) for image in made])

    return change


def _compared(
    name: str, flips: Sequence[Flips], classes: Sequence[str], most: float, *, weak: bool
) -> OperationCheck:
    pooled = Flips(sum(f.n for f in flips), sum(f.n_flipped for f in flips), -1)
    worst = max(range(len(flips)), key=lambda k: flips[k].low)
    one_class = any(f.n >= LEAST_OF_CLASS and f.low > CLASS_DAMAGE for f in flips)
    return OperationCheck(
        name=name,
        rate=pooled.rate,
        low=pooled.low,
        worst_class=classes[worst],
        worst_rate=flips[worst].rate,
        becomes=classes[flips[worst].to] if flips[worst].to >= 0 else "",
        damages=not weak and (pooled.low > most or one_class),
    )


# --- what is done about it, and what is shown -------------------------------------------------


def needs_check(classic: Classic, dataset: DatasetRef, balance: Balance) -> bool:
    """Tell whether a run looks at its policy first: ``safe`` is known to keep labels, boxes have no probe."""
    if balance.unit == "object":
        return False
    is_safe = classic.image in ("safe", "none") and not classic.policy and not classic.plugin
    return dataset.modality == "image" and classic.on_label_damage != "ignore" and not is_safe


def act_on(check: PolicyCheck, classic: Classic) -> None:
    """Warn, or refuse, where a policy changes what images show.

    Raises
    ------
    LabelDamageError
        If ``classic.on_label_damage`` is ``refuse`` and an operation does.
    """
    if check.note:
        logger.warning("The policy %r was not judged: %s.", check.policy, check.note)
    if not check.damaging:
        return
    words = [
        f"after {op.name} {op.rate:.0%} of the images are another class's in a probe's eyes (of {op.worst_class!r} "
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
    """Return a sheet: images, and below them what each operation and the whole policy make of them.

    Parameters
    ----------
    images : sequence of ndarray of uint8, shape (height, width, channels)
        One column each.
    keys : sequence of str
        A name of each, for its seed.
    policy : ImagePolicy

    Returns
    -------
    bytes
        A PNG of less than 200 kB.
    """
    rows: list[tuple[str, list[NDArray[np.uint8]]]] = [("as they are", list(images))]
    for name, each in _operations(policy).items():
        made = [
            each.apply(image, seed=record_seed(0, key, 0), prob=1.0)
            for image, key in zip(images, keys, strict=True)
        ]
        rows.append((name, made))
    return rows_sheet(f"policy {policy.name}", rows)


def policy_page(check: PolicyCheck, store: Store, *, show_pictures: bool = True) -> str:
    """Return a page of markdown: the verdict, the sheet, a row per operation."""
    bad = ", ".join(op.name for op in check.damaging)
    if check.note:
        verdict = f"Not judged: {check.note}."
    elif bad:
        verdict = f"May change what images show: {bad}."
    else:
        verdict = "No operation changes what the probe sees."
    lines = [f"**{markdown_text(verdict)}**"]
    if show_pictures:
        picture = base64.b64encode(store.read(check.picture)).decode()
        lines.append(f"![operations](data:image/png;base64,{picture})")
    lines += [
        "\n".join(
            [
                "| operation | another class | at least | worst class | of it | taken for |",
                "| --- | --- | --- | --- | --- | --- |",
                *(
                    f"| {markdown_text(op.name)} | {op.rate:.1%} | {op.low:.1%} | {markdown_text(op.worst_class)} | "
                    f"{op.worst_rate:.1%} | {markdown_text(op.becomes)} |"
                    for op in check.operations
                ),
            ]
        ),
    ]
    lines.append(
        f"A probe that is right about {check.accuracy:.1%} of {check.n_images:,} validation images was "
        f"shown each under "
        "every operation, always applied. It has never learnt strong changes: what it takes for another class may "
        "still be its own to you. Look at the pictures."
    )
    return "\n\n".join(lines)
