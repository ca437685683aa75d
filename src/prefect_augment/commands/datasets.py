"""Looking at published datasets: ``versions``, ``inspect``, ``verify``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from prefect_augment.commands.shared import (
    Block,
    Json,
    Version,
    open_root,
    print_fact,
    print_facts,
)

if TYPE_CHECKING:
    from prefect_augment.datatypes import Fact


__all__ = ["inspect", "verify", "versions"]


def versions(dest: str, block: Block = "", as_json: Json = False) -> None:
    """List the versions of a published dataset."""
    from prefect_augment.stages.maintain import versions as list_versions

    print_facts(list_versions(open_root(dest, block)), as_json=as_json)


def inspect(
    dest: str,
    version: Version = None,
    diff: Annotated[
        int | None, typer.Option("--diff", help="Compare with this version instead of showing one.")
    ] = None,
    block: Block = "",
    as_json: Json = False,
) -> None:
    """Show one version of a published dataset, or what changed between two."""
    from prefect_augment.manifest import latest_version
    from prefect_augment.stages import maintain

    store = open_root(dest, block)
    if diff is None:
        fact: Fact = maintain.inspect(store, version)
    else:
        fact = maintain.diff(store, diff, version or latest_version(store) or diff)
    print_fact(fact, as_json=as_json)


def verify(
    dest: str,
    version: Version = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Rewrite what can be derived again.")
    ] = False,
    block: Block = "",
    as_json: Json = False,
) -> None:
    """Check every shard of a version against its manifest; exit 1 if anything is wrong."""
    from prefect_augment.stages.verify import verify as check

    found = check(open_root(dest, block), version, repair=repair)
    print_fact(found, as_json=as_json)
    if found.problems:
        raise typer.Exit(1)
