"""Reuse a previous model for a dataset that has grown a little since."""

import logging
from collections.abc import Mapping

import pyarrow.compute as pc
from pydantic import AliasChoices, Field

from prefect_augment.errors import IntegrityError
from prefect_augment.schema import DatasetRef, ModelRef, Result
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Stage, read_result
from prefect_augment.synthesis.model_store import EncodedRecords, copy_model, load_model

logger = logging.getLogger(__name__)

_RECEIPT = "trained"


class TrainedOn(Result):
    """What a model was trained for and on; stored beside the outcome of its stage."""

    # Key of everything requested but the records.
    request: str = Field(validation_alias=AliasChoices("request", "wish"))
    dataset: DatasetRef  # its training records, all or some of them, trained the model
    counts: dict[str, int]  # training records by stratum


def keep_training(
    stage: Stage, *, request: str, dataset: DatasetRef, counts: Mapping[str, int]
) -> None:
    """Store the receipt by which :func:`find_previous` finds the stage's model."""
    stage.item(
        _RECEIPT,
        TrainedOn,
        lambda: TrainedOn(request=request, dataset=dataset, counts=dict(counts)),
    )


def find_previous(
    stage: Stage, records: EncodedRecords, *, request: str, dataset: DatasetRef, growth: float
) -> ModelRef | None:
    """Return the model of a previous run that serves these records too, copied to this stage, or None.

    It serves if the request (all but the records) is the same, its training records are among the
    present ones (so it has not seen validation or hold-out), no stratum is new or has grown by more
    than the share ``growth``, and its encoder's domain holds. The reason for reuse or retraining is
    logged.
    """
    previous = _previous_models(stage, request) if growth > 0 else []
    if not previous:
        return None
    # The one with most records; the key breaks ties the same way everywhere.
    trained, ref = max(previous, key=lambda pair: (sum(pair[0].counts.values()), pair[1].key))
    try:
        why = _outgrown(trained.counts, records.counts, growth) or _unknown_records(
            stage, trained, dataset
        )
        if not why:
            _, previous_encoder = load_model(stage.store, ref, device="cpu")
            why = previous_encoder.outgrown_by(records.encoder)
    except IntegrityError as exc:
        why = str(exc)
    if why:
        logger.info(
            "A model is trained anew; the previous one does not serve: %s.", why.rstrip(".")
        )
        return None
    note = (
        f"the model was trained before on {sum(trained.counts.values())} records: since then "
        f"{_largest_growth(trained.counts, records.counts)}, and its encoder's domain holds"
    )
    logger.info("Not trained: %s.", note)
    # The present records include its own, so the next run can start from this receipt.
    keep_training(stage, request=request, dataset=dataset, counts=trained.counts)
    return copy_model(ref, stage, notes=(*ref.notes, note))


def _previous_models(stage: Stage, request: str) -> list[tuple[TrainedOn, ModelRef]]:
    """Models trained on the same request, with their receipts."""
    models = []
    for path in stage.store.list(f"_staging/{stage.name}"):
        folder, _, name = path.rpartition("/")
        if name != f"{_RECEIPT}.json" or folder == stage.prefix:
            continue
        trained = read_result(stage.store, path, TrainedOn)
        ref = read_result(stage.store, f"{folder}/outcome.json", ModelRef)
        if trained is not None and trained.request == request and ref is not None:
            models.append((trained, ref))
    return models


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
    """Reason why the model may have seen records that are not training records now, or empty."""
    before, info = (load_info(ref, stage.store) for ref in (trained.dataset, dataset))
    shards = {s.sha256 for s in info.shards if s.split == "training"}
    if all(s.sha256 in shards for s in before.shards if s.split == "training"):
        return ""
    old, new = (
        read_part(stage.store, of, ["training"], ["aug_id"])["aug_id"].combine_chunks()
        for of in (before, info)
    )
    n_unknown = pc.sum(pc.invert(pc.is_in(old, value_set=new))).as_py() or 0
    return f"{n_unknown} of its training records are not training records now" if n_unknown else ""
