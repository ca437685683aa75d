"""Classify: the class in which a model finds a record most likely, given how common classes are."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import logsumexp

from prefect_augment.array_types import Float
from prefect_augment.errors import EmptyClassError
from prefect_augment.latents.adapter import View
from prefect_augment.latents.base import NOT_SUMMED, Job, Strata, head
from prefect_augment.params import Classification
from prefect_augment.schema import LatentRef, ShardInfo
from prefect_augment.shards.base import label_names

COLUMNS = ("predicted", "prob")


def classify(view: View, params: Classification) -> LatentRef:
    """Write the most likely class of every record.

    By Bayes' rule from the model's log p(record | stratum) and the prior; a class of several strata takes
    their sum. The Parquet has ``aug_id``, the label, ``aug_split``, ``aug_origin``, ``predicted`` (in the
    label's type) and ``prob`` (float32). ``scores`` has accuracy, balanced accuracy, recall per class and
    predictions per true class for each part but the hold-out.

    Raises EmptyClassError for the prior ``observed`` without training records of the model's classes.
    """
    job, strata = view.job, view.strata
    log_prior = _log_prior(job, strata, params.prior)
    first = [strata.of_class.index(name) for name in strata.classes]

    def make(table: pa.Table, shard: ShardInfo) -> tuple[pa.Table, Mapping[str, Any]]:
        columns = head(table, job.info.label, shard, COLUMNS)
        likely = view.fitted.class_log_likelihoods(view.encoder.encode(table))
        proba = posterior(view.finite(likely, "likelihoods"), log_prior, strata)
        best = proba.argmax(axis=1)
        predicted = strata.labels.take(pa.array(np.array(first)[best]))
        probs = proba[np.arange(len(best)), best].astype(np.float32)
        names = label_names(table[job.info.label])
        predictions = [strata.classes[k] for k in best.tolist()]
        # Nested mappings, because keys of JSON are text.
        confusion: dict[str, dict[str, int]] = {}
        for (true, guess), n in Counter(zip(names, predictions, strict=True)).items():
            confusion.setdefault(true, {})[guess] = n
        sums = {} if shard.split == NOT_SUMMED else {shard.split: confusion}
        return pa.table({**columns, "predicted": predicted, "prob": probs}), sums

    shards, confusions = job.each_shard(make)
    scores = {part: _scores(confusion) for part, confusion in confusions.items()}
    return job.finish(
        shards, summary={"prior": params.prior, "classes": list(strata.classes), "parts": scores}
    )


def posterior(log_likelihoods: Float, log_prior: Float, strata: Strata) -> Float:
    """Return class probabilities, shape (n, n_classes), from log p(record | stratum), shape (n, n_strata).

    ``log_prior`` has shape (n_strata,); minus infinity leaves a stratum out.
    """
    joint = log_likelihoods + log_prior
    of_class = np.array([strata.classes.index(name) for name in strata.of_class])
    by_class = np.column_stack(
        [logsumexp(joint[:, of_class == k], axis=1) for k in range(len(strata.classes))]
    )
    proba: Float = np.exp(by_class - logsumexp(by_class, axis=1, keepdims=True))
    return proba


def _log_prior(job: Job, strata: Strata, prior: str) -> Float:
    """Return the log prior of each stratum; within a class always as observed in training records."""
    shards = [shard for shard in job.info.shards if shard.split == "training"]
    counts = np.zeros(len(strata.names))
    if prior == "observed" or len(strata.classes) < len(strata.names):
        columns = [job.info.label, *strata.encoder.by]
        for table in job.tables(shards, columns):
            codes = strata.codes(table)
            counts += np.bincount(codes[codes >= 0], minlength=len(counts))
        if prior == "observed" and not counts.sum():
            raise EmptyClassError(
                "no training record is of the model's classes, so the observed prior is unknown; use "
                "ingested records, or prior='balanced'."
            )
    if prior == "balanced":
        for name in strata.classes:
            rows = [i for i, other in enumerate(strata.of_class) if other == name]
            total = counts[rows].sum()
            counts[rows] = counts[rows] / total if total else 1 / len(rows)
    with np.errstate(divide="ignore"):
        log_prior: Float = np.log(counts / counts.sum())
    return log_prior


def _scores(confusion: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Return accuracy, recall and confusion of one part; a class that the model lacks counts as wrong."""
    totals = {name: sum(row.values()) for name, row in confusion.items()}
    right = {name: confusion[name].get(name, 0) for name in totals}
    recall = {name: right[name] / n for name, n in sorted(totals.items())}
    return {
        "n_records": sum(totals.values()),
        "accuracy": sum(right.values()) / sum(totals.values()),
        "balanced_accuracy": sum(recall.values()) / len(recall),
        "recall": recall,
        "confusion": {name: dict(sorted(row.items())) for name, row in sorted(confusion.items())},
    }
