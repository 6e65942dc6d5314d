"""How numbers and names are written as text, and how objects show themselves."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any


def number(value: float | None) -> str:
    """Three digits or decimals, or all of a whole number; "∞" for an infinite value, "–" for none."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.3f}" if 0.001 <= abs(value) < 10 else f"{value:.3g}"


def percent(share: float | None) -> str:
    """A share, with as many decimals as it takes to tell it from none and from all; "–" for an unknown one."""
    if share is None:
        return "–"
    edge = min(share, 1 - share)
    decimals = 0 if edge >= 0.01 or edge <= 0 else 1 if edge >= 0.001 else 2
    return f"{100 * share:.{decimals}f} %"


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number and what it counts."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def printable(text: object) -> str:
    """Text from a file, with whatever could control a terminal escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def text_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells below their headings, aligned to the right.

    >>> print(text_table(["row", "el2n"], [["12", "0.5"], ["3", "1.25"]]))
    row  el2n
     12   0.5
      3  1.25
    """
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    lines = [[cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in (headings, *rows)]
    return "\n".join("  ".join(line) for line in lines)


def html_table(headings: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """The same for a notebook; every cell is taken literally."""

    def line(cells: Sequence[str], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in cells) + "</tr>"

    head = f"<thead>{line(headings, 'th')}</thead>" if headings else ""
    body = "".join(line(row, "td") for row in rows)
    return f"<table><caption>{html.escape(caption)}</caption>{head}<tbody>{body}</tbody></table>"


class _Bare(str):
    """Shown without quotes."""

    __repr__ = str.__str__


def brief(value: Any) -> str:
    """A dataclass without the fields that are as they are by default; of what takes several lines, the type.

    >>> import dataclasses
    >>> brief(dataclasses.make_dataclass("Options", [("keep", float), ("seed", int, 0)])(0.5))
    Options(keep=0.5)
    >>> import numpy
    >>> brief(numpy.eye(2))
    ndarray(…)
    """
    if not dataclasses.is_dataclass(value):
        return _Bare(shown if "\n" not in (shown := repr(value)) else f"{type(value).__name__}(…)")
    fields = {each.name: (getattr(value, each.name), each) for each in dataclasses.fields(value)}
    told = ", ".join(f"{name}={brief(now)}" for name, (now, each) in fields.items() if now != _default(each))
    return _Bare(f"{type(value).__name__}({told})")


def _default(each: dataclasses.Field[Any]) -> Any:
    return {} if each.default_factory is dict else each.default


class Shown:
    """An object that shows itself by a few facts: in one line, and as a small table in a notebook."""

    def _facts(self) -> Mapping[str, Any]:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._facts().items())})"

    def _repr_html_(self) -> str:
        facts = [(name, printable(value)) for name, value in self._facts().items()]
        return html_table([], facts, caption=type(self).__name__)
