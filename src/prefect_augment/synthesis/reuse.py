"""Reuse: a model that was trained before serves a dataset that has grown a little since."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import AliasChoices, Field

from prefect_augment.errors import IntegrityError
from prefect_augment.schema.base import DatasetInfo, DatasetRef, ModelRef, Result
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage.staging import Stage, read_result
from prefect_augment.synthesis.model_store import Encoder, copy_model, load_model

__all__ = ["TrainedOn", "find_earlier", "keep_training"]

logger = logging.getLogger(__name__)

_RECEIPT = "trained"


class TrainedOn(Result):
    """What a model was trained for and on; beside the outcome of its stage."""

    # Key of everything that was requested but the records.
    request: str = Field(validation_alias=AliasChoices("request", "wish"))
    dataset: DatasetRef  # it was trained on training records of this one, all of them or some
    counts: dict[str, int]  # stratum -> records that it was trained on


def keep_training(
    stage: Stage, *, request: str, dataset: DatasetRef, counts: Mapping[str, int]
) -> None:
    """Leave the receipt by which :func:`find_earlier` finds the stage's model."""
    stage.item(
        _RECEIPT,
        TrainedOn,
        lambda: TrainedOn(request=request, dataset=dataset, counts=dict(counts)),
    )


def find_earlier(
    stage: Stage,
    *,
    request: str,
    dataset: DatasetRef,
    encoder: Encoder,
    counts: Mapping[str, int],
    growth: float,
) -> ModelRef | None:
    """Return an earlier run's model that serves these records too, under this stage; or None.

    It serves where the same was requested, all that it was trained on is among these training records (so
    that it has not seen validation or hold-out), no stratum is new or has grown by more than ``growth``, and
    the domain of its encoder holds. Which model was found, or why none serves, is logged.

    Parameters
    ----------
    stage : Stage
        Of the training that would be saved.
    request : str
        Key of everything that is asked for but the records.
    dataset : DatasetRef
        Outcome of the ingest of these records.
    encoder : TableEncoder or ImageEncoder
        Fitted on these records.
    counts : mapping of str to int
        Fit records per stratum.
    growth : float
        Share by which a stratum may have grown since; 0 for none at all.
    """
    found = _earlier(stage, request) if growth > 0 else []
    if not found:
        return None
    # The one that knows most; the key settles ties the same way everywhere.
    trained, ref = max(found, key=lambda pair: (sum(pair[0].counts.values()), pair[1].key))
    try:
        why = _outgrown(trained.counts, counts, growth) or _unknown_records(stage, trained, dataset)
        if not why:
            _, known = load_model(stage.store, ref, device="cpu")
            why = known.outgrown_by(encoder)
    except IntegrityError as exc:
        why = str(exc)
    if why:
        logger.info("A model is trained anew; the earlier one does not serve: %s.", why.rstrip("."))
        return None
    note = (
        f"the model is the one trained earlier on {sum(trained.counts.values())} records: since then "
        f"{_largest_growth(trained.counts, counts)}, and its encoder's domain holds"
    )
    logger.info("Not trained: %s.", note)
    # These records hold all that it knows, so the next run need not find the first one's.
    keep_training(stage, request=request, dataset=dataset, counts=trained.counts)
    return copy_model(ref, stage, notes=(*ref.notes, note))


def _earlier(stage: Stage, request: str) -> list[tuple[TrainedOn, ModelRef]]:
    """Models that were trained on the same request, with what they were trained on."""
    found = []
    for path in stage.store.list(f"_staging/{stage.name}"):
        folder, _, name = path.rpartition("/")
        if name != f"{_RECEIPT}.json" or folder == stage.prefix:
            continue
        trained = read_result(stage.store, path, TrainedOn)
        ref = read_result(stage.store, f"{folder}/outcome.json", ModelRef)
        if trained is not None and trained.request == request and ref is not None:
            found.append((trained, ref))
    return found


def _outgrown(before: Mapping[str, int], now: Mapping[str, int], growth: float) -> str:
    for name, n in now.items():
        n_before = before.get(name, 0)
        if not n_before:
            return f"class {name!r} is new"
        if n > n_before * (1 + growth):
            return f"class {name!r} has grown from {n_before} to {n} training records"
    return ""


def _largest_growth(before: Mapping[str, int], now: Mapping[str, int]) -> str:
    name = max(now, key=lambda name: now[name] / before[name])
    share = now[name] / before[name] - 1
    return f"no class has grown by more than {share:.1%} ({name!r}: {before[name]} to {now[name]})"


def _unknown_records(stage: Stage, trained: TrainedOn, dataset: DatasetRef) -> str:
    """Tell whether the model may have seen records that are not training records now."""
    before, info = (load_info(ref, stage.store) for ref in (trained.dataset, dataset))
    shards = {s.sha256 for s in info.shards if s.split == "training"}
    if all(s.sha256 in shards for s in before.shards if s.split == "training"):
        return ""
    old, new = (_training_ids(stage, f) for f in (before, info))
    n_unknown = pc.sum(pc.invert(pc.is_in(old, value_set=new))).as_py() or 0
    return (
        f"{n_unknown} of the records that it was for are not to be learnt now" if n_unknown else ""
    )


def _training_ids(stage: Stage, info: DatasetInfo) -> pa.Array:
    return read_part(stage.store, info, ["training"], ["aug_id"])["aug_id"].combine_chunks()
