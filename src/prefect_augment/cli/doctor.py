"""``prefect-augment doctor``: what is there, what is missing, and what to do about it."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

__all__ = ["doctor"]


def doctor(
    source: Annotated[str, typer.Option(help="Also list and read this source.")] = "",
    dest: Annotated[
        str, typer.Option(help="Also write, read and delete a probe at this destination.")
    ] = "",
    block: Annotated[
        str, typer.Option(help="Saved Prefect storage block with the credentials for both.")
    ] = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")
    ] = False,
) -> None:
    """Check Python, Prefect, storage, GPU, memory and extras; exit 1 where something must be mended."""
    from prefect_augment.cli import doctor_checks as machine, doctor_checks as storage
    from prefect_augment.cli.doctor_checks import check_prefect, load_block

    loaded = load_block(block)
    places: list[machine.Check] = []
    if source and not loaded.failed:
        places += storage.check_source(source, options=loaded.options)
    if dest and not loaded.failed:
        places += storage.check_destination(dest, options=loaded.options)
    if source and dest:
        places += storage.check_apart(source, dest)
    needed = storage.needed_extras(source, dest, places)
    checks = [*machine.check_python(), *machine.check_libraries(), *machine.check_extras(needed)]
    checks += [*check_prefect(), *loaded.checks]
    checks += [*machine.check_gpu(), *machine.check_machine(dest), *places]
    status = machine.worst(checks)
    if as_json:
        found = {"status": status, "checks": [check.model_dump(mode="json") for check in checks]}
        print(json.dumps(found, ensure_ascii=False))
    else:
        from prefect_augment.cli.formatting import show_checks

        show_checks(Console(), checks)
    if status == "problem":
        raise typer.Exit(1)
