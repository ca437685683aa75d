"""Published datasets for people: the list of versions, one version, what a check and a clean-up found."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prefect_augment.cli.formatting import COLOURS, say
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
    say(
        console,
        f"[bold]Version {version.version}[/], published {_time(version.created_at)}{parent}: "
        f"{version.n_shards:,} shards, {_size(version.n_bytes)}, {version.n_quarantined:,} records quarantined.",
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
    say(console, *map(escape, version.reasons))
    if version.look is not None:
        say(console, escape(version.look.sentence))
    recipe = version.recipe
    say(console, f"[bold]Recipe[/]: {escape(recipe.strategy.name)}. {escape(recipe.sentence)}")
    say(console, *(f"- {escape(note)}" for note in version.notes))
    if report:
        say(console, f"[bold]Report[/]: {escape(report)}")
    say(console, "Parameters, thresholds and versions of packages: --json.")


def show_check(console: Console, report: VerifyReport) -> None:
    """Print whether a version is as its manifest says, or each problem."""
    text = f"{report.n_objects:,} objects, {report.n_records:,} records, {_size(report.n_bytes)} checked."
    n = len(report.problems)
    if report.ok:
        say(console, f"[bold green]Version {report.version} is as it was published[/]: {text}")
    else:
        problems = f"{n} problem{'s' * (n != 1)}"
        say(console, f"[bold red]Version {report.version} has {problems}[/]: {text}")
    say(console, *(escape(f"- {p.kind}: {p.path}: {p.message}") for p in report.problems))
    say(console, *(f"Repaired: {escape(path)}" for path in report.repaired))


def show_gc(console: Console, report: GcReport) -> None:
    """Print what was, or would be, removed, and what stays and why."""
    word = "Would remove" if report.dry_run else "Removed"
    removed = ", ".join(map(str, report.versions_removed)) or "none"
    kept = ", ".join(map(str, report.versions_kept)) or "none"
    freed = f"{report.n_removed:,} objects, {_size(report.n_bytes_removed)}"
    say(console, f"[bold]{word}[/] {freed}. Versions removed: {removed}; kept: {kept}.")
    table = Table("", "what", "why", "objects", "size")
    for fate, lines in (("removed", report.removed), ("kept", report.kept)):
        for line in lines:
            table.add_row(fate, line.kind, line.reason, f"{line.n_objects:,}", _size(line.n_bytes))
    console.print(table)
    say(console, *(f"- not ours, left: {escape(path)}" for path in report.unknown))


def _time(iso: str) -> str:
    """A time of a manifest to the minute."""
    return f"{iso[:16].replace('T', ' ')} UTC" if iso.endswith("+00:00") else iso


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB" if n_bytes >= 1e6 else f"{n_bytes / 1e3:,.0f} kB"
