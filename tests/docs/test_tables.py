"""The tables of the pages say what the registries do."""

from __future__ import annotations

import runpy

import pytest

from prunesampler.scores.registry import SCORES
from prunesampler.selection.registry import METHODS
from tests.docs.test_docs import ROOT, text

tables = runpy.run_path(str(ROOT / "docs" / "tables.py"))


@pytest.mark.parametrize(("page", "name"), tables["TABLES"])
def test_a_table_is_current(page: str, name: str) -> None:
    table = tables["TABLES"][page, name]()
    assert tables["with_table"](page, name, table) == text(page), "python docs/tables.py writes it anew"


def test_every_method_and_score_has_its_line() -> None:
    assert {name for name in SCORES if f"| `{name}` |" in tables["scores"]()} >= {"el2n", "grand", "dual", "curvature"}
    found = tables["methods"]()
    assert all(f"| `{name}` |" in found and method.about for name, method in METHODS.items() if ":" not in name)
