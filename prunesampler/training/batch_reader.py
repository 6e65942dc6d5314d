"""What a run reads of the loader's batches and the model's outputs: rows, targets, logits, and what a proxy keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunesampler.capture.batch_slice import batch_slice
from prunesampler.capture.binder import Pass
from prunesampler.capture.find import Finder
from prunesampler.capture.row_function import RowFunction
from prunesampler.capture.rows import Collated
from prunesampler.errors import BindingError, UnsupportedError
from prunesampler.tracking.eval_pass import model_inputs
from prunesampler.training.phases import Phases
from prunesampler.training.proxy import ProxyTraining
from prunesampler.training.rescore_inputs import RescoreInputs


class BatchReader:
    """Functions of the user's, or of ours, by which a batch is understood."""

    def __init__(
        self,
        phases: Phases,
        finder: Finder,
        *,
        row_fn: RowFunction | None,
        input_fn: Callable[[Any], Any] | None,
        rescore_inputs: RescoreInputs | None,
    ) -> None:
        self._phases, self._finder, self._row_fn = phases, finder, row_fn
        self._find_inputs = model_inputs if input_fn is None else lambda model, batch, targets: input_fn(batch)
        self._rescore_inputs = rescore_inputs

    def rows(self, token: Pass, item: Collated) -> NDArray[np.int64]:
        """The rows of a batch that is handed out, without a doubt where they matter."""
        phases = self._phases
        rows = item.rows if self._row_fn is None else self._row_fn(item.batch, item.rows)
        if not phases.needs_rows and phases.proxy is None:
            return rows
        if self._row_fn is None:
            rows = item.known_rows()
        if phases.scores_batches and not (item.drawn is None and np.array_equal(rows, item.rows)):
            drawn = None if phases.now == "scoring" else phases.pruned.draws
            if phases.swap.real_rows(token.fetched, drawn) < len(rows):
                raise UnsupportedError(
                    "a batch is filled up, as processes have equal numbers of batches, and its collate function "
                    "reorders it, so it cannot be told which rows only fill it up: give the loader drop_last=True"
                )
        return rows

    def filtered(self, proxy: ProxyTraining, rows: NDArray[np.int64], batch: Any) -> tuple[NDArray[np.int64], Any]:
        """The part of a batch that the proxy finds hard."""
        phases, targets = self._phases, self._finder.targets(batch, torch.from_numpy(rows))
        inputs = self._find_inputs(proxy.module, batch, targets)
        count = phases.swap.handed_out(len(rows), phases.pruned.batch_share)
        chosen, losses = proxy.hardest(inputs, targets, count)
        if phases.scoring.online and phases.scoring.tracker is not None:
            phases.scoring.tracker.record(torch.from_numpy(rows), proxy_loss=losses)
        return rows[chosen.numpy()], batch_slice(batch, chosen, len(rows))

    def targets(self, batch: Any, rows: Tensor) -> Any:
        """Those of a batch that is handed out; None where it is not scored."""
        targets = self._finder.targets(batch, rows) if self._phases.scores_batches else None
        if self._rescore_inputs is not None:
            self._rescore_inputs.fetched(batch)
        return targets

    def look_ahead(self, inputs: tuple[Any, ...], output: Any) -> None:
        """Refuse now what the pass over ``rescore`` would refuse, or score wrongly, when the epochs are trained."""
        if self._phases.config.rescored and self._phases.now == "scoring":
            self._finder.look(output)
            if self._rescore_inputs is not None and self._rescore_inputs.forwarded(inputs):
                self._rescore_inputs = None

    def logits(self, output: Any) -> Tensor:
        """Those in what the model returned."""
        return self._finder.logits(output)

    def check_one_head(self) -> None:
        """Refuse to weight samples through the first of several logits alone."""
        if self._finder.several_heads:
            raise BindingError(
                "the model returned several logits, and samples are weighted through the gradient of the first alone: "
                "if the loss is of the first alone, say logits_fn=lambda output: output[0]; otherwise use a coreset or "
                "policy without weights"
            )
