"""The tables that are made of the registries: ``python docs/tables.py`` writes them into the pages.

A table stands in its page after a line ``<!-- NAME: python docs/tables.py -->``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from prunesampler.selection.registry import METHODS

DOCS = Path(__file__).parent


def methods() -> str:
    """The selection methods: what each keeps, needs and costs, when to take it, and where it comes from."""
    lines = ["| `method=` | keeps | needs | costs | take it | source |", "| --- | --- | --- | --- | --- | --- |"]
    for name, method in METHODS.items():
        if method.about is not None:
            about = method.about
            needed = {"scores": method.reads({}), "features": method.needs_features}
            needs = ", ".join(name for name, wanted in needed.items() if wanted)
            cells = (f"`{name}`", about.keeps, needs or "nothing", about.cost, about.when, about.source or "–")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


TABLES: dict[tuple[str, str], Callable[[], str]] = {("choosing.md", "methods"): methods}


def with_table(page: str, name: str, table: str) -> str:
    """The text of a page in which a table stands anew."""
    text = (DOCS / page).read_text(encoding="utf-8")
    mark = f"<!-- {name}: python docs/tables.py -->\n"
    found = re.subn(rf"{re.escape(mark)}(\|.*\n)*", lambda _: f"{mark}{table}\n", text)
    if found[1] != 1:
        raise ValueError(f"{page} must have one line {mark.strip()}")
    return found[0]


if __name__ == "__main__":
    for (page, name), table in TABLES.items():
        (DOCS / page).write_text(with_table(page, name, table()), encoding="utf-8")
