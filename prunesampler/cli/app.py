"""The command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from prunesampler._version import __version__
from prunesampler.cli.demo import demo
from prunesampler.cli.diff import diff
from prunesampler.cli.inspect import inspect
from prunesampler.cli.scores import merge, report, select
from prunesampler.cli.shards import index, repack
from prunesampler.errors import PruneSamplerError

_UsageError: Any = typer.BadParameter.__base__  # its public home has moved between releases of typer
_INTERRUPTED = 130

app = typer.Typer(add_completion=False, help="Train on the examples that matter.")


def main(args: Sequence[str] | None = None) -> int:
    """Run a command, by default the process's arguments, and return its exit code.

    Every misuse is one line on stderr and exit code 2.
    """
    try:
        code = app(None if args is None else list(args), prog_name="prunesampler", standalone_mode=False)
    except _UsageError as error:
        return _failed(error.format_message())
    except (PruneSamplerError, OSError) as error:
        return _failed(str(error))
    except MemoryError as error:
        return _failed(f"memory is short: {error}")
    except (typer.Abort, KeyboardInterrupt):
        code = _INTERRUPTED
    if code == _INTERRUPTED:  # typer returns it or raises, depending on its version
        typer.echo("prunesampler: interrupted", err=True)
    return code if isinstance(code, int) else 0


def _failed(message: str) -> int:
    line = "".join(each if each.isprintable() else "�" for each in " ".join(message.split()))  # names come from files
    typer.echo(f"prunesampler: {line}", err=True)
    return 2


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prunesampler {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _command in (demo, inspect, report, select, merge, diff, index, repack):
    app.command()(_command)


if __name__ == "__main__":
    sys.exit(main())
