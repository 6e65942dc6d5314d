"""For the site: what docstrings hold that Markdown does not know, as it does: Sphinx's roles, and doctests."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension


def as_markdown(docstring: str) -> str:
    """Roles (:meth:`name`) as plain code, and each run of doctest lines as a block of code."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", docstring)
    return re.sub(r"^>>> .*(?:\n.+)*", r"```pycon\n\g<0>\n```", text, flags=re.MULTILINE)


class Docstrings(Extension):
    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
