"""Checkpoints: a model's state as safetensors and JSON, named by its digest. No pickle."""

import hashlib
import json

import numpy as np
from safetensors import SafetensorError, numpy as safetensors_numpy

from prefect_augment.errors import IntegrityError
from prefect_augment.nn.budget import Arrays, Checkpoint, Config
from prefect_augment.schema import ModelRef, Result
from prefect_augment.storage import Store


class CheckpointRef(Result):
    """Where a checkpoint lies."""

    digest: str  # sha256 of configuration and arrays
    checkpoint: str  # path of the safetensors file, relative to the store's root
    config: str  # path of its JSON


def save_checkpoint(store: Store, prefix: str, config: Config, arrays: Arrays) -> CheckpointRef:
    """Save a model's state below ``prefix``; equal states give equal bytes and names.

    ``config`` is plain JSON without NaN or infinity.
    """
    text = json.dumps(config, sort_keys=True, indent=1, allow_nan=False)
    written = f"{text}\n".encode()
    # safetensors takes contiguous arrays only. Sorted names make the bytes independent of their order.
    weights = safetensors_numpy.save(
        {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    )
    digest = _digest(written, weights)
    path = f"{prefix}/model-{digest[:12]}"
    ref = CheckpointRef(digest=digest, checkpoint=f"{path}.safetensors", config=f"{path}.json")
    store.put(ref.checkpoint, weights)
    store.put(ref.config, written)
    return ref


def load_checkpoint(store: Store, ref: ModelRef | CheckpointRef) -> Checkpoint:
    """Configuration and arrays; raises IntegrityError if a file is missing, damaged or another one."""
    try:
        written, weights = store.read(ref.config), store.read(ref.checkpoint)
    except FileNotFoundError as exc:
        raise IntegrityError(
            f"checkpoint {ref.digest[:12]} is incomplete: {exc.filename or exc} is missing below "
            f"{store.uri}; restore it from a copy, or train again.",
            digest=ref.digest,
        ) from exc
    if _digest(written, weights) != ref.digest:
        raise IntegrityError(
            f"{store.uri}/{ref.checkpoint} and {ref.config} are not the checkpoint "
            f"{ref.digest[:12]} that was trained; restore them from a copy, or train again.",
            digest=ref.digest,
        )
    try:
        return json.loads(written), dict(safetensors_numpy.load(weights))
    except SafetensorError as exc:  # the digest is right, so only for a newer format
        raise IntegrityError(f"{store.uri}/{ref.checkpoint} cannot be read: {exc}.") from exc


def _digest(written: bytes, weights: bytes) -> str:
    """One digest of both parts, unambiguous about where one ends."""
    both = hashlib.sha256(written).hexdigest() + hashlib.sha256(weights).hexdigest()
    return hashlib.sha256(both.encode()).hexdigest()
