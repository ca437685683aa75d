"""The report of a run, built from results and staged records, and staged until it is published."""

import hashlib
import io
import logging
from collections import Counter, defaultdict
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
from prefect_augment.errors import IntegrityError, SchemaError
from prefect_augment.evaluation.metrics.column_shapes import (
    ColumnShape,
    column_values,
    summarise_shapes,
)
from prefect_augment.evaluation.neighbours import FeatureSpace
from prefect_augment.experiment.audit import audit_list, audit_summary, why_not_audited
from prefect_augment.ingest.quarantine import by_reason
from prefect_augment.params import Classic
from prefect_augment.params.keys import step_key
from prefect_augment.report.contact_sheets import NEAREST_RULE, picture_sheets, single_pictures
from prefect_augment.report.json import DoubtedLabel, Neighbour, ReportData
from prefect_augment.report.report import build_report, markdown_summary
from prefect_augment.schema import (
    ApprovalDecision,
    BalancePlan,
    ClassDrift,
    DatasetInfo,
    Drift,
    FilterResult,
    HoldoutResult,
    Manifest,
    ModelRef,
    Recipe,
    Release,
    ReportRef,
    Result,
    software_versions,
)
from prefect_augment.shards.base import label_names, read_shard
from prefect_augment.shards.staged import load_info, read_part
from prefect_augment.storage import Stage, Store, list_versions, read_manifest, read_result
from prefect_augment.synthesis.resume import read_training
from prefect_augment.text import count, natural_order, percent

logger = logging.getLogger(__name__)

Status = Literal["published", "proposed", "refused", "evaluated"]

N_NEIGHBOURS = 3  # per class: enough to see by eye, few enough to read
MAX_DOUBTED, MAX_DOUBTED_COLUMNS = 20, 30  # the columns that name a record are among them
MAX_TEXT = 60
MAX_NAMED = 4  # classes in the sentence on a version before
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

    Whatever the release lacks is shown as not run. ``status`` is what becomes of the run, ``approval`` who let the
    version out. The summary has two charts and the first sheets of images in it.
    """
    experiment, dataset, verdict = release.experiment, release.dataset, release.verdict
    params = experiment.params
    why_no_audit = why_not_audited(experiment, release.scores)
    drift = check = None
    if release.recipe is not None:
        before = find_previous(store, release.key)
        drift = drift_since(before, release) if before else None
        if dataset.modality == "image":
            check = find_check(dataset, classic=params.classic, seed=params.seed, store=store)
    model = release.models[0] if release.models else None
    measured: dict[str, Any] = {
        "drift": drift,
        "training": read_training(model, store),
        "policy": check,
    }
    if not release.lets_synthetic_out:
        measured["privacy"] = None
    path = verdict.diagnostics if verdict else ""
    if path and (diagnostics := read_result(store, path, HoldoutResult)):
        measured |= dict(diagnostics)
    release = release.model_copy(
        update={
            "findings": release.findings.model_copy(update=measured),
            "verdict": verdict and verdict.without_paths(),
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
        page = _draw(release, store, audit, status=status, approval=approval)
        stage.finish(page)
    notes = (drift.sentence,) if drift else ()
    ref = ReportRef(root=store.uri, prefix=page.prefix, files=page.files, notes=notes)
    return ref, page.summary


class _Page(Result):
    prefix: str
    files: tuple[str, ...]
    summary: str


def find_previous(store: Store, dataset_key: str) -> Manifest | None:
    """The newest version that was not made from these inputs; None where there is none.

    A run that repeats what it has published is compared with the version before that, so its report stays the same.
    """
    for version in reversed(list_versions(store)):
        try:
            manifest = read_manifest(store, version)
        except (IntegrityError, SchemaError) as exc:
            logger.info("drift: version %d is left out: %s", version, exc)
            continue
        if manifest.dataset_key != dataset_key:
            return manifest
    return None


def drift_since(before: Manifest, release: Release) -> Drift:
    """Real training records per class of a version and now, the largest now first."""
    train = before.class_counts.get("train", {})
    old = {name: origins["real"] for name, origins in train.items() if origins.get("real")}
    new = release.experiment.plan.real_counts
    names = sorted({*old, *new}, key=lambda c: (-new.get(c, 0), natural_order(c)))
    n_before, n_now = sum(old.values()), sum(new.values())
    size = "as many records"
    if more := n_now - n_before:
        size = f"{count(abs(more))} records {'more' if more > 0 else 'fewer'}"
        size += f" ({percent(abs(more) / n_before)} %)" if n_before else ""
    sentence = f"Since version {before.version}: {size}."
    for what, own, others in (("New classes", new, old), ("Classes that are gone", old, new)):
        if listed := [f"“{name}”" for name in names if name in own and name not in others]:
            more_names = f" and {len(listed) - MAX_NAMED} more" if len(listed) > MAX_NAMED else ""
            sentence += f" {what}: {', '.join(listed[:MAX_NAMED])}{more_names}."
    return Drift(
        version=before.version,
        n_before=n_before,
        n_now=n_now,
        classes=tuple(
            ClassDrift(name=name, before=old.get(name, 0), now=new.get(name, 0)) for name in names
        ),
        sentence=sentence,
    )


def _draw(
    release: Release,
    store: Store,
    audit: pa.Table | str,  # or why there is none
    *,
    status: Status,
    approval: ApprovalDecision | None,
) -> _Page:
    experiment, plan, recipe = release.experiment, release.experiment.plan, release.recipe
    params, candidates = experiment.params, experiment.candidates
    if candidates is not None and not release.lets_synthetic_out:  # no class of them can be unsafe
        classes = tuple(
            c.model_copy(update={"checks": (), "verdict": "not tested"}) for c in candidates.classes
        )
        candidates = candidates.model_copy(update={"classes": classes})
    classic = params.classic if recipe is not None else None
    pictures, check = params.report.pictures, release.findings.policy
    model = release.models[0] if release.models else None
    info = load_info(release.dataset, store)
    fields: dict[str, Any] = {}
    sheets: dict[str, bytes] = {}
    images: dict[str, bytes] = {}
    if info.modality == "image":
        sheets = picture_sheets(store, info, plan, candidates, pictures=pictures, classic=classic)
        # Numbered, since a class may have any name.
        fields["sheets"] = {name: f"sheet_{i}.png" for i, name in enumerate(sheets, start=1)}
        images = {fields["sheets"][name]: png for name, png in sheets.items()}
    elif candidates is not None and candidates.kept and pictures != "none":
        fields = _side_by_side(store, info, plan, candidates, show_real=pictures == "real")
    if not isinstance(audit, str) and pictures == "real":
        fields["doubted"], doubted_images = _doubted(audit, store, info)
        images |= doubted_images
    if pictures == "real" and check is not None:
        images["policy.png"] = store.read(check.picture)
    about = audit if isinstance(audit, str) else audit_summary(audit, params.encoder.name)
    if about:
        logger.info("%s", about)
    if not isinstance(audit, str) and not params.encoder.name:
        about = ""  # the section on doubted labels says it
    notes = _notes(info, model, candidates, classic, sheets)
    if not release.lets_synthetic_out:
        notes = tuple(note for note in notes if ALARM not in note)
    leaks = release.verdict.leaks if release.verdict else ()
    quarantine = Counter[str]()
    for shard in info.quarantine:
        quarantine.update(by_reason(read_shard(store, shard.path, columns=["reason"])))
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
        verdict=release.verdict,
        recipe=recipe,
        candidates=candidates,
        counts_before={name: {"real": n} for name, n in plan.real_counts.items()},
        **(_recipe_counts(plan, recipe) if recipe else {}),
        not_compared={c.label: c.note for c in plan.classes if not c.compared},
        quarantine=quarantine,
        modality=info.modality,
        pictures=pictures,
        images=images,
        seed=params.seed,
        model_kind=model.kind if model else "",
        model_digest=model.digest if model else "",
        method_notes=(*leaks, *([about] if about else []), *notes),
        digests={
            "ingested records": release.dataset.digest,
            **({"encoder": model.encoder_digest} if model else {}),
        },
        software=software_versions(),
        **fields,
        **dict(release.findings),
    )
    files = build_report(data)
    if not isinstance(audit, str):
        buffer = io.BytesIO()
        pq.write_table(audit, buffer)
        files["audit.parquet"] = buffer.getvalue()
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    prefix = f"_staging/report/{step_key('report', inputs=[digests])}"
    for name, content in sorted(files.items()):
        store.put_if_absent(f"{prefix}/{name}", content)
    shown = {text: files[name] for name, text in MARKDOWN_CHARTS.items() if name in files}
    shown |= {f"Pictures of {name}": png for name, png in list(sheets.items())[:MARKDOWN_SHEETS]}
    return _Page(
        prefix=prefix, files=tuple(sorted(files)), summary=markdown_summary(data, images=shown)
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


def _recipe_counts(plan: BalancePlan, recipe: Recipe) -> dict[str, Any]:
    """Fields of the report: records per class and origin by a recipe, and their weights' sum."""
    counts: dict[str, Counter[str]] = {}
    weighted: dict[str, float] = defaultdict(float)
    for entry in plan.classes:
        added = {"synthetic": recipe.synthetic, "classic": recipe.classic, "copy": recipe.copies}
        of_class = counts.setdefault(entry.label, Counter())
        of_class["real"] += entry.n_real
        of_class.update({o: n for o, of in added.items() if (n := of.get(entry.name, 0))})
        weight = recipe.class_weight.get(entry.name, 1.0)
        weighted[entry.label] += (entry.n_real + recipe.counted(entry.name)) * weight
    return {"counts_after": counts, "weighted_counts": weighted}


def _side_by_side(
    store: Store, info: DatasetInfo, plan: BalancePlan, candidates: FilterResult, *, show_real: bool
) -> dict[str, Any]:
    """Fields of the report that compare synthetic with real records of a table."""
    synthetic = pa.concat_tables([read_shard(store, shard.path) for shard in candidates.kept])
    by, sample = by_columns(plan), Sample(MAX_SHOWN, 0)
    (training,) = read_parts(store, info, ["training"], by=by, sample=sample)
    # With soft labels records of every class are drawn.
    wanted = [c.label for c in plan.classes if c.n_synthetic and c.target > c.n_real]
    rare = tuple(dict.fromkeys(wanted))
    sides = [_of_classes(side, info.label, rare) for side in (training, synthetic)]
    shapes: dict[str, ColumnShape] = {}
    for c in info.columns:
        if len(shapes) < MAX_SHAPES and (c.kind == "numeric" or c.kind == "category"):
            real, drawn = (column_values(side.column(c.name), c.kind) for side in sides)
            shapes[c.name] = ColumnShape(c.kind, real, drawn)
    return {
        "rare_classes": rare,
        "shapes": summarise_shapes(shapes, show_real=show_real),
        "neighbours": _neighbours(training, synthetic, info, by, rare),
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
            own, other = _as_text(drawn, i, shown), _as_text(real, int(nearest), shown)
            far = float(distances[i, nearest])
            neighbours.append(Neighbour(label=name, synthetic=own, real=other, distance=far))
    return tuple(neighbours)


def _doubted(
    audit: pa.Table, store: Store, info: DatasetInfo
) -> tuple[tuple[DoubtedLabel, ...], dict[str, bytes]]:
    """The likeliest label errors with what the record says, or with its picture by file."""
    rows = audit.filter(audit["doubted"]).slice(0, MAX_DOUBTED)
    rows = rows.select(["aug_id", "label", "suggested", "score"]).to_pylist()
    ids = [row["aug_id"] for row in rows]
    if info.modality == "image":
        pictures, files = single_pictures(store, info, ids)
        names = [f"doubted_{i}.png" for i in range(1, len(rows) + 1)]
        doubted = tuple(
            DoubtedLabel(**row, record={"file": file} if file else {}, picture=name)
            for row, file, name in zip(rows, files, names, strict=True)
        )
        return doubted, dict(zip(names, pictures, strict=True))
    shown = [c.name for c in info.columns if c.name != info.label][:MAX_DOUBTED_COLUMNS]
    records = read_part(store, info, ["training", "validation"], columns=["aug_id", *shown])
    records = records.take(pc.index_in(pa.array(ids, pa.string()), value_set=records["aug_id"]))
    return tuple(
        DoubtedLabel(**row, record=_as_text(records, i, shown)) for i, row in enumerate(rows)
    ), {}


def _as_text(table: pa.Table, row: int, columns: Sequence[str]) -> dict[str, str]:
    texts = {}
    for name in columns:
        value = table.column(name)[row].as_py()
        text = f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
        texts[name] = text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
    return texts
