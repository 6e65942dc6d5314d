"""Accelerate's ``skip_first_batches``: another loader for the rest of an epoch, which a resumed script reads."""

from __future__ import annotations

import functools
import sys
from typing import Any

_MODULES = ("accelerate.data_loader", "accelerate.accelerator", "accelerate")


def follow_rests() -> None:
    """From now on what Accelerate makes of an attached loader is followed in its place; no-op where it is not used."""
    original = getattr(sys.modules.get(_MODULES[0]), "skip_first_batches", None)
    if original is None or hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def skip_first_batches(dataloader: Any, num_batches: int = 0) -> Any:
        rest, pruning = original(dataloader, num_batches), getattr(dataloader, "pruning", None)
        if pruning is not None and rest is not dataloader and pruning.phase != "detached":
            pruning.follow(rest, skipped=num_batches)
        return rest

    for name in _MODULES:
        module: Any = sys.modules.get(name)
        if getattr(module, "skip_first_batches", None) is original:
            module.skip_first_batches = skip_first_batches
