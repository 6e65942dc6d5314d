"""What a LightningModule's ``training_step`` calls, read from its source before anything is trained."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

_FRAMEWORKS = ("lightning.", "pytorch_lightning.", "torch.")


class _Reader(ast.NodeVisitor):
    """Finds attributes of ``self``, and whether ``self`` goes anywhere as a whole: is called, or given away."""

    def __init__(self, itself: str) -> None:
        self._itself = itself
        self.attributes: set[str] = set()
        self.whole = self.asks_super = False

    def visit_Attribute(self, node: ast.Attribute) -> None:  # ast's name
        value = node.value
        if isinstance(value, ast.Name) and value.id == self._itself:
            self.attributes.add(node.attr)
        else:
            self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        self.whole |= node.id == self._itself
        self.asks_super |= node.id == "super"


def called_submodules(module: Any) -> list[str] | None:
    """The submodules that ``training_step`` uses, through methods too; None if it may call the module itself."""
    open_names, seen, children = ["training_step"], set(), dict(module.named_children())
    found = []
    while open_names:
        name = open_names.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in children:
            found.append(name)
        elif name == "__call__" or (callable(vars(module).get(name)) and not name.startswith("_")):
            return None
        for kind in type(module).__mro__:
            if name not in vars(kind) or f"{kind.__module__}.".startswith(_FRAMEWORKS):
                continue
            read = _read(vars(kind)[name])
            if read is None or read.whole:
                return None
            open_names += sorted(read.attributes)
            if not read.asks_super:
                break
    return sorted(found)


def _read(member: Any) -> _Reader | None:
    """A method or property that was read; None where it has no source, and nothing is known of it."""
    function = inspect.unwrap(getattr(member, "fget", None) or member)
    if not callable(function):
        return _Reader("")
    try:
        definition: Any = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        reader = _Reader(definition.args.args[0].arg)
    except (OSError, TypeError, SyntaxError, AttributeError, IndexError):
        return None
    for statement in definition.body:
        reader.visit(statement)
    return reader
