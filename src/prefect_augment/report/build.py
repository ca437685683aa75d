"""The report of a run, built from results and staged records, and staged until it is published."""

import hashlib
import io
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefect_augment.augmentation.image_policy import ImagePolicy
from prefect_augment.augmentation.label_preservation import find_check
from prefect_augment.encoding.arrays import by_columns
from prefect_augment.encoding.pixels import DECODING_RULE
from prefect_augment.encoding.subsample import Sample, read_parts
from prefect_augment.encoding.tables import TableEncoder
from prefect_augment.evaluation.metrics.column_shapes import ColumnShape, column_values
from prefect_augment.evaluation.neighbours import FeatureSpace
from prefect_augment.experiment.audit import audit_list, audit_summary, why_not_audited
from prefect_augment.params import Classic
from prefect_augment.params.keys import step_key
from prefect_augment.report.contact_sheets import NEAREST_RULE, picture_sheets, single_pictures
from prefect_augment.report.drift import drift_since, find_previous
from prefect_augment.report.json import DoubtedLabel, Neighbour, ReportData
from prefect_augment.report.report import build_report, markdown_summary
from prefect_augment.schema import (
    ApprovalDecision,
    BalancePlan,
    DatasetInfo,
    FilterResult,
    Findings,
    HoldoutResult,
    ModelRef,
    Origin,
    Recipe,
    Release,
    ReportRef,
    Result,
    Verdict,
    software_versions,
)
from prefect_augment.shards.base import label_names, read_shard
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Stage, Store, read_result
from prefect_augment.synthesis.resume import read_training

logger = logging.getLogger(__name__)

Status = Literal["published", "proposed", "refused", "evaluated"]

N_NEIGHBOURS = 3  # per class: enough to see by eye, few enough to read
MAX_DOUBTED, MAX_DOUBTED_COLUMNS = 20, 30  # the columns that name a record are among them
MAX_TEXT = 60
MAX_SHAPES = 12
MAX_SHOWN = 200_000  # training records that synthetic ones are shown beside
SHOWN_COLUMNS = 8  # of a record
MARKDOWN_SHEETS = 4  # an artifact goes through the API: below a megabyte
# The page's charts that say most for their bytes; shown in the order of these names.
MARKDOWN_CHARTS = {
    "class_counts.png": "Classes before and after",
    "differences.png": "Differences on the hold-out",
}


def report(
    release: Release,
    store: Store,
    *,
    status: Status = "published",
    approval: ApprovalDecision | None = None,
) -> tuple[ReportRef, str]:
    """Build the report and stage its files; return them with a summary in markdown.

    Whatever the release lacks is shown as not run. ``status`` is what becomes of the run,
    ``approval`` who let the version out. The summary has two charts and the first sheets of images
    in it.
    """
    experiment, dataset = release.experiment, release.dataset
    why_no_audit = why_not_audited(experiment, release.scores)
    encoder = experiment.params.encoder.name
    findings = _with_diagnostics(release.findings, release.verdict, store)
    drift = None
    if release.recipe is not None:
        before = find_previous(store, release.key)
        drift = drift_since(before, release) if before else None
    check = None
    if dataset.modality == "image" and release.recipe is not None:
        params = experiment.params
        check = find_check(dataset, classic=params.classic, seed=params.seed, store=store)
    model = release.models[0] if release.models else None
    if not release.lets_synthetic_out:
        findings = findings.model_copy(update={"privacy": None})
    findings = findings.model_copy(
        update={"drift": drift, "training": read_training(model, store), "policy": check}
    )
    release = release.model_copy(
        update={
            "findings": findings,
            "verdict": release.verdict and release.verdict.without_paths(),
            # The report does not show how long a score took.
            "scores": tuple(s.model_copy(update={"seconds": 0.0}) for s in release.scores),
        }
    )
    shown = release.model_dump(mode="json", include={"recipe", "verdict", "scores", "findings"})
    models = [(m.digest, m.encoder_digest) for m in release.models]
    key = experiment.key(
        "report-page", shown, models, status, approval, why_no_audit, software_versions()
    )
    # Drawing takes seconds; a run that resumes after an approval or a crash reuses the page.
    stage = Stage(store, "report-page", key)
    page = stage.outcome(_Page)
    if page is None or not all(store.exists(f"{page.prefix}/{name}") for name in page.files):
        audit = audit_list(experiment, store) if why_no_audit is None else why_no_audit
        if summary := audit if isinstance(audit, str) else audit_summary(audit, encoder):
            logger.info("%s", summary)
        page = _draw(release, store, audit, status=status, approval=approval)
        stage.finish(page)
    notes = (drift.sentence,) if drift else ()
    ref = ReportRef(root=store.uri, prefix=page.prefix, files=page.files, notes=notes)
    return ref, page.summary


class _Page(Result):
    """The receipt of a report."""

    prefix: str
    files: tuple[str, ...]
    summary: str


def _with_diagnostics(findings: Findings, verdict: Verdict | None, store: Store) -> Findings:
    """Add the secondary results of the verdict's hold-out."""
    path = verdict.diagnostics if verdict else ""
    diagnostics = read_result(store, path, HoldoutResult) if path else None
    if diagnostics is None:
        return findings
    return findings.model_copy(
        update={n: getattr(diagnostics, n) for n in HoldoutResult.model_fields}
    )


def _draw(
    release: Release,
    store: Store,
    audit: pa.Table | str,  # or why there is none
    *,
    status: Status,
    approval: ApprovalDecision | None,
) -> _Page:
    experiment, dataset, plan = release.experiment, release.dataset, release.experiment.plan
    candidates, recipe, verdict = experiment.candidates, release.recipe, release.verdict
    if candidates is not None and not release.lets_synthetic_out:  # no class of them can be unsafe
        classes = tuple(
            c.model_copy(update={"checks": (), "verdict": "not tested"}) for c in candidates.classes
        )
        candidates = candidates.model_copy(update={"classes": classes})
    classic = experiment.params.classic if recipe is not None else None
    pictures, findings = experiment.params.report.pictures, release.findings
    model = release.models[0] if release.models else None
    encoder = experiment.params.encoder.name
    info = load_info(dataset, store)
    side_by_side: dict[str, Any] = {}
    sheets: dict[str, bytes] = {}
    if info.modality == "image":
        sheets = picture_sheets(store, info, plan, candidates, pictures=pictures, classic=classic)
    elif candidates is not None and candidates.kept and pictures != "none":
        side_by_side = _side_by_side(store, info, plan, candidates)
    doubted: dict[str, Any] = {}
    if not isinstance(audit, str) and pictures == "real":
        doubted = _doubted(audit, store, info)
    data = ReportData(
        title=store.uri.rstrip("/").rsplit("/", 1)[-1],
        label=info.label,
        status=status,
        approval=approval.sentence if approval else "",
        plan=plan,
        notes=info.notes,
        columns=info.columns,
        part_counts=info.part_counts,
        strategy_scores=tuple(s.model_copy(update={"path": ""}) for s in release.scores),
        verdict=verdict,
        recipe=recipe,
        candidates=candidates,
        counts_before=_before(plan),
        counts_after=_after(plan, recipe),
        weighted_counts=_weighted(plan, recipe),
        not_compared={c.label: c.note for c in plan.classes if not c.compared},
        quarantine=_quarantine(store, info),
        **side_by_side,
        **doubted,
        modality=info.modality,
        sheets=sheets,
        pictures=pictures,
        seed=experiment.params.seed,
        model_kind=model.kind if model else "",
        model_digest=model.digest if model else "",
        method_notes=(
            *(verdict.leaks if verdict else ()),
            *([audit] if isinstance(audit, str) and audit else ()),
            *([audit_summary(audit, encoder)] if encoder and not isinstance(audit, str) else ()),
            *(
                note
                for note in _notes(info, model, candidates, classic, sheets)
                if release.lets_synthetic_out or ALARM not in note
            ),
        ),
        digests={
            "ingested records": dataset.digest,
            **({"encoder": model.encoder_digest} if model else {}),
        },
        software=software_versions(),
        policy_sheet=store.read(findings.policy.picture)
        if findings.policy and pictures == "real"
        else None,
        findings=findings,
    )
    files = build_report(data)
    if not isinstance(audit, str):
        buffer = io.BytesIO()
        pq.write_table(audit, buffer)
        files["audit.parquet"] = buffer.getvalue()
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    key = step_key("report", inputs=[digests])
    prefix = f"_staging/report/{key}"
    for name, content in sorted(files.items()):
        store.put_if_absent(f"{prefix}/{name}", content)
    images = {text: files[name] for name, text in MARKDOWN_CHARTS.items() if name in files}
    images |= {f"Pictures of {name}": png for name, png in list(sheets.items())[:MARKDOWN_SHEETS]}
    return _Page(
        prefix=prefix, files=tuple(sorted(files)), summary=markdown_summary(data, images=images)
    )


ALARM = ": the synthetic records are unsafe: "


def _notes(
    info: DatasetInfo,
    model: ModelRef | None,
    candidates: FilterResult | None,
    classic: Classic | None,
    sheets: Mapping[str, bytes],
) -> tuple[str, ...]:
    notes = (model.notes if model else ()) + (candidates.notes if candidates else ())
    if info.modality == "image":
        rules = (DECODING_RULE, *((ImagePolicy.from_params(classic).rule,) if classic else ()))
        notes = (*rules, *notes, *((NEAREST_RULE,) if sheets and candidates else ()))
    return notes


def _before(plan: BalancePlan) -> dict[str, dict[Origin, int]]:
    return {name: {"real": n} for name, n in plan.real_counts.items()}


def _after(plan: BalancePlan, recipe: Recipe | None) -> dict[str, dict[Origin, int]]:
    if recipe is None:
        return {}
    counts = _before(plan)
    added: dict[Origin, Mapping[str, int]] = {
        "synthetic": recipe.synthetic,
        "classic": recipe.classic,
        "copy": recipe.copies,
    }
    for entry in plan.classes:
        for origin, per_stratum in added.items():
            n = per_stratum.get(entry.name, 0)
            if n:
                counts[entry.label][origin] = counts[entry.label].get(origin, 0) + n
    return counts


def _weighted(plan: BalancePlan, recipe: Recipe | None) -> dict[str, float]:
    if recipe is None:
        return {}
    totals: dict[str, float] = {}
    for entry in plan.classes:
        n = entry.n_real + recipe.counted(entry.name)
        weight = recipe.class_weight.get(entry.name, 1.0)
        totals[entry.label] = totals.get(entry.label, 0.0) + n * weight
    return totals


def _quarantine(store: Store, info: DatasetInfo) -> dict[str, int]:
    counts = Counter[str]()
    for shard in info.quarantine:
        counts.update(read_shard(store, shard.path, columns=["reason"])["reason"].to_pylist())
    return dict(counts)


def _side_by_side(
    store: Store, info: DatasetInfo, plan: BalancePlan, candidates: FilterResult
) -> dict[str, Any]:
    """Fields of the report that compare synthetic with real records of a table."""
    synthetic = pa.concat_tables([read_shard(store, shard.path) for shard in candidates.kept])
    by, sample = by_columns(plan), Sample(MAX_SHOWN, 0)
    (training,) = read_parts(store, info, ["training"], by=by, sample=sample)
    # With soft labels records of every class are drawn.
    wanted = [c.label for c in plan.classes if c.n_synthetic and c.target > c.n_real]
    rare = tuple(dict.fromkeys(wanted))
    return {
        "rare_classes": rare,
        "column_shapes": _shapes(training, synthetic, info, rare),
        "neighbours": _neighbours(training, synthetic, info, by_columns(plan), rare),
    }


def _shapes(
    training: pa.Table, synthetic: pa.Table, info: DatasetInfo, rare: Sequence[str]
) -> dict[str, ColumnShape]:
    """Values of the learnt columns over the rare classes, real beside synthetic."""
    columns: dict[str, Literal["numeric", "category"]] = {
        c.name: c.kind for c in info.columns if c.kind == "numeric" or c.kind == "category"
    }
    sides = [_of_classes(training, info.label, rare), _of_classes(synthetic, info.label, rare)]
    return {
        name: ColumnShape(kind, *(column_values(side.column(name), kind) for side in sides))
        for name, kind in list(columns.items())[:MAX_SHAPES]
    }


def _of_classes(table: pa.Table, label: str, names: Sequence[str]) -> pa.Table:
    return table.filter(pc.is_in(pa.array(label_names(table[label])), pa.array(list(names))))


def _neighbours(
    training: pa.Table,
    synthetic: pa.Table,
    info: DatasetInfo,
    by: Sequence[str],
    rare: Sequence[str],
) -> tuple[Neighbour, ...]:
    """A few synthetic records of each class beside the nearest real training record."""
    encoder = TableEncoder.fit(training, columns=info.columns, label=info.label, by=by)
    space = FeatureSpace.of(encoder.encode(training), encoder.is_category)
    shown = [c.name for c in info.columns if c.kind in ("numeric", "category")][:SHOWN_COLUMNS]
    neighbours = []
    for name in rare:
        real, drawn = (_of_classes(side, info.label, [name]) for side in (training, synthetic))
        drawn = drawn.slice(0, N_NEIGHBOURS)
        if not real.num_rows or not drawn.num_rows:
            continue
        distances = space.distances(
            space.place(encoder.encode(drawn)), space.place(encoder.encode(real))
        )
        for i, nearest in enumerate(np.argmin(distances, axis=1)):
            neighbours.append(
                Neighbour(
                    label=name,
                    synthetic=_as_text(drawn, i, shown),
                    real=_as_text(real, int(nearest), shown),
                    distance=float(distances[i, nearest]),
                )
            )
    return tuple(neighbours)


def _doubted(audit: pa.Table, store: Store, info: DatasetInfo) -> dict[str, Any]:
    """Fields of the report: the likeliest label errors with what the record says, or with its picture."""
    rows = audit.filter(audit["doubted"]).slice(0, MAX_DOUBTED)
    rows = rows.select(["aug_id", "label", "suggested", "score"]).to_pylist()
    ids = [row["aug_id"] for row in rows]
    if info.modality == "image":
        pictures, files = single_pictures(store, info, ids)
        return {
            "doubted": tuple(
                DoubtedLabel(
                    **row, record={"file": file} if file else {}, picture=f"doubted_{i}.png"
                )
                for i, (row, file) in enumerate(zip(rows, files, strict=True), start=1)
            ),
            "doubted_pictures": tuple(pictures),
        }
    shown = [c.name for c in info.columns if c.name != info.label][:MAX_DOUBTED_COLUMNS]
    records = read_part(store, info, ["training", "validation"], columns=["aug_id", *shown])
    records = records.take(pc.index_in(pa.array(ids, pa.string()), value_set=records["aug_id"]))
    return {
        "doubted": tuple(
            DoubtedLabel(**row, record=_as_text(records, i, shown)) for i, row in enumerate(rows)
        )
    }


def _as_text(table: pa.Table, row: int, columns: Sequence[str]) -> dict[str, str]:
    return {name: _short(table.column(name)[row].as_py()) for name in columns}


def _short(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
