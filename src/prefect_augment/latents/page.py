"""A use of a model's latents in a sentence and on a page."""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prefect_augment.errors import IntegrityError
from prefect_augment.report.run_summary import where
from prefect_augment.schema import INDEX, LatentInfo, LatentRef, LatentUse
from prefect_augment.shards.base import open_shard
from prefect_augment.storage import Store, read_result
from prefect_augment.text import markdown_text, number, percent

MAX_ROWS = 30
MAX_COLUMNS = 12
MAX_CELL = 60


def latents_sentence(ref: LatentRef) -> str:
    """Return the outcome of a use in one sentence."""
    summary, n = ref.summary, f"{ref.n_records:,} records"
    auroc = summary.get("validation_auroc")
    if ref.use == "embeddings":
        return f"Embedded {n} as vectors of {summary['n_latent']} numbers."
    if ref.use == "anomalies":
        of = "" if auroc is None else f" AUROC on validation records {auroc:.3f}."
        return f"Scored {n}; {summary['n_flagged']:,} are beyond the threshold of {summary['threshold']:.4g}.{of}"
    if ref.use == "reconstructions":
        return f"Reconstructed {n}."
    if ref.use == "denoised":
        gain = ""
        if check := summary["check"]:
            gain = (
                f" With that much noise added, {check['n']} {check['part']} records go from {check['psnr_noisy']:.1f} "
                f"to {check['psnr']:.1f} dB."
            )
        return f"Took noise of {summary['noise']:g} out of {n}.{gain}"
    if ref.use == "interpolations":
        return (
            f"Made {ref.n_records - 2} records on the way from {summary['start_class']!r} to "
            f"{summary['end_class']!r}."
        )
    if ref.use == "shifts":
        tells = "On validation the direction tells the two apart with AUROC"
        of = "" if auroc is None else f" {tells} {auroc:.3f}."
        return (
            f"Shifted {summary['n_shifted']:,} records by {len(summary['strengths'])} strengths of the way from "
            f"{summary['start']!r} to {summary['end']!r} of {summary['column']!r}.{of}"
        )
    scores = ""
    if on := summary["parts"].get("validation"):
        scores = f" On validation: accuracy {on['accuracy']:.3f}, balanced accuracy {on['balanced_accuracy']:.3f}."
    return f"Classified {n} with the prior {summary['prior']}.{scores}"


def latents_page(ref: LatentRef, out: Store) -> str:
    """Return a page of markdown: the outcome, the pictures, the location; user strings are escaped.

    The result lies under ``out``. Raises IntegrityError if it is missing.
    """
    store = Store(uri=f"{out.uri}/{ref.folder}", fs=out.fs, root=out.full(ref.folder))
    info = read_result(store, INDEX, LatentInfo)
    if info is None:
        raise IntegrityError(f"{store.uri}/{INDEX} is missing; run again to make it anew.")
    blocks = [f"**{markdown_text(latents_sentence(ref))}**"]
    for picture in info.pictures:
        png = base64.b64encode(store.read(picture)).decode()
        blocks.append(f"![{ref.use}](data:image/png;base64,{png})")
    if ref.use in _TABLES:
        blocks += _TABLES[ref.use](info, store)
    blocks += [f"- {markdown_text(note)}" for note in ref.notes]
    model = info.model
    blocks.append(
        f"Model {markdown_text(model.kind)} {model.digest[:12]}, trained on {model.n_training:,} records. "
        f"Result: {where(ref.folder, store.uri)}"
    )
    return "\n\n".join(blocks) + "\n"


def _flagged(info: LatentInfo, store: Store) -> list[str]:
    rows = [
        (part, name, f"{c['records']:,}", f"{c['flagged']:,}", percent(c["flagged"] / c["records"]))
        for part, classes in info.summary["counts"].items()
        for name, c in classes.items()
    ]
    head = ("part", "class", "records", "flagged", "flagged, %")
    normal = ", ".join(info.summary["normal"])
    return [f"Normal: {markdown_text(normal)}.", *_table(head, rows, n_text=2)]


def _shown_part(info: LatentInfo) -> tuple[str, Mapping[str, Any]]:
    """The part whose numbers are shown, validation where there is one, and these numbers."""
    parts = info.summary["parts"]
    part = "validation" if "validation" in parts else next(iter(parts), "")
    return part, parts.get(part, {})


def _columns(info: LatentInfo, store: Store) -> list[str]:
    part, columns = _shown_part(info)
    rows = []
    for name, scores in columns.items():
        if "right" in scores:
            rows.append((name, "categories that come back, %", percent(scores["right"])))
        elif "mse" in scores:
            rows.append((name, "mean squared error, white = 1", number(scores["mse"])))
        else:
            rows.append((name, "explained variance, %", percent(scores["explained"])))
    head = ("column", f"on {part}", "")
    return [*_table(head, rows, n_text=2), *_records(info, store)]


def _confusion(info: LatentInfo, store: Store) -> list[str]:
    part, scores = _shown_part(info)
    classes = info.summary["classes"][:MAX_COLUMNS]
    rows = [
        (name, *(f"{row.get(k, 0):,}" for k in classes), percent(scores["recall"][name]))
        for name, row in scores.get("confusion", {}).items()
    ]
    head = (f"{part}: true class", *(f"predicted {name}" for name in classes), "recall, %")
    return _table(head, rows, n_text=1)


def _records(info: LatentInfo, store: Store) -> list[str]:
    """Show the first records of the result, without images."""
    if not info.shards:
        return []
    with open_shard(store, info.shards[0].path) as shard:
        names = [
            field.name
            for field in shard.schema
            if str(field.type).partition("<")[0] not in ("struct", "binary", "large_binary")
        ][: 2 * MAX_COLUMNS]
        rows = shard.read(names, groups=[0]).slice(0, MAX_ROWS).to_pylist()
    return _table(names, [[_cell(row[name]) for name in names] for row in rows], n_text=len(names))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return number(value) if isinstance(value, float) else str(value)[:MAX_CELL]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, n_text: int) -> list[str]:
    """Return a markdown table with its first ``n_text`` columns left-aligned; nothing without rows."""
    lines = [[markdown_text(cell) for cell in row] for row in rows]
    if not lines:
        return []
    more = f"… and {len(lines) - MAX_ROWS} more" if len(lines) > MAX_ROWS else ""
    rule = ["---" if i < n_text else "---:" for i in range(len(head))]
    shown = [[markdown_text(name) for name in head], rule, *lines[:MAX_ROWS]]
    return ["\n".join(f"| {' | '.join(row)} |" for row in shown), *filter(None, [more])]


_TABLES: Mapping[LatentUse, Callable[[LatentInfo, Store], list[str]]] = {
    "anomalies": _flagged,
    "reconstructions": _columns,
    "interpolations": _records,
    "shifts": _records,
    "classes": _confusion,
}
