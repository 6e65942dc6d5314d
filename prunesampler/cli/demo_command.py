"""``prunesampler demo``."""

from __future__ import annotations

import dataclasses
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from prunesampler.cli.options import keep_option
from prunesampler.errors import ArgumentError

__all__ = ["Data", "demo"]


class Data(str, Enum):
    """What ``demo`` can train on."""

    digits = "digits"
    cifar10 = "cifar10"


def demo(
    data: Annotated[
        Data, typer.Option(help="Handwritten digits (bundled with scikit-learn), or CIFAR-10.")
    ] = Data.digits,
    root: Annotated[
        Path | None, typer.Option(help="Folder of CIFAR-10: torchvision's, or Parquet files with image and label.")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch CIFAR-10 (170 MB) into --root.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the two files.")] = Path("prunesampler-demo"),
    force: Annotated[bool, typer.Option("--force", help="Replace the files of an earlier demo.")] = False,
    keep: Annotated[str, typer.Option(help="Fraction in (0, 1], or number, of the rows to keep.")] = "0.5",
    seeds: Annotated[int | None, typer.Option(help="Repetitions. Default: 3; cifar10: 1.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data. Default: 20; cifar10: 8.")] = None,
    score_epochs: Annotated[int | None, typer.Option(help="How many are scored. Default: 6; cifar10: 3.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of a step. Default: 64; cifar10: 256.")] = None,
    rows: Annotated[int | None, typer.Option(help="Only so many training and test rows, for a quick look.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Train on all rows, on the kept ones and on random ones; print a table and write both files.

    Digits take half a minute on two cores, CIFAR-10 about a quarter of an hour.
    """
    from rich.console import Console

    from prunesampler.cli.demo import check_free, print_report, run
    from prunesampler.cli.demo_data import load_cifar10, load_digits
    from prunesampler.cli.demo_training import CIFAR10, DIGITS
    from prunesampler.selection.select import resolve_keep

    given: dict[str, Any] = {"seeds": seeds, "epochs": epochs, "score_epochs": score_epochs, "batch_size": batch_size}
    given = {name: number for name, number in given.items() if number is not None}
    recipe = dataclasses.replace(CIFAR10 if data is Data.cifar10 else DIGITS, **given)
    share = keep_option(keep)
    if isinstance(share, str):
        raise ArgumentError("keep", "must be a number here, for as many random rows are trained on too", keep)
    resolve_keep(share, 2**63)
    check_free(out, force)
    if data is Data.cifar10:
        if root is None:
            raise ArgumentError("root", "must be given with --data cifar10: its folder", root)
        split = load_cifar10(root, download=download, rows=rows, quiet=quiet)
    else:
        if root is not None or download:
            raise ArgumentError("root", "and download belong to --data cifar10", data.value)
        split = load_digits().first(rows)
    results = run(split, recipe, share, out, quiet=quiet)
    print_report(results, split, recipe, share, out, Console())
