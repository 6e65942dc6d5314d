"""Run the tests of the compatibility table, and write it where all of its claims hold:

    python -m tests.helpers.compatibility

It goes between the markers of docs/compatibility.md.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.frameworks import FRAMEWORKS
from tests.helpers.refusals import DISPATCHED, REFUSALS

BEGIN, END = "<!-- compatibility -->", "<!-- /compatibility -->"
COLUMNS = ("one line", "scores right", "resume", "several processes", "policies")
REFUSED = "refused"
CLAIMS = [
    (framework.__name__, column)
    for framework in FRAMEWORKS
    for column in COLUMNS
    if column != "several processes" or framework.several is not None
]
PAGE = Path(__file__).parents[2] / "docs/compatibility.md"


def cells(framework: Any) -> dict[str, str]:
    several = REFUSED if framework.several is None else framework.several
    texts = (f"`{framework.line}`", "yes", framework.resumes, several, framework.policies)
    return dict(zip(COLUMNS, texts, strict=True))


def packages() -> list[str]:
    return list(dict.fromkeys(package for framework in FRAMEWORKS for package in framework.packages))


def wanted() -> set[str]:
    """All claims, as the tests name them."""
    return {f"{name}, {column}" for name, column in CLAIMS} | {
        f"refused: {refusal.case}" for refusal in (*REFUSALS, DISPATCHED)
    }


def table(versions: dict[str, str]) -> str:
    """Markdown."""
    lines = [
        f"| | versions | {' | '.join(COLUMNS)} |",
        f"| --- | --- |{' --- |' * len(COLUMNS)}",
    ]
    for framework in FRAMEWORKS:
        found = ", ".join(f"{package} {versions[package]}" for package in framework.packages)
        lines.append(f"| {framework.name} | {found} | {' | '.join(cells(framework).values())} |")
    lines += ["", "| refused | because |", "| --- | --- |"]
    lines += [f"| {refusal.case} | {refusal.message} |" for refusal in (*REFUSALS, DISPATCHED)]
    return "\n".join(lines)


def between_markers(page: str) -> str:
    found = re.search(f"{re.escape(BEGIN)}(.*?){re.escape(END)}", page, re.DOTALL)
    assert found is not None, "the page has no markers"
    return found[1].strip()


def without_versions(text: str) -> str:
    return re.sub(r"(?<=[a-z]) \d[\w.+]*(?=[,| ])", "", text)


def write(page: Path, passed: set[str]) -> None:
    """Put the table between the page's markers; nothing where a claim's test has not passed."""
    if missing := sorted(wanted() - passed):
        sys.exit(f"not written, for these have not passed: {'; '.join(missing)}")
    text = table({package: version(package) for package in packages()})
    head, rest = page.read_text(encoding="utf-8").split(BEGIN, 1)
    page.write_text(f"{head}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")


class Passed:
    """Collects the claims whose tests pass."""

    def __init__(self) -> None:
        self.claims: set[str] = set()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" and report.passed:
            self.claims |= {str(value) for name, value in report.user_properties if name == "claim"}


if __name__ == "__main__":
    passed = Passed()
    tests = PAGE.parents[1] / "tests/integrations/test_compatibility.py"
    pytest.main(
        ["-q", "-n0", "-p", "no:cacheprovider", str(tests), "-k", "test_claim or test_refusal"], plugins=[passed]
    )
    write(PAGE, passed.claims)
