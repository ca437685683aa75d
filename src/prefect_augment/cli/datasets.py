"""Published datasets: ``versions``, ``inspect``, ``verify``, ``rollback``, ``gc``, ``export`` and ``erase``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

from typer import Argument, Exit, Option

from prefect_augment.cli import options as opt
from prefect_augment.errors import ParameterError

MAX_LABELS = 5_000  # of an answer, which Prefect keeps with a flow's parameters


def versions(dest: str, block: opt.Block = "", as_json: opt.Json = False) -> None:
    """List the versions of a published dataset."""
    from prefect_augment.maintenance.inspect import versions as list_versions
    from prefect_augment.storage import read_manifest

    store = opt.open_root(dest, block, only_reads=True)
    published = list_versions(store)
    if not published:
        read_manifest(store)  # says that there is none
    if as_json:
        opt.print_infos(published, as_json=True)
        return
    from prefect_augment.cli.dataset_views import show_versions

    show_versions(opt.out, published)


def inspect(
    dest: str,
    version: opt.Version = None,
    diff: Annotated[
        int | None, Option("--diff", help="Compare with this version instead of showing one.")
    ] = None,
    vocabulary: Annotated[
        str, Option("--as", help="croissant or prov: print the version in this vocabulary.")
    ] = "",
    block: opt.Block = "",
    as_json: opt.Json = False,
) -> None:
    """Show one version of a published dataset, or what changed between two."""
    from prefect_augment.maintenance import inspect as maintain
    from prefect_augment.storage import latest_version

    store = opt.open_root(dest, block, only_reads=True)
    if vocabulary:
        print(maintain.rendered(store, version, vocabulary), end="")
        return
    if diff is not None:
        result = maintain.diff(store, diff, version or latest_version(store) or diff)
        opt.print_json(result, as_json=as_json)
        return
    from prefect_augment.cli.dataset_views import show_version

    shown = maintain.inspect(store, version)
    report = store.place(shown.report) if shown.report else ""
    opt.print_result(shown, partial(show_version, report=report), as_json=as_json)


def verify(
    dest: str,
    version: opt.Version = None,
    repair: Annotated[bool, Option("--repair", help="Rewrite the card if it is outdated.")] = False,
    shareable: Annotated[
        bool, Option("--shareable", help="Search every file for real records; needs the workspace.")
    ] = False,
    block: opt.Block = "",
    as_json: opt.Json = False,
) -> None:
    """Check every shard of a version against its manifest; exit 1 if anything is wrong."""
    from prefect_augment.cli.dataset_views import show_check
    from prefect_augment.maintenance.verify import verify as check

    result = check(
        opt.open_root(dest, block, only_reads=True), version, repair=repair, shareable=shareable
    )
    opt.print_result(result, show_check, as_json=as_json)
    if result.problems:
        raise Exit(1)


Dest = Annotated[str, Argument(help="The dataset's folder or fsspec URL.")]


def rollback(
    dest: Dest,
    to: Annotated[int, Option("--to", min=1, help="The version to come back.")],
    block: opt.Block = "",
    as_json: opt.Json = False,
) -> None:
    """Publish an older version again, as the newest; nothing is copied and nothing is lost."""
    from prefect_augment.maintenance.rollback import rollback as roll_back

    opt.print_json(roll_back(opt.open_root(dest, block), to), as_json=as_json)


def gc(
    dest: Dest,
    keep_last: Annotated[
        int | None, Option(min=1, help="Remove all versions but so many; none otherwise.")
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Only show what would be removed.")] = False,
    older_than_days: Annotated[
        float, Option(min=0, help="Younger staged work may be in use and is kept.")
    ] = 7.0,
    block: opt.Block = "",
    as_json: opt.Json = False,
) -> None:
    """Remove objects that no version, open proposal or running flow names; leave foreign files."""
    from prefect_augment.cli.dataset_views import show_gc
    from prefect_augment.maintenance.gc import collect_garbage

    result = collect_garbage(
        opt.open_root(dest, block),
        keep_last=keep_last,
        older_than_days=older_than_days,
        dry_run=dry_run,
    )
    opt.print_result(result, show_gc, as_json=as_json)


def export(
    dest: Dest,
    folder: Annotated[str, Argument(help="An empty folder or URL, or an earlier export.")],
    version: opt.Version = None,
    split: Annotated[opt.Many, Option(help="train or holdout; repeatable. All by default.")] = None,
    origins: Annotated[
        opt.Many, Option(help="real, copy, classic or synthetic; repeatable. All by default.")
    ] = None,
    annotations: Annotated[
        str, Option(help="coco, voc or yolo: images with their boxes as files, instead of Parquet.")
    ] = "",
    block: opt.Block = "",
    as_json: opt.Json = False,
) -> None:
    """Write one version as a plain tree, <split>/part-….parquet, for engines that read by glob."""
    from prefect_augment.publish.export import export as write
    from prefect_augment.publish.export_detection import export_boxes
    from prefect_augment.schema import Origin

    known: tuple[Origin, ...] = get_args(Origin)
    unknown = sorted(set(origins or ()) - set(known))
    if unknown:
        raise ParameterError(
            f"--origins {', '.join(unknown)} is no origin; choose of {', '.join(known)}."
        )
    result = (partial(export_boxes, convention=annotations) if annotations else write)(
        opt.open_root(dest, block),
        folder,
        version=version,
        splits=split or (),
        origins=[origin for origin in known if origin in (origins or ())],
        options=opt.block_options(block),
    )
    opt.print_json(result, as_json=as_json)


def erase(
    dest: Dest,
    ids: Annotated[
        opt.Many, Option("--ids", help="An aug_id, or a file with one in each line; repeatable.")
    ] = None,
    where: Annotated[
        opt.Many, Option(help="COLUMN=VALUE: every source record with this value; repeatable.")
    ] = None,
    block: opt.Block = "",
    as_json: opt.Json = False,
) -> None:
    """Erase source records from all versions: a new version lacks them, older ones are removed."""
    from prefect_augment.maintenance.erase import erase as erase_records

    conditions = []
    for text in where or ():
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ParameterError(f"--where {text!r} is not COLUMN=VALUE, e.g. --where patient=17.")
        conditions.append((name, value))
    chosen = [aug_id for text in ids or () for aug_id in _read_ids(text)]
    opt.print_json(
        erase_records(opt.open_root(dest, block), chosen, where=conditions), as_json=as_json
    )


def _read_ids(text: str) -> list[str]:
    """Return the ids of a file, one in each line; a text that is no file is an id."""
    path = Path(text)
    if not path.is_file():
        return [text]
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def approve(
    dest: Annotated[str, Argument(help="The dataset that has a proposal.")],
    proposal: Annotated[
        str, Argument(help="Its id, or the start of it. Not needed if only one is open.")
    ] = "",
    reject: Annotated[bool, Option("--reject", help="Publish nothing.")] = False,
    amount: Annotated[
        opt.Many, Option(help="CLASS=N: add only N records to a class, 0 for none; repeatable.")
    ] = None,
    relabel: Annotated[
        Path | None,
        Option(
            help="CSV or Parquet with aug_id and label, e.g. an edited audit.parquet: labels to correct."
        ),
    ] = None,
    comment: Annotated[str, Option(help="Why; kept in the manifest.")] = "",
    by: Annotated[str, Option(help="Who decides; kept in the manifest.")] = "",
    again: Annotated[bool, Option("--again", help="Decide again on a rejected version.")] = False,
    list_them: Annotated[
        bool, Option("--list", help="Only list the proposals with their decisions.")
    ] = False,
    block: opt.Block = "",
    as_json: opt.Json = False,
) -> None:
    """Publish a version that waits for approval, with fewer records where wanted, or reject it.

    Labels that you correct count from the next run on.
    """
    if list_them:
        from prefect_augment.publish.proposal import list_proposals

        opt.print_infos(list_proposals(opt.open_root(dest, block)), as_json=as_json)
        return
    parameters = {
        "destination": {"uri": dest, "storage_block": block},
        "proposal": proposal,
        "answer": {
            "decision": "reject" if reject else "approve",
            "amounts": [_amount(text) for text in amount or ()],
            "labels": "" if relabel is None else _read_labels(relabel),
            "comment": comment,
            "by": by,
            "again": again,
        },
    }
    opt.run_flow("approve:approve", parameters, "show_run", as_json=as_json)


def _read_labels(path: Path) -> str:
    """Return the lines of an answer: aug_id = label."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if path.suffix == ".parquet":
            table = parquet.read_table(path)
        else:
            names = dict.fromkeys(("aug_id", "label"), pa.string())
            table = csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=names))
    except (OSError, pa.ArrowException) as exc:
        raise ParameterError(f"--relabel {path} cannot be read as CSV or Parquet: {exc}.") from exc
    missing = sorted({"aug_id", "label"} - set(table.column_names))
    if missing:
        raise ParameterError(
            f"--relabel {path} lacks {' and '.join(missing)}; expected the columns aug_id and label."
        )
    if table.num_rows > MAX_LABELS:
        raise ParameterError(
            f"--relabel {path} has {table.num_rows:,} records; keep those whose label changes, at most {MAX_LABELS:,}."
        )
    records = zip(table["aug_id"].to_pylist(), table["label"].to_pylist(), strict=True)
    return "\n".join(f"{aug_id} = {'' if label is None else label}" for aug_id, label in records)


def _amount(text: str) -> dict[str, Any]:
    """Parse CLASS=N; a class may have equals signs in its name."""
    name, equals, number = text.rpartition("=")
    if not equals or not number.strip().isdigit():
        raise ParameterError(f"--amount {text!r} is not CLASS=N, e.g. --amount cracked=40.")
    return {"name": name, "records": int(number)}
