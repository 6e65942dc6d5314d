"""The command line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from prunesampler._version import __version__
from prunesampler.cli.audit import audit
from prunesampler.cli.compare import compare
from prunesampler.cli.condense import condense
from prunesampler.cli.demo import demo
from prunesampler.cli.diff import diff
from prunesampler.cli.duplicates import duplicates
from prunesampler.cli.inspect import inspect
from prunesampler.cli.scores import merge, report, select
from prunesampler.cli.shards import index, repack
from prunesampler.cli.sweep import sweep
from prunesampler.errors import PruneSamplerError

# A command's module imports only what its help needs; the rest is imported when it runs.
_COMMANDS: dict[Callable[..., None], Sequence[str]] = {
    demo: ("demo", "demo --data cifar10 --root data --download"),
    inspect: (
        "inspect runs/a/scores.parquet",
        "inspect runs/a/scores.parquet --keep 0.7,0.5,auto --epochs 100",
        "inspect runs/a/coreset.parquet --json",
    ),
    audit: (
        "audit runs/a/scores.parquet",
        "audit runs/a/scores.parquet --images data/train -o issues.html",
        "audit runs/a/scores.parquet -o issues.csv",
    ),
    compare: ("compare runs/a/scores.parquet --train train.py --keep 0.5 --scoring 0.1 --save-dir runs/compare",),
    sweep: ("sweep runs/a/scores.parquet --train train.py --keep 0.5 --offsets 0.0,0.1,0.2",),
    report: ("report runs/a/scores.parquet -o report.html --images data/train",),
    select: (
        "select runs/a/scores.parquet -o half.parquet --keep 0.5",
        "select runs/a/scores.parquet -o top.parquet --keep 20000 --method top",
        "select -o distinct.parquet --features features.npy --method deduplicate --threshold 0.95",
    ),
    duplicates: ("duplicates features.npy",),
    merge: ("merge runs/a/scores.parquet runs/b/scores.parquet -o merged.parquet",),
    diff: ("diff runs/a/scores.parquet runs/b/scores.parquet", "diff half.parquet top.parquet --json"),
    index: ("index 'shards/{000000..000099}.tar' -o index.parquet",),
    condense: (
        "condense data/train -o runs/condensed -n 10 --evaluate data/test",
        "condense train.parquet -o runs/condensed --method dsa --augment color_crop_scale",
        "condense 'shards/{000000..000099}.tar' -o runs/condensed --resume",
    ),
    repack: ("repack index.parquet half.parquet 'kept/{shard:06d}.tar'",),
}
_UsageError: Any = typer.BadParameter.__base__  # its public home has moved between releases of typer
_INTERRUPTED = 130

app = typer.Typer(
    help="Train on the examples that matter.",
    epilog="'prunesampler COMMAND --help' has examples. 'prunesampler --install-completion' lets the shell complete.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # plain text: quick, narrow, and examples to copy
)


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
        bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


for _command, _examples in _COMMANDS.items():
    # \b: as it stands, not wrapped
    app.command(epilog="\b\nExamples:\n" + "\n".join(f"  prunesampler {each}" for each in _examples))(_command)


if __name__ == "__main__":
    sys.exit(main())
