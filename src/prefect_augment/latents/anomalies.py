"""Anomalies: how badly a model explains each record, and which exceed what is normal on validation records.

Two passes: scores are staged shard by shard; then, with all scores in memory (some tens of bytes per
record), threshold and ranks are computed and the result is written.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import roc_auc_score

from prefect_augment.array_types import Float
from prefect_augment.errors import ParameterError
from prefect_augment.figures.latent_charts import Scores, scores_chart
from prefect_augment.latents.adapter import View
from prefect_augment.latents.base import NOT_SUMMED, Job, head
from prefect_augment.loading.latents import ERROR_MAP
from prefect_augment.params import Anomalies
from prefect_augment.schema import LatentRef, ShardInfo
from prefect_augment.shards.base import label_names
from prefect_augment.shards.staged import iter_shards

COLUMNS = ("score", "anomaly", "rank", ERROR_MAP)
N_SHOWN = 8  # of the strangest records of validation records
# With fewer records beyond it a quantile is mostly chance.
MIN_BEYOND = 10


def anomalies(view: View, params: Anomalies) -> LatentRef:
    """Score every record, flag those beyond the threshold, and rank all.

    Normal are the classes that the model was trained on: all, or those of :func:`.select_classes`. The
    Parquet has ``aug_id``, the label, ``aug_split``, ``aug_origin``, ``score`` (float64, higher is more
    anomalous), ``anomaly`` (bool), ``rank`` (int64, from 1) and, of images, ``error_map`` (fixed_size_list of
    float32 at the model's resolution, row by row; null if not flagged). ``summary`` has the threshold, the
    counts per part (without the hold-out) and class and, if validation has other classes, their AUROC.

    Raises ParameterError without normal validation records, and DivergedError for a score that is not finite.
    """
    job, normal = view.job, view.strata.classes

    def score(table: pa.Table, shard: ShardInfo) -> tuple[pa.Table, Mapping[str, Any]]:
        columns = head(table, job.info.label, shard, COLUMNS)
        scores = view.fitted.anomaly_scores(view.encoder.encode(table))
        return pa.table({**columns, "score": view.finite(scores, "scores").astype(np.float64)}), {}

    # First pass: staged scores, which are removed with the receipts at the end.
    staged, _ = job.each_shard(score, folder="scores")
    scored, strangest = _read(job, staged)
    scores = scored["score"].to_numpy()
    is_normal = scored["name"].isin(normal).to_numpy()
    is_validation = (scored["part"] == "validation").to_numpy()
    beyond = scores[is_validation & is_normal]
    if not len(beyond):
        raise ParameterError(
            f"the threshold needs validation records of {', '.join(map(repr, normal))}, and there are none; "
            "use ingested records, with validation among output.parts."
        )
    threshold = float(np.quantile(beyond, 1 - params.normal_share, method="higher"))
    shards = _write(view, scores, threshold)
    notes = []
    if len(beyond) * params.normal_share < MIN_BEYOND:
        notes.append(
            f"the threshold is estimated on {len(beyond)} normal validation records, "
            f"{len(beyond) * params.normal_share:.1f} of them beyond it; take a larger "
            "anomalies.normal_share, or more records, for a steadier one."
        )
    chart = Scores(beyond, scores[is_normal], scores[~is_normal], threshold)
    pictures = scores_chart(chart), view.strange_picture(strangest)
    truth = ~is_normal[is_validation]  # of validation records, the other classes are the anomalies
    has_both = truth.any() and not truth.all()
    return job.finish(
        shards,
        summary={
            "normal": list(normal),
            "threshold": threshold,
            "n_normal_validation": len(beyond),
            "validation_auroc": float(roc_auc_score(truth, scores[is_validation]))
            if has_both
            else None,
            "n_flagged": int((scores > threshold).sum()),
            "counts": _counts(scored, threshold),
        },
        pictures=pictures,
        notes=notes,
    )


def _read(job: Job, shards: Sequence[ShardInfo]) -> tuple[pd.DataFrame, list[str]]:
    """Score, part and class of every record, in order, and the ids of the strangest validation records."""
    scored: list[pa.Table] = []
    strangest: list[tuple[float, str]] = []
    for table in iter_shards(
        job.folder.store, shards, ["score", "aug_split", job.info.label, "aug_id"]
    ):
        validation = table.filter(pc.equal(table["aug_split"], "validation"))
        scores = (-validation["score"].to_numpy()).tolist()
        strangest += zip(scores, validation["aug_id"].to_pylist(), strict=True)
        strangest = sorted(strangest)[:N_SHOWN]
        names = pa.array(label_names(table[job.info.label])).dictionary_encode()
        part = table["aug_split"].dictionary_encode()
        scored.append(pa.table({"score": table["score"], "part": part, "name": names}))
    frame = pa.concat_tables(scored).unify_dictionaries().to_pandas()
    return frame, [aug_id for _, aug_id in strangest]


def _counts(scored: pd.DataFrame, threshold: float) -> dict[str, dict[str, dict[str, int]]]:
    """Part -> class -> records and flagged ones, without the hold-out."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    summed = scored[scored["part"] != NOT_SUMMED]
    by = ["part", "name"]
    for (part, name), own in summed.groupby(by, observed=True, sort=False)["score"]:
        flagged = int((own > threshold).sum())
        counts.setdefault(str(part), {})[str(name)] = {"records": len(own), "flagged": flagged}
    return {part: dict(sorted(classes.items())) for part, classes in counts.items()}


def _write(view: View, scores: Float, threshold: float) -> list[ShardInfo]:
    """Write the scores with flag, rank and location; equal scores rank in the records' order."""
    job, ranks = view.job, np.empty(len(scores), dtype=np.int64)
    ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(ranks) + 1)
    columns = [*dict.fromkeys(["aug_id", job.info.label, *view.where_columns])]
    written: list[ShardInfo] = []
    start = 0

    def tables(shard: ShardInfo) -> Iterator[pa.Table]:
        nonlocal start
        for table in job.tables([shard], columns):
            rows = slice(start, start + table.num_rows)
            start = rows.stop
            flags = scores[rows] > threshold
            results = {"score": scores[rows], "anomaly": flags, "rank": ranks[rows]}
            maps = view.where(table, flags)
            yield pa.table({**head(table, job.info.label, shard), **results, **maps})

    for i, shard in enumerate(job.shards):
        written += job.put(tables(shard), shard.n_records, i, shard)
    return written
