"""Published datasets for people: the list of versions, one version, what a check and a clean-up found."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prefect_augment.cli.formatting import COLOURS
from prefect_augment.maintenance.gc import GcReport
from prefect_augment.maintenance.inspect import Inspection, VersionInfo
from prefect_augment.maintenance.verify import VerifyReport


def show_versions(console: Console, versions: Sequence[VersionInfo]) -> None:
    """Print one line for each version."""
    table = Table("version", "published", "records", "size", "recipe", "decision")
    for one in versions:
        table.add_row(
            str(one.version),
            _time(one.created_at),
            ", ".join(f"{n:,} {origin}" for origin, n in one.n_origin.items()),
            _size(one.n_bytes),
            escape(one.strategy),
            one.decision or "none",
        )
    console.print(table)


def show_version(console: Console, version: Inspection, *, report: str = "") -> None:
    """Print the classes, the answers and the recipe of a version, and where its report is."""
    parent = f", made from version {version.parent}" if version.parent else ""
    console.print(
        f"[bold]Version {version.version}[/], published {_time(version.created_at)}{parent}: "
        f"{version.n_shards:,} shards, {_size(version.n_bytes)}, {version.n_quarantined:,} records quarantined.",
        highlight=False,
    )
    splits = list(version.class_counts)
    table = Table(f"class ({escape(version.label)})", title="Records")
    for split in splits:
        table.add_column(escape(split), justify="right")
    for name in sorted({name for classes in version.class_counts.values() for name in classes}):
        origins = [version.class_counts[split].get(name, {}) for split in splits]
        cells = ("\n".join(f"{n:,} {origin}" for origin, n in of.items()) for of in origins)
        table.add_row(escape(name), *cells)
    console.print(table)
    colour = COLOURS[version.decision] if version.decision else "default"
    for i, answer in enumerate(version.answers):
        console.print(f"[bold {colour}]{escape(answer)}[/]" if i == 0 else escape(answer))
    for reason in version.reasons:
        console.print(escape(reason), highlight=False)
    if version.look is not None:
        console.print(escape(version.look.sentence), highlight=False)
    recipe = version.recipe
    console.print(f"[bold]Recipe[/]: {escape(recipe.strategy.name)}. {escape(recipe.sentence)}")
    for note in version.notes:
        console.print(f"- {escape(note)}", highlight=False)
    if report:
        console.print(f"[bold]Report[/]: {escape(report)}", soft_wrap=True)
    console.print("Parameters, thresholds and versions of packages: --json.", highlight=False)


def show_check(console: Console, report: VerifyReport) -> None:
    """Print whether a version is as its manifest says, or each problem."""
    text = f"{report.n_objects:,} objects, {report.n_records:,} records, {_size(report.n_bytes)} checked."
    if report.ok:
        console.print(
            f"[bold green]Version {report.version} is as it was published[/]: {text}",
            highlight=False,
        )
    else:
        n = len(report.problems)
        console.print(
            f"[bold red]Version {report.version} has {n} problem{'s' if n != 1 else ''}[/]: {text}",
            highlight=False,
        )
    for problem in report.problems:
        line = f"- {problem.kind}: {problem.path}: {problem.message}"
        console.print(escape(line), highlight=False, soft_wrap=True)
    for path in report.repaired:
        console.print(f"Repaired: {escape(path)}", highlight=False, soft_wrap=True)


def show_gc(console: Console, report: GcReport) -> None:
    """Print what was, or would be, removed, and what stays and why."""
    word = "Would remove" if report.dry_run else "Removed"
    removed = ", ".join(map(str, report.versions_removed)) or "none"
    kept = ", ".join(map(str, report.versions_kept)) or "none"
    console.print(
        f"[bold]{word}[/] {report.n_removed:,} objects, {_size(report.n_bytes_removed)}. "
        f"Versions removed: {removed}; kept: {kept}.",
        highlight=False,
    )
    table = Table("", "what", "why", "objects", "size")
    for fate, lines in (("removed", report.removed), ("kept", report.kept)):
        for line in lines:
            table.add_row(fate, line.kind, line.reason, f"{line.n_objects:,}", _size(line.n_bytes))
    console.print(table)
    for path in report.unknown:
        console.print(f"- not ours, left: {escape(path)}", highlight=False, soft_wrap=True)


def _time(iso: str) -> str:
    """A time of a manifest to the minute."""
    return f"{iso[:16].replace('T', ' ')} UTC" if iso.endswith("+00:00") else iso


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:,.0f} kB"
