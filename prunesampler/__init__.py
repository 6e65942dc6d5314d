"""Dataset pruning as a data-loader plugin.

>>> import prunesampler as ps
>>> ps.select(ps.ScoreTable({"el2n": [0.1, 0.9, 0.5, 0.7]}), keep=2, method="bottom").rows
array([0, 2])

Public names stand in ``__init__.pyi``, where type checkers look. Each is imported when it is first used, so that the
command line and whoever only reads files need not wait for torch.
"""

import ast
import importlib
import pkgutil
from typing import Any

_STUB = pkgutil.get_data(__name__, "__init__.pyi") or b""
_HOMES = {
    alias.name: node.module
    for node in ast.parse(_STUB).body
    if isinstance(node, ast.ImportFrom) and node.module
    for alias in node.names
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        found = getattr(importlib.import_module(_HOMES[name]), name)
    elif not name.startswith("_") and name in {module.name for module in pkgutil.iter_modules(__path__)}:
        found = importlib.import_module(f"{__name__}.{name}")  # ps.shards
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
