"""Trained models in storage: checkpoint and encoder, named by their digests."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefect_augment.array_types import Int
from prefect_augment.encoding.images import ImageEncoder
from prefect_augment.encoding.rare_values import RareValues
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.errors import IntegrityError
from prefect_augment.genmodels.base import (
    MIN_SAMPLED_RECORDS,
    GenerativeModel,
    ImageData,
    ImageSpec,
    TableData,
    TableSpec,
)
from prefect_augment.nn.checkpoints import load_checkpoint, save_checkpoint
from prefect_augment.registry import load_model_class
from prefect_augment.schema import Modality, ModelRef
from prefect_augment.storage import Stage, Store

logger = logging.getLogger(__name__)

Encoder = TableEncoder | ImageEncoder


def table_spec(encoder: TableEncoder, strata: Int, names: tuple[str, ...] = ()) -> TableSpec:
    """Spec of encoded records; ``strata`` index ``names``, by default the encoder's strata."""
    names = names or encoder.strata
    return TableSpec(
        names=encoder.names,
        is_category=tuple(bool(c) for c in encoder.is_category),
        n_levels=tuple(int(n) for n in encoder.n_levels),
        classes=names,
        class_counts=_counts(strata, names),
    )


def image_spec(encoder: ImageEncoder, strata: Int) -> ImageSpec:
    """Spec of encoded images; ``strata`` index the encoder's."""
    names = encoder.strata
    return ImageSpec(encoder.size, encoder.channels, names, _counts(strata, names))


@dataclass(frozen=True)
class EncodedRecords:
    """Encoded training records and their description."""

    encoder: Encoder
    spec: TableSpec | ImageSpec
    data: TableData | ImageData
    rare: RareValues | None = None  # of a table, the values that decoding avoids
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Records by stratum."""
        return dict(zip(self.spec.classes, self.spec.class_counts, strict=True))


def keep_model(
    model: GenerativeModel, stage: Stage, records: EncodedRecords, *, kind: str
) -> ModelRef:
    """Store encoder and checkpoint; return the reference, with the notes of the records and of left-out classes."""
    encoder, counts = records.encoder, records.counts
    config, arrays = model.state()
    arrays = arrays | (records.rare.arrays() if records.rare is not None else {})
    # The checkpoint includes the encoder's digest, so aug_model identifies both.
    config = {"kind": kind, "encoder": encoder.digest, "model": config}
    saved = save_checkpoint(stage.store, stage.prefix, config, arrays)
    stage.store.put(_encoder_path(saved.config, encoder.digest), encoder.to_json())
    guarantee = getattr(model, "guarantee", None)
    notes = records.notes + (guarantee.sentences if guarantee else ())
    notes += tuple(
        f"class {name!r} has {n} training records and is not sampled: a model needs "
        f"{MIN_SAMPLED_RECORDS}"
        for name, n in counts.items()
        if n < MIN_SAMPLED_RECORDS
    )
    for note in notes:
        logger.info("%s", note)
    return ModelRef(
        root=stage.store.uri,
        path=stage.outcome_path,
        key=stage.key,
        kind=kind,
        digest=saved.digest,
        encoder_digest=encoder.digest,
        checkpoint=saved.checkpoint,
        config=saved.config,
        strata=tuple(name for name, n in counts.items() if n >= MIN_SAMPLED_RECORDS),
        n_training=len(records.data.y),
        steps=model.n_steps,
        notes=notes,
        guarantee=guarantee,
    )


def copy_model(ref: ModelRef, stage: Stage, *, notes: tuple[str, ...]) -> ModelRef:
    """Copy a model to another stage, so that it survives the stage that trained it."""
    encoder = _encoder_path(ref.config, ref.encoder_digest)
    copied_paths = {
        path: f"{stage.prefix}/{path.rpartition('/')[2]}"
        for path in (ref.checkpoint, ref.config, encoder)
    }
    for old, new in copied_paths.items():
        stage.store.put(new, stage.store.read(old))
    return ref.model_copy(
        update={
            "root": stage.store.uri,
            "path": stage.outcome_path,
            "key": stage.key,
            "checkpoint": copied_paths[ref.checkpoint],
            "config": copied_paths[ref.config],
            "notes": notes,
        }
    )


def load_model(
    store: Store, ref: ModelRef, *, device: str = "auto"
) -> tuple[GenerativeModel, Encoder]:
    """Load a model, and its encoder that decodes to no rare value.

    Raises IntegrityError if a file is missing or was changed.
    """
    config, arrays = load_checkpoint(store, ref)
    path = _encoder_path(ref.config, ref.encoder_digest)
    try:
        data = store.read(path)
    except FileNotFoundError as exc:
        raise IntegrityError(
            f"{store.uri}/{path} is missing; restore it from a copy, or train again.", path=path
        ) from exc
    modality: Modality = json.loads(data).get("modality", "table")
    encoder: Encoder = (ImageEncoder if modality == "image" else TableEncoder).from_json(data)
    if encoder.digest != ref.encoder_digest:
        raise IntegrityError(
            f"{store.uri}/{path} is not the encoder {ref.encoder_digest[:12]} that the model was "
            "trained with; restore it from a copy, or train again.",
            path=path,
        )
    model_class = load_model_class(ref.kind, modality=modality)
    if isinstance(encoder, TableEncoder):
        encoder = encoder.guarding(RareValues.from_arrays(arrays))
    own = {name: array for name, array in arrays.items() if not name.startswith("rare.")}
    return model_class.from_state(config["model"], own, device=device), encoder


def _counts(strata: Int, names: Sequence[str]) -> tuple[int, ...]:
    return tuple(int(n) for n in np.bincount(strata, minlength=len(names)))


def _encoder_path(config: str, digest: str) -> str:
    """Path of a model's encoder, beside its configuration."""
    return f"{config.rpartition('/')[0]}/encoder-{digest[:12]}.json"
