"""The shape of the package: who imports whom, what is public, and what importing it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import prunesampler

ROOT = Path(prunesampler.__file__).parent
MATHS = {"scores", "capture", "tables"}
STATE = MATHS | {"sampling", "tracking", "selection"}
# A folder imports from itself, from these folders, and from errors, _format, _logging, _random and _version.
IMPORTS = {
    "scores": set(),
    "capture": set(),
    "tables": set(),
    "sampling": {"tables"},
    "tracking": MATHS | {"sampling"},
    "selection": MATHS | {"sampling"},
    "training": STATE,
    "analysis": STATE | {"training"},
    "shards": STATE | {"training"},
    "condensation": STATE,
    "integrations": STATE | {"training", "analysis", "shards"},
    "cli": STATE | {"training", "analysis", "shards", "condensation", "integrations"},
}
EVERYONE = {"errors", "_format", "_logging", "_random", "_version"}


def modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if len(path.relative_to(ROOT).parts) > 1)


def name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name(path)} imports relatively"
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {found for found in names if found.split(".")[0] == "prunesampler"}


def test_the_folders_are_the_ones_of_the_picture() -> None:
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == set(IMPORTS)


@pytest.mark.parametrize("path", modules(), ids=name)
def test_imports_flow_one_way(path: Path) -> None:
    folder = path.relative_to(ROOT).parts[0]
    for found in imported(path):
        assert found != "prunesampler", f"{name(path)} imports through the package root"
        assert found.split(".")[1] in IMPORTS[folder] | EVERYONE | {folder}, f"{name(path)} imports {found}"


def test_no_two_modules_import_each_other() -> None:
    graph = {name(path): {found.removeprefix("prunesampler.") for found in imported(path)} for path in modules()}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " imports ".join([*above, module])
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_the_public_surface_is_documented() -> None:
    assert prunesampler.__all__ == sorted(prunesampler.__all__)
    for name in prunesampler.__all__:
        assert getattr(prunesampler, name).__doc__


LIGHT = """
import sys, prunesampler as ps
assert not {"numpy", "torch"} & {*sys.modules} and "attach" in dir(ps)
ps.ScoreTable, ps.Coreset, ps.select, ps.merge
assert "torch" not in sys.modules
first = {*sys.modules}
import torch
torchs = {*sys.modules} - first  # some versions import more than others
ps.shards.ShardIndex
from prunesampler import *
heavy = {"typer", "rich", "sklearn", "torchvision", "pandas", "polars", "duckdb", "webdataset", "torchdata", "tqdm"}
print(sorted((heavy | {"torch._dynamo"}) & ({*sys.modules} - torchs)))
loader = torch.utils.data.DataLoader([(torch.ones(2), 1)] * 8, 2)
attach(loader, torch.nn.Linear(2, 2), epoch_length="full")
assert "accelerate" not in sys.modules
"""


def test_names_are_imported_when_they_are_used_and_importing_all_is_light() -> None:
    assert subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True).stdout == "[]\n"
    with pytest.raises(AttributeError, match="no attribute 'atach'"):
        _ = prunesampler.atach  # type: ignore[attr-defined]
