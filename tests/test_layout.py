"""The shape of the package: who imports whom, what is public, and what importing it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import prunesampler

ROOT = Path(prunesampler.__file__).parent
# A module imports from lower levels only; everyone may import errors and version.
LEVELS = [
    {"errors", "version"},
    {"digest", "atomic"},
    {"scores", "order", "files", "columns", "distributed", "layouts", "sequences", "wording"},  # pure, or nearly
    {"forward", "rows", "probes", "progress", "pending", "share", "split", "agreement"},
    {"coreset", "draws", "fingerprint", "pool", "carriers", "binding"},
    {"tables", "population", "snapshot", "weights", "rowloader"},
    {"superfluous", "classes", "prefetching"},
    {"selection", "reading", "arguments", "totals", "dataset"},
    {"sampler", "tracker", "plan", "rundir", "merging", "blocks.engine"},
    {"blocks.reading"},
    {"blocks.ranks", "blocks.cuts"},
    {"blocks.merging", "blocks.plan"},
    {"blocks.selecting"},
    {"integrations.ray"},
    {"replacement", "streaming", "rescore", "scoring"},
    {"pruned"},
    {"run"},
    {"pruning"},
    {"attach", "integrations.states", "integrations.figures"},
    {"integrations.options"},
    {"integrations.transformers"},
    {"shards.names", "shards.store"},
    {"shards.urls", "shards.streams"},
    {"shards.sources"},
    {"shards.headers"},
    {"shards.labels", "shards.index"},
    {"shards.scan"},
    {"shards.workers"},
    {"shards.build", "shards.portions"},
    {"shards.locations", "shards.matching", "shards.packing", "shards.parts", "shards.folder"},
    {"shards.handles", "shards.layout"},
    {"shards.ranges", "shards.gathering", "shards.stretches"},
    {"shards.seeking"},
    {"shards.keep", "shards.carry"},
    {"shards.track"},
    {"shards.reader", "shards.contents", "shards.verify"},
    {"shards.pieces"},
    {"shards.repack"},
    {"inspection"},
    {"costs", "reliability"},
    {"advice"},
    {"judgement"},
    {"demo_data"},
    {"demo_training"},
    {"demo"},
    {"report.plots", "report.pictures"},
    {"report.page"},
    {"commands.options", "commands.files", "commands.formatting", "commands.histogram"},
    {"commands.judged"},
    {"commands.inspected"},
    {"commands.inspect"},
    {
        "commands.demo",
        "commands.select",
        "commands.merge",
        "commands.diff",
        "commands.index",
        "commands.repack",
        "commands.report",
    },
    {"integrations.lightning"},
    {"cli"},
    {"__main__"},
]
LEVEL = {module: level for level, modules in enumerate(LEVELS) for module in modules}


def modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")


def name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prunesampler"):
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("prunesampler")}
    return names


@pytest.mark.parametrize("path", modules(), ids=name)
def test_imports_flow_one_way(path: Path) -> None:
    assert name(path) in LEVEL, f"{name(path)} has no level yet"
    for found in imported(path):
        assert found != "prunesampler", f"{name(path)} imports through the package root"
        other = found.removeprefix("prunesampler.")
        assert LEVEL[other] < LEVEL[name(path)], f"{name(path)} (level {LEVEL[name(path)]}) imports {other}"


def test_no_level_names_a_module_that_is_gone() -> None:
    assert set(LEVEL) == set(map(name, modules()))


@pytest.mark.parametrize("path", modules(), ids=name)
def test_every_module_has_tests(path: Path) -> None:
    if path.stem not in ("version", "__main__"):
        assert (Path(__file__).parent / f"test_{name(path).replace('.', '_')}.py").exists()


def test_the_public_surface() -> None:
    assert prunesampler.__all__ == sorted(prunesampler.__all__)
    for name in prunesampler.__all__:
        assert getattr(prunesampler, name).__doc__


def test_importing_is_light() -> None:
    code = (
        "import sys, prunesampler; print([m for m in ('typer', 'rich', 'sklearn', 'torchvision', 'pandas', 'polars', "
        "'duckdb', 'webdataset', 'torchdata', 'tqdm', 'torch._dynamo') if m in sys.modules])"
    )
    before = "import sys, torch; print([m for m in ('torch._dynamo', 'tqdm') if m in sys.modules])"
    found = [
        subprocess.run([sys.executable, "-c", c], capture_output=True, text=True, check=True).stdout
        for c in (code, before)
    ]
    assert set(ast.literal_eval(found[0])) <= set(ast.literal_eval(found[1]))
