"""The site of docs/ leaves nothing out; a workflow builds it with --strict."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

import prunesampler
from prunesampler import condensation, shards

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://example.org/repository"


@pytest.fixture(scope="module")
def site() -> Any:
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "docs/site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_stands_in_the_navigation_once(site: Any) -> None:
    first, everything, *sections = site.navigation((ROOT / "docs/README.md").read_text(encoding="utf-8"))
    assert [*first.values(), *everything.values()] == ["README.md", "pages.md"]
    pages = [page for section in sections[:-1] for listed in section.values() for page in listed]
    assert sorted(pages) == sorted({page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"})


def test_the_reference_has_every_public_name(site: Any) -> None:
    told = [name.rpartition(".")[2] for names in site.public().values() for name in names]
    assert sorted(told) == sorted({*prunesampler.__all__, *shards.__all__, *condensation.__all__} - {"__version__"})
    assert "::: prunesampler.tables.score_table.ScoreTable\n" in site.reference("tables")
    assert site.reference("errors").startswith("# errors\n\nWhat prunesampler raises and warns.")
    for folder, modules in site.MODULES.items():
        assert all((ROOT / f"prunesampler/{folder}/{module}.py").exists() for module in modules)


@pytest.mark.parametrize(
    ("here", "told", "becomes"),
    [
        ("shards.md", "[a](../benchmarks/x.md#y)", f"[a]({REPOSITORY}/blob/main/benchmarks/x.md#y)"),
        ("shards.md", "[a](script.py), [b](files.md)", f"[a]({REPOSITORY}/blob/main/docs/script.py), [b](files.md)"),
        ("README.md", "[a](docs/files.md#b) ![c](docs/d.jpg)", "[a](files.md#b) ![c](d.jpg)"),
        ("README.md", "[docs/](docs/README.md)", "[docs/](pages.md)"),
        ("README.md", "[a](CHANGELOG.md)", f"[a]({REPOSITORY}/blob/main/CHANGELOG.md)"),
        ("README.md", "[a](https://b.org/c.md)", "[a](https://b.org/c.md)"),
    ],
)
def test_links_out_of_the_site_lead_to_the_repository_or_are_text(
    site: Any, here: str, told: str, becomes: str
) -> None:
    assert site.inside(told, here, REPOSITORY) == becomes
    assert REPOSITORY not in site.inside(told, here, "")
    assert "../" not in site.inside(told, here, "")
