"""Anomalies: how badly a model explains each record, and which exceed what is normal on validation records.

Two passes: scores are staged shard by shard; then, with all scores in memory (some tens of bytes per
record), threshold and ranks are computed and the result is written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import roc_auc_score

from prefect_augment.array_types import Bool, Float, Int32
from prefect_augment.errors import ParameterError
from prefect_augment.figures.latent_charts import Scores, scores_chart
from prefect_augment.latents.adapter import View
from prefect_augment.latents.base import NOT_SUMMED, Job, Progress, head
from prefect_augment.latents.image_adapter import open_view
from prefect_augment.loading.latents import ERROR_MAP
from prefect_augment.params import Anomalies
from prefect_augment.schema import LatentRef, ShardInfo
from prefect_augment.shards.base import label_names
from prefect_augment.shards.staged import iter_shards

COLUMNS = ("score", "anomaly", "rank", ERROR_MAP)
N_SHOWN = 8  # of the strangest records of validation records
# With fewer records beyond it a quantile is mostly chance.
MIN_BEYOND = 10


def anomalies(job: Job, params: Anomalies, on_progress: Progress | None) -> LatentRef:
    """Score every record, flag those beyond the threshold, and rank all.

    Normal are the classes that the model was trained on: all, or those of :func:`.select_classes`. The
    Parquet has ``aug_id``, the label, ``aug_split``, ``aug_origin``, ``score`` (float64, higher is more
    anomalous), ``anomaly`` (bool), ``rank`` (int64, from 1) and, of images, ``error_map`` (fixed_size_list of
    float32 at the model's resolution, row by row; null if not flagged). ``summary`` has the threshold, the
    counts per part (without the hold-out) and class and, if validation has other classes, their AUROC.

    Raises ParameterError for a model without latents, or without normal validation records; DivergedError
    for a score that is not finite.
    """
    view = open_view(job, "latents")
    normal = view.strata.classes

    def score(table: pa.Table, shard: ShardInfo) -> tuple[pa.Table, Mapping[str, Any]]:
        columns = head(table, job.info.label, shard, COLUMNS)
        scores = view.fitted.anomaly_scores(view.encoder.encode(table))
        return pa.table({**columns, "score": view.finite(scores, "scores").astype(np.float64)}), {}

    # First pass: staged scores, which are removed with the receipts at the end.
    staged, _ = job.each_shard(score, on_progress, folder="scores")
    scored = _Scored.read(job, staged, normal)
    beyond = scored.normal_validation
    if not len(beyond):
        raise ParameterError(
            f"the threshold needs validation records of {', '.join(map(repr, normal))}, and there are none; "
            "use ingested records, with validation among output.parts."
        )
    threshold = float(np.quantile(beyond, 1 - params.normal_share, method="higher"))
    shards = _write(view, scored, threshold)
    notes = []
    if len(beyond) * params.normal_share < MIN_BEYOND:
        notes.append(
            f"the threshold is estimated on {len(beyond)} normal validation records, "
            f"{len(beyond) * params.normal_share:.1f} of them beyond it; take a larger "
            "anomalies.normal_share, or more records, for a steadier one."
        )
    other = scored.scores[~scored.is_normal]
    chart = Scores(beyond, scored.scores[scored.is_normal], other, threshold)
    pictures = scores_chart(chart), view.strange_picture(scored.strangest_validation)
    return job.finish(
        shards,
        summary={
            "normal": list(normal),
            "threshold": threshold,
            "n_normal_validation": len(beyond),
            "validation_auroc": scored.auroc,
            "n_flagged": int((scored.scores > threshold).sum()),
            "counts": scored.counts(threshold),
        },
        pictures=job.folder.put_pictures(*pictures),
        notes=notes,
    )


@dataclass(frozen=True)
class _Scored:
    """All scores, in the order of the shards, with part and class as codes."""

    scores: Float
    part_codes: Int32
    class_codes: Int32
    parts: tuple[str, ...]
    classes: tuple[str, ...]
    normal: tuple[str, ...]
    strangest_validation: tuple[str, ...]  # ids, the highest scores first

    @classmethod
    def read(cls, job: Job, shards: Sequence[ShardInfo], normal: Sequence[str]) -> "_Scored":
        scores, parts, classes = [], _Codes(), _Codes()
        strangest: list[tuple[float, str]] = []
        columns = ["score", "aug_split", job.info.label, "aug_id"]
        for table in iter_shards(job.folder.store, shards, columns):
            scores.append(table["score"].to_numpy())
            validation = table.filter(pc.equal(table["aug_split"], "validation")).sort_by(
                [("score", "descending"), ("aug_id", "ascending")]
            )[:N_SHOWN]
            strangest += zip(
                (-validation["score"].to_numpy()).tolist(),
                validation["aug_id"].to_pylist(),
                strict=True,
            )
            strangest = sorted(strangest)[:N_SHOWN]
            parts.add(table["aug_split"].to_pylist())
            classes.add(label_names(table[job.info.label]))
        return cls(
            np.concatenate(scores), parts.codes, classes.codes, tuple(parts.index),
            tuple(classes.index), tuple(normal),
            tuple(aug_id for _, aug_id in strangest),
        )  # fmt: skip

    @property
    def is_normal(self) -> Bool:
        return np.isin(np.array(self.classes, dtype=object), self.normal)[self.class_codes]

    @property
    def is_validation(self) -> Bool:
        return np.array([part == "validation" for part in self.parts])[self.part_codes]

    @property
    def normal_validation(self) -> Float:
        return self.scores[self.is_validation & self.is_normal]

    @property
    def auroc(self) -> float | None:
        """AUROC on validation records with the other classes as anomalies; None without any."""
        truth = ~self.is_normal[self.is_validation]
        if not truth.any() or truth.all():
            return None
        return float(roc_auc_score(truth, self.scores[self.is_validation]))

    def counts(self, threshold: float) -> dict[str, dict[str, dict[str, int]]]:
        """Return part -> class -> records and flagged ones, without the hold-out."""
        shape = len(self.parts), len(self.classes)
        every, flagged = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        beyond = self.scores > threshold
        np.add.at(every, (self.part_codes, self.class_codes), 1)
        np.add.at(flagged, (self.part_codes[beyond], self.class_codes[beyond]), 1)
        return {
            part: {
                name: {"records": int(every[i, k]), "flagged": int(flagged[i, k])}
                for k, name in sorted(enumerate(self.classes), key=lambda pair: pair[1])
                if every[i, k]
            }
            for i, part in enumerate(self.parts)
            if part != NOT_SUMMED
        }


class _Codes:
    """Names that come in batches, each coded by the order of first appearance."""

    def __init__(self) -> None:
        self.index: dict[str, int] = {}
        self._batches: list[Int32] = []

    def add(self, names: Sequence[str]) -> None:
        codes = [self.index.setdefault(name, len(self.index)) for name in names]
        self._batches.append(np.array(codes, dtype=np.int32))

    @property
    def codes(self) -> Int32:
        return np.concatenate(self._batches)


def _write(view: View, scored: _Scored, threshold: float) -> list[ShardInfo]:
    """Write the scores with flag, rank and location; equal scores rank in the records' order."""
    job, ranks = view.job, np.empty(len(scored.scores), dtype=np.int64)
    ranks[np.argsort(-scored.scores, kind="stable")] = np.arange(1, len(ranks) + 1)
    columns = [*dict.fromkeys(["aug_id", job.info.label, *view.where_columns])]
    written: list[ShardInfo] = []
    start = 0
    for i, shard in enumerate(job.shards):
        stop = start + shard.n_records

        def tables(shard: ShardInfo = shard, start: int = start) -> Any:
            for table in job.tables([shard], columns):
                rows = slice(start, start + table.num_rows)
                start = rows.stop
                flags = scored.scores[rows] > threshold
                results = {"score": scored.scores[rows], "anomaly": flags, "rank": ranks[rows]}
                maps = view.where(table, flags)
                yield pa.table({**head(table, job.info.label, shard), **results, **maps})

        written += job.folder.put(
            tables(),
            shard.n_records,
            f"{shard.split}-{i:05d}",
            split=shard.split,
            origin=shard.origin,
        )
        start = stop
    return written
