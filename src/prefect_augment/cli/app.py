"""The command line: ``prefect-augment``.

Imports of Prefect and of the numerical libraries happen inside the commands, so that ``--help`` answers at once.
"""

import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, NoReturn

import typer
from rich.markup import escape

from prefect_augment.cli.datasets import (
    approve,
    erase,
    export,
    gc,
    inspect,
    rollback,
    verify,
    versions,
)
from prefect_augment.cli.init import doctor, init
from prefect_augment.cli.latents import COMMANDS
from prefect_augment.cli.options import err, out
from prefect_augment.cli.runs import (
    augment,
    check_policy,
    demo,
    evaluate,
    profile,
    rebalance,
    train,
)
from prefect_augment.errors import AugmentError
from prefect_augment.flows._stopping import exit_code, say_interrupted, stoppable

app = typer.Typer(name="prefect-augment", no_args_is_help=True, pretty_exceptions_enable=False)
_COMMANDS: list[Callable[..., None]] = [
    rebalance, augment, train, evaluate, *COMMANDS, approve, profile, check_policy, versions, inspect, verify, export,
    rollback, gc, erase, init, doctor, demo,
]  # fmt: skip
for command in _COMMANDS:
    app.command()(command)


def _say_version(wanted: bool) -> None:
    if wanted:
        out.print(f"prefect-augment {version('prefect-augment')}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_say_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Rebalance labelled datasets, with proof that it helps."""


def main() -> None:
    """Run the command line; errors of users end in one line and their exit code."""
    with stoppable(command=True):
        try:
            app()
        except AugmentError as exc:
            _fail(exc, exc.exit_code)
        except OSError as exc:  # a file that cannot be written, a server that does not answer
            _fail(exc, 1)
        except MemoryError as exc:
            why = f"not enough memory ({exc}); nothing incomplete was published. Run it where there is more."
            _fail(MemoryError(why), 1)
        except (KeyboardInterrupt, SystemExit) as exc:
            # Typer turns Ctrl-C into a silent exit with 130.
            if isinstance(exc, SystemExit) and exc.code != 130:
                raise
            say_interrupted()
            sys.exit(exit_code())


def _fail(exc: Exception, code: int) -> NoReturn:
    text = " ".join(str(exc).split()) or type(exc).__name__
    err.print(f"[bold red]error:[/] {escape(text)}", highlight=False, soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
