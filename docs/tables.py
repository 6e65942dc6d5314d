"""The tables that are made of the registries: ``python docs/tables.py`` writes them into the pages.

A table stands in its page after a line ``<!-- NAME: python docs/tables.py -->``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from prunesampler.scores.registry import SCORES
from prunesampler.selection.registry import METHODS

DOCS = Path(__file__).parent
NEEDED = {"logits": "logits", "last_layer": "the last layer's input", "inputs": "inputs", "model": "the model"}
FORGETTING = (  # which the tracker counts itself
    "| `forgetting` | how often a row went from right to wrong, as `argmax` says | logits, over epochs | "
    "nothing beside the forward | if you score a whole run, or most of it; not to look for wrong labels | "
    "[Toneva et al. 2019](https://arxiv.org/abs/1812.05159) |"
)


def scores() -> str:
    """The built-in scores: what each is, needs and costs, when to take it, and where it comes from."""
    lines = ["| score | what it is | needs | cost | take it | source |", "| --- | --- | --- | --- | --- | --- |"]
    for name, score in SCORES.items():
        if score.about is not None:
            about, end = score.about, "; lower is harder" if score.direction == "lower" else ""
            needs = NEEDED[score.needs] + ", over epochs" * score.over_epochs
            cells = (f"`{name}`", about.what + end, needs, about.cost, about.use, about.source)
            lines.append(f"| {' | '.join(cells)} |")
        if name == "el2n":
            lines.append(FORGETTING)
    return "\n".join(lines)


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


TABLES: dict[tuple[str, str], Callable[[], str]] = {
    ("choosing.md", "methods"): methods,
    ("scores.md", "scores"): scores,
}


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
