"""Filter candidates: which synthetic records may be used, and why the others may not."""

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from prefect_augment.array_types import Int
from prefect_augment.encoding.arrays import Labelled, Matrix
from prefect_augment.experiment.evaluator import Evaluator, FilterQuery, best_first
from prefect_augment.experiment.evaluators import open_evaluator
from prefect_augment.schema import DatasetRef, Experiment, FilterResult
from prefect_augment.shards.staged import load_info, read_shards, write_candidates
from prefect_augment.storage import Stage, Store
from prefect_augment.synthesis.soft_labels import expand, expanded_rows, learn, share_sums


def filter_candidates(experiment: Experiment, candidates: DatasetRef, store: Store) -> FilterResult:
    """Check staged candidates against training and validation records; stage what is kept and dropped.

    Kept records are ordered by stratum and rank; dropped ones have their reason.
    """
    stage = Stage(store, "filter", experiment.key("filter", candidates.key))
    return stage.run(FilterResult, lambda: _filter(experiment, candidates, stage))


def _filter(experiment: Experiment, candidates: DatasetRef, stage: Stage) -> FilterResult:
    store, plan, params = stage.store, experiment.plan, experiment.params
    sampled = load_info(candidates, store)
    result = partial(
        FilterResult,
        root=store.uri,
        path=stage.outcome_path,
        key=stage.key,
        purpose=params.quality.purpose,
    )
    if not sampled.shards:
        notes = ("No synthetic records were drawn.",)
        return result(classes=(), kept=(), dropped=(), feature_space="", notes=notes)
    evaluator = open_evaluator(store, experiment)
    seen = evaluator.with_model_records()
    data, info = seen.records, evaluator.info
    table = read_shards(store, sampled.shards)
    names = {name: i for i, name in enumerate(data.strata_names)}
    strata = np.array([names[s] for s in table["aug_stratum"].to_pylist()], dtype=np.int64)
    ordinals = table["aug_ordinal"].to_numpy()
    outcome = seen.filter(
        FilterQuery(
            training=np.flatnonzero(~data.is_validation),
            validation=np.flatnonzero(data.is_validation),
            candidates=Labelled(evaluator.encode(table), strata),
            ordinals=ordinals,
            seed=params.seed,
            metrics=True,
        )
    )
    table = table.append_column("aug_score", pa.array(outcome.score))
    order = best_first(outcome, strata, ordinals, params.quality)
    ranks = np.concatenate([np.arange(n) for n in np.bincount(strata[order])] or [order])
    kept = table.take(pa.array(order)).append_column("aug_rank", pa.array(ranks))
    soft_labels: dict[str, Any] = {}
    if plan.soft_labels:
        kept, soft_labels = _with_soft_labels(kept, strata[order], evaluator, params.seed)
    dropped_rows = np.flatnonzero(~outcome.kept)
    dropped = table.take(pa.array(dropped_rows)).append_column(
        "aug_reason", pa.array(outcome.reason[dropped_rows].astype(str))
    )
    rules = sampled.extra.get("rules", {})
    return result(
        classes=outcome.strata,
        kept=write_candidates(stage, kept, "kept", info.label),
        dropped=write_candidates(stage, dropped, "dropped", info.label),
        feature_space=outcome.feature_space,
        metrics=dict(outcome.metrics),
        notes=(
            *(sampled.notes if sampled.stage == "import" else ()),
            *([rules["said"]] if rules else []),
            *outcome.notes,
            *soft_labels.pop("notes", ()),
        ),
        rules=rules,
        **soft_labels,
    )


def _with_soft_labels(
    kept: pa.Table, strata: Int, evaluator: Evaluator, seed: int
) -> tuple[pa.Table, dict[str, Any]]:
    """Kept records with one row per likely class, and the fields for the result."""
    data = evaluator.records
    assert isinstance(data, Matrix)
    training = np.flatnonzero(~data.is_validation)
    X, ensemble = evaluator.encode(kept), learn(data, training, seed=seed)
    soft_labels = expand(data, evaluator.plan, training, X, strata, ensemble)
    rows = expanded_rows(kept, data, soft_labels)
    # A row's rank is its place within its stratum.
    counts = np.bincount(soft_labels.strata, minlength=len(data.strata_names))
    ranks = np.concatenate([np.arange(n) for n in counts])
    rows = rows.set_column(rows.column_names.index("aug_rank"), "aug_rank", pa.array(ranks))
    members = ", ".join(f"{kind} {share:.0%}" for kind, share in soft_labels.teacher.items())
    note = (
        f"{kept.num_rows:,} synthetic records became {rows.num_rows:,} rows, one for each class "
        f"that an ensemble ({members}) finds likely; aug_weight has how likely."
    )
    return rows, {
        "rows": {k: int(n) for k, n in zip(data.strata_names, counts, strict=True) if n},
        "shares": share_sums(soft_labels.strata, soft_labels.shares, data.strata_names),
        "notes": (note,),
    }
