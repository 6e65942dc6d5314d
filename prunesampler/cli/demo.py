"""``prunesampler demo``."""

from __future__ import annotations

from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from prunesampler._logging import without_news
from prunesampler.cli.console import write, write_json
from prunesampler.cli.options import Json, Quiet, keep_option
from prunesampler.errors import ArgumentError, StateError, check_int

_FEWEST_ROWS = 100


class Data(str, Enum):
    """What ``demo`` can train on."""

    digits = "digits"
    cifar10 = "cifar10"


def demo(
    data: Annotated[Data, typer.Option(help="Handwritten digits (of scikit-learn), or CIFAR-10.")] = Data.digits,
    root: Annotated[Path | None, typer.Option(help="CIFAR-10: torchvision's folder, or one of Parquet files.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch CIFAR-10 (170 MB) into --root.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the two files.")] = Path("prunesampler-demo"),
    force: Annotated[bool, typer.Option("--force", help="Replace the files of an earlier demo.")] = False,
    keep: Annotated[str, typer.Option(help="Fraction in (0, 1], or number, of the rows to keep.")] = "0.5",
    seeds: Annotated[int | None, typer.Option(help="Repetitions. Default: 3; cifar10: 1.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data. Default: 20; cifar10: 8.")] = None,
    score_epochs: Annotated[int | None, typer.Option(help="How many are scored. Default: 6; cifar10: 3.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of a step. Default: 64; cifar10: 256.")] = None,
    rows: Annotated[int | None, typer.Option(help="Only so many training and test rows, for a quick look.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train on all rows, on the kept ones and on random ones; digits once more with wrong labels, where pruning pays.

    Prints the tables, and writes the scores and the kept rows of the first. Digits take a minute on two cores, CIFAR-10
    about a quarter of an hour.
    """
    from prunesampler.cli import demo_arms as arms
    from prunesampler.cli import training
    from prunesampler.selection.select import resolve_keep

    given: dict[str, Any] = {"seeds": seeds, "epochs": epochs, "score_epochs": score_epochs}
    chosen = arms.CIFAR10 if data is Data.cifar10 else arms.DIGITS
    recipe = chosen.recipe if batch_size is None else replace(chosen.recipe, batch_size=batch_size)
    chosen = replace(chosen, recipe=recipe, **{name: number for name, number in given.items() if number is not None})
    fraction = keep_option(keep)
    if isinstance(fraction, str):
        raise ArgumentError("keep", "must be a number here, for the arm of random rows to be as large", keep)
    resolve_keep(fraction, 2**63)
    if rows is not None:
        check_int("rows", rows, _FEWEST_ROWS)
    found = [name for name in arms.FILES if (out / name).exists()]
    if found and not force:
        raise StateError(f"{out} holds {' and '.join(found)} already: give another --out, or --force to replace them")
    if any(path.exists() and not path.is_dir() for path in (out, *out.parents)):
        raise StateError(f"{out} cannot be a folder: give another --out")
    if data is Data.cifar10:
        if root is None:
            raise ArgumentError("root", "must be given with --data cifar10: its folder", root)
        split = training.load_cifar10(root, chosen.device, download=download, rows=rows, quiet=quiet)
    else:
        if root is not None or download:
            raise ArgumentError("root", "and download belong to --data cifar10", data.value)
        train, test = training.load_digits()
        split = train.subset(slice(rows)), test.subset(slice(rows))
    with without_news():
        results = arms.run(chosen, *split, fraction, out, quiet=quiet)
        noisy = arms.run_noisy(chosen, *split, quiet=quiet) if chosen.wrong else []
    if json:
        files = [str(out / name) for name in arms.FILES]
        write_json(
            {
                "data": chosen.name,
                "arms": list(map(asdict, results)),
                "wrong_labels": list(map(asdict, noisy)),
                "files": files,
            }
        )
    else:
        write(arms.report(results, chosen, *split, fraction, out, noisy))
