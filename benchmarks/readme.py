"""Put the tables of results/ between the markers that name them, here and in docs/: python benchmarks/readme.py"""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent
PAGES = (FOLDER / "README.md", FOLDER.parent / "docs/when-it-pays.md")
_MARKED = re.compile(r"(<!-- (results/[\w/-]+\.md) -->\n).*?(<!-- / -->)", re.DOTALL)


def filled(page: str) -> str:
    """The page with each table as its file has it now, without the file's own title."""

    def of(found: re.Match[str]) -> str:
        text = (FOLDER / found[2]).read_text(encoding="utf-8")
        return found[1] + re.sub(r"\A# .*\n", "", text).strip() + "\n" + found[3]

    return _MARKED.sub(of, page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
