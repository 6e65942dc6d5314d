"""``prunesampler compare``: whether pruning by a file of scores pays, by the user's own training."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from prunesampler._format import printable
from prunesampler.cli.console import PlainTable, warnings_as_lines, write, write_json
from prunesampler.cli.options import Json, MethodOption, keep_option, load_file
from prunesampler.errors import ArgumentError

Train = Annotated[
    str,
    typer.Option(help="Your script, which is run, and after a colon its function. Default: train.", show_default=False),
]


def compare(
    scores: Annotated[Path, typer.Argument(help="A file of scores, or of a coreset.", show_default=False)],
    train: Train,
    keep: Annotated[str | None, typer.Option(help="Fraction in (0, 1], or number, of the rows to keep.")] = None,
    by: Annotated[str, typer.Option(help="The score.")] = "el2n",
    method: MethodOption = "stratified",
    arms: Annotated[str, typer.Option(help="Controls, of random, shorter, fresh and full.")] = "random,shorter",
    seeds: Annotated[int, typer.Option(help="Repetitions, seeds 0, 1, …")] = 3,
    share: Annotated[
        float | None, typer.Option(help="How long the kept rows train, of the full training. Default: what is kept.")
    ] = None,
    scoring: Annotated[float, typer.Option(help="What the scores cost, as a share of the full training.")] = 0.0,
    save_dir: Annotated[Path | None, typer.Option(help="Folder of finished runs, not run again.")] = None,
    json: Json = False,
) -> None:
    """Train on the kept rows and on controls of the same cost.

    It says whether pruning by these scores pays. The function is ``train(rows, *, seed, share) -> float``. Exit code 1
    unless the kept rows beat every control.
    """
    from prunesampler.analysis.compare import compare as compare_arms

    table = load_file(scores)
    with warnings_as_lines():
        found = compare_arms(
            load_function(train),
            table,
            None if keep is None else keep_option(keep),
            by,
            method,
            arms=[arm.strip() for arm in arms.split(",")],
            seeds=seeds,
            share=share,
            scoring=scoring,
            save_dir=save_dir,
        )
    if json:
        gains = {arm: vars(gain) for arm, gain in found.gains.items()}
        write_json({"pays": found.pays, "gains": gains, "trials": [vars(trial) for trial in found.trials]})
    else:
        write([PlainTable(found.columns, found.cells()), "", *map(printable, found.sentences)])
    if not found.pays:
        raise typer.Exit(1)


def load_function(path: str) -> Any:
    """The function of a script: of ``"file.py:name"``, or ``train`` of ``"file.py"``.

    The script is run as a module of its own name, so that what is under ``if __name__ == "__main__"`` is not, and with
    its folder first on the path of imports, as Python has it.

    Raises:
        ArgumentError: there is no such file or function, or the script is named as a module that is loaded already.
    """
    file, name = Path(path), "train"
    if not file.exists() and ":" in path:
        file, name = Path(path.rpartition(":")[0]), path.rpartition(":")[2]
    if not file.is_file() or file.suffix != ".py":
        raise ArgumentError("train", "must be a Python file, with or without :function", path)
    if file.stem in sys.modules:
        rule = "must not be named as a module that is loaded already; rename it"
        if getattr(sys.modules[file.stem], "__file__", None) != str(file.absolute()):
            raise ArgumentError("train", rule, path)
        module = sys.modules[file.stem]
    else:
        sys.path.insert(0, str(file.absolute().parent))
        spec = importlib.util.spec_from_file_location(file.stem, file.absolute())
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[file.stem]
            raise
    if not callable(getattr(module, name, None)):
        raise ArgumentError("train", f"must be a file with a function {name}(rows, *, seed, share)", path)
    return getattr(module, name)
