"""Drift: what changed since the version before, from what its report keeps; its records stay unread.

What the real training records of a dataset look like, in few numbers; the hold-out is not read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from io import BytesIO
from statistics import fmean
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from prefect_augment.encoding.pixels import decode_image, image_bytes, resize
from prefect_augment.errors import IntegrityError, SchemaError
from prefect_augment.evaluation.metrics.column_profile import column_content
from prefect_augment.evaluation.metrics.drift import (
    class_drifts,
    column_drifts,
    drift_sentence,
    n_shared,
    strategy_drifts,
)
from prefect_augment.schema.base import (
    DatasetInfo,
    DatasetRef,
    Recipe,
    Result,
    ShardInfo,
    StrategyScore,
    Verdict,
)
from prefect_augment.schema.drift import ColumnContent, Contents, Drift
from prefect_augment.schema.manifest import Manifest
from prefect_augment.shards.staged import iter_shards, load_info
from prefect_augment.storage.keys import fold_ids
from prefect_augment.storage.manifests import list_versions, read_manifest
from prefect_augment.storage.staging import Stage, stage_key
from prefect_augment.storage.store import Store

__all__ = ["Before", "Sampled", "column_values", "find_before", "look", "read_sample"]

logger = logging.getLogger(__name__)

ALGORITHM_VERSION = 1
# A report is some 100 kB to some MB; one that is larger is none of ours.
MAX_REPORT_BYTES = 256 << 20


class Before(Result):
    """The version that a run compares itself with: its manifest's and its report's facts."""

    version: int
    classes: dict[str, int]  # real training records
    recipe: Recipe
    verdict: Verdict | None
    contents: Contents | None
    validation: dict[str, float]  # strategy -> balanced accuracy
    notes: tuple[str, ...] = ()


class _Looked(Result):
    """The receipt of a look at the records."""

    contents: Contents
    drift: Drift | None


def find_before(store: Store, run: str) -> Before | None:
    """Return the newest version that is not the run's own; None where there is none.

    A run that comes again upon what it has published compares itself with the version before that, so
    that its report stays the same.
    """
    for version in reversed(list_versions(store)):
        try:
            manifest = read_manifest(store, version)
        except (IntegrityError, SchemaError) as exc:
            logger.info("drift: version %d is left out: %s", version, exc)
            continue
        info, notes = _report(store, manifest)
        contents = _contents(info)
        if contents is not None and contents.run == run:
            continue
        if contents is None and not notes:
            notes = (f"The report of version {version} keeps no facts about its columns.",)
        return Before(
            version=version,
            classes=_classes(manifest),
            recipe=manifest.recipe,
            verdict=manifest.verdict,
            contents=contents,
            validation=_validation(info),
            notes=notes,
        )
    return None


def _classes(manifest: Manifest) -> dict[str, int]:
    return {
        name: origins["real"]
        for name, origins in manifest.class_counts.get("train", {}).items()
        if origins.get("real")
    }


def _report(store: Store, manifest: Manifest) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a version's report.json, and what is to be said where there is none."""
    version = manifest.version
    path = next((f.path for f in manifest.report_files if f.path.endswith("/report.json")), "")
    if not path:
        return {}, (f"Version {version} has no report: only what its manifest says is compared.",)
    try:
        if store.size(path) > MAX_REPORT_BYTES:
            raise ValueError("it is too large")
        info = json.loads(store.read(path))
        if not isinstance(info, dict):
            raise ValueError("it is no object")
    except FileNotFoundError:
        return {}, (f"The report of version {version} is gone: columns are not compared.",)
    except (ValueError, RecursionError) as exc:
        return {}, (f"The report of version {version} cannot be read: {exc}.",)
    return info, ()


def _contents(info: dict[str, Any]) -> Contents | None:
    try:
        return Contents.model_validate(info["contents"]) if info.get("contents") else None
    except ValidationError:  # of another release
        return None


def _validation(info: dict[str, Any]) -> dict[str, float]:
    """Return each strategy's mean score on validation records; what another release wrote otherwise is left out."""
    found: dict[str, list[float]] = {}
    try:
        for score in info.get("strategy_scores") or ():
            found.setdefault(str(score["strategy"]["name"]), []).append(float(score["score"]))
    except (KeyError, TypeError, ValueError):
        return {}
    return {name: fmean(scores) for name, scores in found.items()}


def look(
    dataset: DatasetRef,
    before: Before | None,
    *,
    run: str,
    show: bool,
    scores: Sequence[StrategyScore],
    verdict: Verdict | None,
    recipe: Recipe | None,
    store: Store,
) -> tuple[Contents, Drift | None]:
    """Return what the training records look like, and what changed since the version before.

    Parameters
    ----------
    dataset : DatasetRef
        Training and validation are read, as many records as a distance needs; the hold-out is not.
    before : Before or None
        From :func:`find_before`.
    run : str
        Names what the report is of.
    show : bool
        Whether the report may hold real values. Where it may not, nothing is kept of the columns but
        how many values are empty, and the next version says so.
    scores, verdict, recipe
        Of this run.
    store : Store
    """
    key = stage_key(
        "drift", algorithm_version=ALGORITHM_VERSION, params=[run, show, before],
        inputs=[dataset.key, dataset.digest],
    )  # fmt: skip
    stage = Stage(store, "drift", key)
    looked = stage.outcome(_Looked)
    if looked is None:
        looked = stage.finish(_look(load_info(dataset, store), before, run, show, store))
    if looked.drift is None or before is None:
        return looked.contents, None
    drift = looked.drift.model_copy(
        update={
            "strategies": strategy_drifts((before.validation, before.verdict), (scores, verdict)),
            "recipe_before": before.recipe.strategy.name,
            "recipe_now": recipe.strategy.name if recipe else "",
            "verdict_before": before.verdict.decision if before.verdict else "",
            "verdict_now": verdict.decision if verdict else "",
        }
    )
    return looked.contents, drift.model_copy(update={"sentence": drift_sentence(drift)})


def _look(info: DatasetInfo, before: Before | None, run: str, show: bool, store: Store) -> _Looked:
    sample = read_sample(store, info, run=run)
    now = sample.contents(show=show)
    if before is None:
        return _Looked(contents=now, drift=None)
    old, notes = before.contents, before.notes
    shared = n_shared(old, now) if old else 0
    if old and not show:
        notes += ("This report may not hold real values, so columns are not compared.",)
    return _Looked(
        contents=now,
        drift=Drift(
            version=before.version,
            n_before=sum(before.classes.values()),
            n_now=now.n_records,
            n_shared=shared,
            classes=class_drifts(before.classes, now.classes, shared),
            columns=column_drifts(old, now, sample.on(old), shared) if old and show else (),
            notes=notes,
        ),
    )


MOST_ROWS = 100_000  # looked at: a distance of 0.01 is seen with so many
MOST_IMAGES = 1_000  # decoding takes a millisecond each, or ten
SKETCH = 512  # ids kept: 10 kB of report.json
SIDE = 8  # pixels of the mean picture

Kind = Literal["numeric", "category"]


class Sampled:
    """The records that were looked at, column by column."""

    def __init__(self, info: DatasetInfo, run: str, values: Mapping[str, tuple[Kind, Any]]):
        self.info, self.run, self.values = info, run, values
        self.ids: list[str] = []
        self.n_looked_at = 0
        self.pictures: NDArray[np.float32] | None = None

    def contents(self, *, show: bool) -> Contents:
        """Return what is kept of them for the next version; no value where ``show`` is False."""
        classes: dict[str, int] = {}
        for shard in _training(self.info):
            for name, n in shard.class_counts.items():
                classes[name] = classes.get(name, 0) + n
        pictures = self.pictures if show and self.pictures is not None else np.zeros((0, 0))
        return Contents(
            run=self.run,
            n_records=sum(classes.values()),
            n_looked_at=self.n_looked_at,
            classes=classes,
            columns=tuple(
                column_content(name, kind, values, show=show)
                for name, (kind, values) in self.values.items()
            ),
            sketch=tuple(self.ids),
            mean_picture=_rounded(pictures.mean(axis=0)) if pictures.size else (),
            picture_spread=_rounded(pictures.std(axis=0)) if pictures.size else (),
        )

    def on(self, before: Contents) -> dict[str, ColumnContent]:
        """Return the columns, counted at the points and in the bins of an earlier version."""
        old = {c.name: c for c in before.columns}
        return {
            name: column_content(name, kind, values, like=old.get(name))
            for name, (kind, values) in self.values.items()
        }


def _rounded(values: NDArray[Any]) -> tuple[float, ...]:
    return tuple(round(float(v), 3) for v in values)


def read_sample(store: Store, info: DatasetInfo, *, run: str) -> Sampled:
    """Read the training records with the smallest ids: an order by chance, the same in every version.

    Parameters
    ----------
    store : Store
        Under which the staged records lie.
    info : DatasetInfo
        Of the ingest stage.
    run : str
        Names what the report is of.
    """
    shards = _training(info)
    folded = [fold_ids(table["aug_id"]) for table in iter_shards(store, shards, ["aug_id"])]
    ids = np.concatenate([np.zeros(0, np.uint64), *folded])
    most = MOST_IMAGES if info.image else MOST_ROWS
    last = np.partition(ids, most)[most] if len(ids) > most else None
    kinds = _kinds(info)
    columns = [info.image.column] if info.image else [*kinds]
    tables = []
    for table in iter_shards(store, shards, ["aug_id", *columns]):
        if last is not None:
            table = table.filter(pa.array(fold_ids(table["aug_id"]) < last))
        tables.append(_measured(table, info) if info.image else table)
    found = Sampled(info, run, {})
    found.n_looked_at = sum(table.num_rows for table in tables)
    found.ids = [f"{key:016x}" for key in np.sort(ids)[:SKETCH].tolist()]
    if not found.n_looked_at:
        return found
    whole = pa.concat_tables(tables).unify_dictionaries()
    found.values = {name: (kind, column_values(whole[name], kind)) for name, kind in kinds.items()}
    if info.image:
        found.pictures = np.array(whole["picture"].to_pylist(), dtype=np.float32)
    return found


def _training(info: DatasetInfo) -> list[ShardInfo]:
    return [s for s in info.shards if s.split in ("training", "validation")]


def _kinds(info: DatasetInfo) -> dict[str, Kind]:
    if info.image:
        return dict.fromkeys(("brightness", "contrast", "width", "height"), "numeric")
    kinds: dict[str, Kind] = {}
    for column in info.columns:
        if column.kind == "numeric" or column.kind == "category":
            kinds[column.name] = column.kind
    return kinds


def _measured(table: pa.Table, info: DatasetInfo) -> pa.Table:
    """Measure images: all that is kept of each are four numbers and 64 pixels."""
    assert info.image is not None
    rows: dict[str, list[Any]] = {
        name: [] for name in ("brightness", "contrast", "width", "height", "picture")
    }
    for data in image_bytes(table[info.image.column], name=info.image.column):
        with Image.open(BytesIO(data)) as image:
            width, height = image.size
        pixels = decode_image(data, max_pixels=None, at_least=64).astype(np.float32)
        gray = pixels.mean(axis=2)
        small = resize(gray.round().astype(np.uint8)[:, :, None], SIDE, SIDE)
        measured = (float(gray.mean()), float(gray.std()), width, height, small.ravel().tolist())
        for name, value in zip(rows, measured, strict=True):
            rows[name].append(value)
    types = [pa.float64(), pa.float64(), pa.int64(), pa.int64(), pa.list_(pa.uint8())]
    return pa.table({n: pa.array(v, t) for (n, v), t in zip(rows.items(), types, strict=True)})


def column_values(column: pa.ChunkedArray, kind: str) -> NDArray[np.generic]:
    """Return a column as numbers, dates or texts, with NaN, NaT or None for null."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if kind == "category":
        return np.array(column.cast(pa.string()).to_pylist(), dtype=object)
    if pa.types.is_temporal(column.type) and not pa.types.is_duration(column.type):
        if pa.types.is_time(column.type):
            column = column.cast(pa.string())
            return np.array(column.to_pylist(), dtype=object)
        stamps = (
            column.cast(pa.timestamp("us")) if not pa.types.is_timestamp(column.type) else column
        )
        return np.array(stamps.to_numpy(), dtype="datetime64[us]")
    if pa.types.is_duration(column.type):
        column = column.cast(pa.int64())
    return np.asarray(column.cast(pa.float64()).to_numpy(), dtype=np.float64)
