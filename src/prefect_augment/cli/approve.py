"""``prefect-augment approve``: publish or reject a version that waits for approval."""

from typing import Annotated, Any

import typer

from prefect_augment.cli.options import Block, Json, open_root, print_infos, run_flow
from prefect_augment.errors import ParameterError

__all__ = ["approve"]


def approve(
    dest: Annotated[str, typer.Argument(help="The dataset that has a proposal.")],
    proposal: Annotated[
        str, typer.Argument(help="Its id, or the start of it. Not needed if only one is open.")
    ] = "",
    reject: Annotated[bool, typer.Option("--reject", help="Publish nothing.")] = False,
    amount: Annotated[
        list[str] | None,
        typer.Option(help="CLASS=N: add only N records to a class, 0 for none; repeatable."),
    ] = None,
    comment: Annotated[str, typer.Option(help="Why; kept in the manifest.")] = "",
    by: Annotated[str, typer.Option(help="Who decides; kept in the manifest.")] = "",
    again: Annotated[
        bool, typer.Option("--again", help="Decide again on a rejected version.")
    ] = False,
    list_them: Annotated[
        bool, typer.Option("--list", help="Only list the proposals with their decisions.")
    ] = False,
    block: Block = "",
    as_json: Json = False,
) -> None:
    """Publish a version that waits for approval, with fewer records where wanted, or reject it."""
    if list_them:
        from prefect_augment.publish.proposal import list_proposals

        print_infos(list_proposals(open_root(dest, block)), as_json=as_json)
        return
    parameters = {
        "destination": {"uri": dest, "storage_block": block},
        "proposal": proposal,
        "answer": {
            "decision": "reject" if reject else "approve",
            "amounts": [_amount(text) for text in amount or ()],
            "comment": comment,
            "by": by,
            "again": again,
        },
    }
    run_flow("approve:approve", parameters, "show_run", as_json=as_json)


def _amount(text: str) -> dict[str, Any]:
    """Parse CLASS=N; a class may have equals signs in its name."""
    name, equals, number = text.rpartition("=")
    if not equals or not number.strip().isdigit():
        raise ParameterError(f"--amount {text!r} is not CLASS=N, e.g. --amount cracked=40.")
    return {"name": name, "records": int(number)}
