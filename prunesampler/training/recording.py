"""A recording in the making: which rows of each trained batch were the hardest, epoch by epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunesampler.errors import StateError
from prunesampler.scores.registry import compute
from prunesampler.tracking.state import check_count, check_layout

Epochs = list[NDArray[np.int64]]


class Recording:
    """The ``keep`` of each batch's rows that have the highest loss, in the order of the batches.

    Of equal losses those that come first in the batch are taken; what has no finite loss counts as hard. The positions
    stay on the device of the logits until they are needed, so that a step does not wait for it.

    Attributes:
        epochs: the rows of each epoch that ended.
    """

    def __init__(self, keep: float) -> None:
        self._keep = keep
        self.epochs: Epochs = []
        self._open: list[tuple[Tensor, Tensor]] = []  # rows of a batch, on the CPU, and the places of its hardest

    def add(self, rows: Tensor, logits: Tensor, targets: Any) -> None:
        """One batch was trained on: (B,) rows on the CPU, (B, classes) logits, (B,) class indices."""
        count = max(1, round(self._keep * len(rows)))
        losses = compute(("loss",), logits.detach(), torch.as_tensor(targets).to(logits.device))["loss"]
        places = losses.nan_to_num(nan=torch.inf).argsort(descending=True, stable=True)[:count]
        self._open.append((rows, places.sort().values))

    def end_epoch(self) -> bool:
        """What was added since the last call is one epoch; whether it was anything."""
        rows = self._rows()
        self.restart_epoch()
        if len(rows):
            self.epochs.append(rows.numpy())
        return len(rows) > 0

    def restart_epoch(self) -> None:
        """What was added since the last epoch is forgotten: it comes again."""
        self._open = []

    def _rows(self) -> Tensor:
        """What was added since the last epoch, each row once: where it came first."""
        self._go_on_from(torch.cat([torch.zeros(0, dtype=torch.int64), *(rows[at.cpu()] for rows, at in self._open)]))
        rows = self._open[0][0]
        _, first = np.unique(rows.numpy(), return_index=True)
        return rows[np.sort(first)]

    def _go_on_from(self, rows: Tensor) -> None:
        self._open = [(rows, torch.arange(len(rows)))]

    def state_dict(self) -> dict[str, Any]:
        """The open epoch, and what those that ended are recognised by: their rows are in the file."""
        return {"open": self._rows(), "ended": len(self.epochs), "digest": _digest(self.epochs)}

    def check_state(self, state: Any, written: Epochs, num_rows: int) -> None:
        """Refuse a state that is damaged, or whose epochs are not those that the file begins with.

        Raises:
            StateError: as said.
        """
        rows = state.get("open") if isinstance(state, Mapping) else None
        length = len(rows) if isinstance(rows, Tensor) and rows.dim() else 0
        layout = {"open": (torch.int64, length, 0, num_rows - 1), "ended": int, "digest": str}
        check_layout(state, layout, "state['recording']")
        check_count(state["ended"], "state['recording']['ended']")
        if state["digest"] != _digest(written[: state["ended"]]):
            raise StateError(
                f"the state goes on after {state['ended']} recorded epochs, which schedule.parquet in save_dir does "
                "not begin with: give attach the save_dir of the run that the state is of, and resume=True"
            )

    def load_state_dict(self, state: Mapping[str, Any], written: Epochs) -> None:
        """Go on from there; epochs that were written after the state was saved are dropped."""
        self.epochs = written[: state["ended"]]
        self._go_on_from(state["open"].cpu())


def _digest(epochs: Epochs) -> str:
    found = hashlib.sha256()
    for rows in epochs:
        found.update(len(rows).to_bytes(8, "little"))
        found.update(rows.tobytes())
    return found.hexdigest()
