"""Put the tables of results/ between the markers of README.md that name them: python benchmarks/readme.py"""

from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent
_MARKED = re.compile(r"(<!-- (results/[\w/-]+\.md) -->\n).*?(<!-- / -->)", re.DOTALL)


def filled(page: str) -> str:
    """The page with each table as its file has it now, without the file's own title."""

    def of(found: re.Match[str]) -> str:
        text = (FOLDER / found[2]).read_text(encoding="utf-8")
        return found[1] + re.sub(r"\A# .*\n", "", text).strip() + "\n" + found[3]

    return _MARKED.sub(of, page)


if __name__ == "__main__":
    page = FOLDER / "README.md"
    page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
