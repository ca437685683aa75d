"""Publishing: shards first, the manifest last, then the card that follows from it.

Whatever is written before the manifest is invisible to readers and is found again by a rerun. Two
runs may publish to one destination at the same time: each version is the work of one of them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pyarrow as pa

from prefect_augment.balancing import class_order
from prefect_augment.datatypes import (
    ApprovalDecision,
    BalancePlan,
    Commit,
    DatasetFacts,
    DatasetRef,
    GateReport,
    ModelRef,
    Recipe,
    ReportRef,
    ShardFact,
    Verdict,
)
from prefect_augment.errors import CommitConflictError, IntegrityError, SchemaError
from prefect_augment.manifest import (
    Manifest,
    PublishedFile,
    PublishedModel,
    commit,
    find_commit,
    latest_version,
    probe_exclusive,
    read_manifest,
)
from prefect_augment.params import Publish
from prefect_augment.reading.staged import load_facts
from prefect_augment.registry import check_shard_format
from prefect_augment.shards.formats import label_names, put_once, read_shard, write_shards
from prefect_augment.stages.assemble import Portion, assemble, check_wishes
from prefect_augment.stages.card import refresh_card
from prefect_augment.stages.export import check_export, export_newest
from prefect_augment.stages.leases import drop_lease, lease
from prefect_augment.staging import stage_key
from prefect_augment.storage import Store, sha256_hex

__all__ = ["check_destination", "dataset_key", "publish", "software_versions"]

logger = logging.getLogger(__name__)

ALGORITHM_VERSION = 1

_SOFTWARE = (
    "prefect-augment",
    "prefect",
    "pyarrow",
    "pandas",
    "numpy",
    "scikit-learn",
    "imbalanced-learn",
    "fsspec",
    "pillow",
    "albumentations",
    "opencv-python-headless",
    "torch",
)


def publish(
    *,
    dataset: DatasetRef,
    plan: BalancePlan,
    recipe: Recipe,
    verdict: Verdict | None,
    gate: GateReport | None,
    classic: DatasetRef | None,
    models: Sequence[ModelRef],
    report: ReportRef | None,
    publish: Publish,
    params: dict[str, Any],
    store: Store,
    approval: ApprovalDecision | None = None,
    on_progress: Callable[[float, str], None] | None = None,
) -> Commit:
    """Publish a version: what the recipe has of real, classic and synthetic records, with its proof.

    Parameters
    ----------
    dataset : DatasetRef
        Outcome of ingest.
    plan : BalancePlan
        Its strata are those of the recipe.
    recipe : Recipe
        Records and weights per stratum.
    verdict : Verdict or None
        None where nothing was compared on a hold-out.
    gate : GateReport or None
        Needed where the recipe has synthetic records.
    classic : DatasetRef or None
        Needed where the recipe has classic records.
    models : sequence of ModelRef
        Models whose records are published.
    report : ReportRef or None
        Its files are copied beside the version.
    publish : Publish
        Origins, duplicates, the format and size of shards, and where an export goes after the commit.
    params : dict
        The run's wishes as JSON, for the record; without secrets.
    store : Store
        The destination.
    approval : ApprovalDecision, optional
        Who let the version out, for the record.
    on_progress : callable, optional
        ``(fraction in [0, 1], what is being done)``.

    Returns
    -------
    Commit
        ``created`` is False where a version of the same inputs was there already.

    Raises
    ------
    SchemaError
        If the destination holds a dataset of another schema or label.
    ParameterError, EmptyClassError
        If recipe, plan and wishes do not fit together.
    IntegrityError
        If staged records are missing or damaged.
    CommitConflictError
        If another run published meanwhile, and what is here does not follow from it.
    StorageError
        If the destination cannot be written.
    """
    say = on_progress or (lambda fraction, text: None)
    facts = load_facts(dataset, store)
    check_wishes(publish, recipe, plan)
    if publish.export:
        check_export(store, publish.export)
    check_shard_format(publish.format, modality=facts.modality)
    key = dataset_key(dataset, recipe, verdict, gate, classic, models, publish)
    done = find_commit(store, key)
    if done is None:
        check_destination(store, facts)
        # Shards that are there already, of an older version or of a killed run, stay until they are named.
        with lease(store, "writing", f"publish-{key}"):
            if not store.is_local:
                probe_exclusive(store)
            say(0.0, "putting records together")
            assembled = assemble(
                store=store,
                facts=facts,
                plan=plan,
                recipe=recipe,
                gate=gate,
                classic=classic,
                publish=publish,
            )
            shards = _write_portions(store, assembled.portions, facts, publish, say)
            # Quarantine holds the source's own lines: it stays behind where no real record goes out.
            quarantine = _copy_quarantine(store, facts) if "real" in publish.origins else ()
            fields = {
                "dataset_key": key,
                "class_counts": _class_counts(shards),
                "shards": shards,
                "plan": plan.classes,
                "recipe": recipe,
                "verdict": verdict,
                "gate": gate.classes if gate else (),
                "models": tuple(_model(m) for m in models),
                "params": params,
                "approval": approval,
                "quarantine": quarantine,
                "notes": (*facts.notes, *assembled.notes),
            }
            say(0.9, "writing the manifest")
            build = partial(_manifest, store=store, facts=facts, report=report, fields=fields)
            done = commit(store, build, dataset_key=key)
    else:
        # A run that was killed right after its commit would keep removals out for a day.
        drop_lease(store, "writing", f"publish-{key}")
    refresh_card(store)
    if publish.export:
        say(0.95, f"exporting to {publish.export}")
        export_newest(store, publish.export)
    say(1.0, f"version {done.version}")
    logger.info(
        "%s version %d of %s. %s",
        "Published" if done.created else "Nothing new: the same inputs are",
        done.version,
        store.uri,
        recipe.sentence,
    )
    return done


def _manifest(
    version: int,
    parent: Manifest | None,
    *,
    store: Store,
    facts: DatasetFacts,
    report: ReportRef | None,
    fields: dict[str, Any],
) -> Manifest:
    """Write what lies under the version's number, and return its manifest."""
    _check_follows(store, facts, parent)
    files = _copy_report(store, report, version)
    pages = [f.path for f in files if f.path.endswith("/report.html")]
    return Manifest(
        version=version,
        parent=parent.version if parent else None,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        label=facts.label,
        label_type=facts.label_type,
        source_schema=facts.schema_digest,
        columns=facts.columns,
        ledger=_copy_ledger(store, facts, version),
        report=pages[0] if pages else "",
        report_files=files,
        n_quarantined=facts.n_quarantined,
        holdout_uri=facts.holdout_uri,
        holdout_digest=facts.holdout_digest,
        software=software_versions(),
        **fields,
    )


def dataset_key(
    dataset: DatasetRef,
    recipe: Recipe,
    verdict: Verdict | None,
    gate: GateReport | None,
    classic: DatasetRef | None,
    models: Sequence[ModelRef],
    publish: Publish,
) -> str:
    """Return the name of a version's inputs: equal inputs are published once.

    The report is left out: other pictures are no other dataset. So is where a copy goes.
    """
    written = publish.model_dump(mode="json", exclude={"export"})
    made_from = [dataset.key, dataset.digest]
    made_from += [gate.key] if gate else []
    made_from += [classic.key, classic.digest] if classic else []
    made_from += sorted(m.digest for m in models)
    return stage_key(
        "publish",
        algorithm_version=ALGORITHM_VERSION,
        params={"publish": written, "recipe": recipe, "verdict": verdict},
        inputs=made_from,
    )


# --- what a destination takes -----------------------------------------------------------------


def check_destination(store: Store, dataset: DatasetRef | DatasetFacts) -> None:
    """Refuse a destination whose dataset is another one; to be called before anything is trained.

    Parameters
    ----------
    store : Store
        The destination.
    dataset : DatasetRef or DatasetFacts
        Outcome of ingest.

    Raises
    ------
    SchemaError
        If its newest version has another label column, another type of it, or other columns.
    CommitConflictError
        If its records were split in another way.
    """
    facts = load_facts(dataset, store) if isinstance(dataset, DatasetRef) else dataset
    latest = latest_version(store)
    if latest is None:
        return
    there = read_manifest(store, latest)
    advice = "choose another destination, or a source with the same columns"
    if (there.label, there.label_type) != (facts.label, facts.label_type):
        raise SchemaError(
            f"{store.uri} holds a dataset labelled by {there.label!r} ({there.label_type}), the source is labelled by "
            f"{facts.label!r} ({facts.label_type}); {advice}."
        )
    if there.source_schema != facts.schema_digest:
        raise SchemaError(
            f"{store.uri} holds a dataset of another schema: {_difference(there, facts)}; {advice}."
        )
    _check_follows(store, facts, there)


def _difference(there: Manifest, facts: DatasetFacts) -> str:
    old = {c.name: c.arrow_type for c in there.columns}
    new = {c.name: c.arrow_type for c in facts.columns}
    said = [f"column {name!r} is new" for name in new if name not in old]
    said += [f"column {name!r} is gone" for name in old if name not in new]
    said += [
        f"column {name!r} was {old[name]} and is {new[name]}"
        for name in new
        if name in old and old[name] != new[name]
    ]
    return "; ".join(said) or "the columns are in another order, or differ in what their types hold"


def _check_follows(store: Store, facts: DatasetFacts, parent: Manifest | None) -> None:
    """Refuse to publish a split that takes back what the parent's ledger says of any record."""
    if parent is None or parent.ledger is None or not facts.ledger:
        return
    if sha256_hex(store.read(facts.ledger)) == parent.ledger.sha256:
        return
    theirs = read_shard(store, parent.ledger.path, sha256=parent.ledger.sha256)
    ours = read_shard(store, facts.ledger)
    if theirs.column_names == ours.column_names and not _lost(theirs, ours):
        return
    raise CommitConflictError(
        f"version {parent.version} of {store.uri} was published from other records while this run worked, and its "
        "split does not go on in this one. Nothing is lost: run again, and the new run inherits that split.",
        version=parent.version,
    )


def _lost(theirs: pa.Table, ours: pa.Table) -> int:
    """Count the entries of their ledger that ours has not, or has in another part.

    A label may have been corrected since; that moves no record.
    """
    names = ["key", "occurrence", "part"]
    ours = ours.cast(theirs.schema).select(names)
    return int(theirs.select(names).join(ours, keys=names, join_type="left anti").num_rows)


# --- what is written --------------------------------------------------------------------------


def _write_portions(
    store: Store,
    portions: Sequence[Portion],
    facts: DatasetFacts,
    publish: Publish,
    say: Callable[[float, str], None],
) -> tuple[ShardFact, ...]:
    shards: list[ShardFact] = []
    classes = class_order([n for p in portions for n in label_names(p.table[facts.label].unique())])
    for i, portion in enumerate(portions):
        say(0.1 + 0.8 * i / len(portions), f"writing {portion.split} {portion.origin}")
        shards += write_shards(
            store,
            portion.finished(),
            prefix="data",
            stem=f"{portion.split}-{portion.origin}",
            split=portion.split,
            origin=portion.origin,
            label=facts.label,
            max_records=publish.shard_records,
            max_bytes=publish.shard_mib << 20,
            shard_format=publish.format,
            classes=classes,
        )
    return tuple(shards)


def _class_counts(shards: Sequence[ShardFact]) -> dict[str, dict[str, dict[str, int]]]:
    """Return split -> class -> origin -> records."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for shard in shards:
        classes = counts.setdefault(shard.split, {})
        for name, n in shard.class_counts.items():
            origins = classes.setdefault(name, {})
            origins[shard.origin] = origins.get(shard.origin, 0) + n
    return counts


def _copy_quarantine(store: Store, facts: DatasetFacts) -> tuple[ShardFact, ...]:
    copied = []
    for i, shard in enumerate(facts.quarantine):
        path = f"_quarantine/quarantine-{i:05d}-{shard.sha256[:12]}.parquet"
        put_once(store, path, _read_staged(store, shard.path))
        copied.append(shard.model_copy(update={"path": path}))
    return tuple(copied)


def _copy_ledger(store: Store, facts: DatasetFacts, version: int) -> PublishedFile | None:
    if not facts.ledger:
        return None
    data = _read_staged(store, facts.ledger)
    path = f"_splits/v{version:08d}.parquet"
    if not _claim(store, path, data):
        path = f"_splits/v{version:08d}-{sha256_hex(data)[:12]}.parquet"
        put_once(store, path, data)
    return _published(path, data)


def _copy_report(store: Store, report: ReportRef | None, version: int) -> tuple[PublishedFile, ...]:
    """Copy the report's files to ``_reports/v…/``, or beside it where another run's are there.

    A run that was killed, or lost the race for this number, may have left files of its own under the
    plain name; no object that a manifest may name is ever overwritten.
    """
    if report is None:
        return ()
    found = {name: _read_staged(store, f"{report.prefix}/{name}") for name in sorted(report.files)}
    folder = f"_reports/v{version:08d}"
    if not all(_claim(store, f"{folder}/{name}", data) for name, data in found.items()):
        digest = hashlib.sha256("".join(map(sha256_hex, found.values())).encode()).hexdigest()
        folder += f"-{digest[:12]}"
        for name, data in found.items():
            put_once(store, f"{folder}/{name}", data)
    return tuple(_published(f"{folder}/{name}", data) for name, data in found.items())


def _claim(store: Store, path: str, data: bytes) -> bool:
    """Put the object where there is none; return whether what is there now is this one."""
    return store.put_if_absent(path, data) or store.read(path) == data


def _read_staged(store: Store, path: str) -> bytes:
    try:
        return store.read(path)
    except FileNotFoundError as exc:
        raise IntegrityError(
            f"{store.uri}/{path} is gone from staging; run again, it is made anew.", path=path
        ) from exc


def _published(path: str, data: bytes) -> PublishedFile:
    return PublishedFile(path=path, n_bytes=len(data), sha256=sha256_hex(data))


def _model(model: ModelRef) -> PublishedModel:
    fields = model.model_dump()
    return PublishedModel(**{name: fields[name] for name in PublishedModel.model_fields})


def software_versions() -> dict[str, str]:
    """Return the installed version of every package that shapes the bytes."""
    found = {"python": platform.python_version()}
    for name in _SOFTWARE:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # run from a source tree, or a part that is not installed
    return found
