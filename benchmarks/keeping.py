"""Where a benchmark's results are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["keep"]


def keep(report: dict[str, Any], lines: list[str], out: Path | None) -> None:
    """Write the report to ``out`` as JSON, and its tables beside it in Markdown; nothing without it."""
    if out is not None:
        out.write_text(json.dumps(report, indent=1) + "\n")
        out.with_suffix(".md").write_text("\n".join(lines) + "\n")
