"""What other libraries do at a step to keep scores: one function a library, from a batch to what is called with rows.

Each is given what it wants (losses, lists, probabilities), made outside of what is timed.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

__all__ = ["Step", "peers"]

Step = Callable[[Tensor], Any]
_PROBABILITIES = 20_000_000  # that cleanlab is given at once, about


def aum(num_rows: int, logits: Tensor, targets: Tensor) -> Step:
    """AUMCalculator wants ids as a list."""
    calculator = importlib.import_module("aum").AUMCalculator(tempfile.mkdtemp())
    return lambda rows: calculator.update(logits, targets, rows.tolist())


def infobatch(num_rows: int, logits: Tensor, targets: Tensor, folder: Path) -> Step:
    """Stores the losses it is given, and weighs and averages them for the backward pass."""
    sys.path.insert(0, str(folder))
    loader = torch.utils.data.dataloader._BaseDataLoaderIter
    before = loader.__next__
    try:
        module = importlib.import_module("infobatch")
    finally:
        loader.__next__ = before  # type: ignore[method-assign]  # it replaces that of every DataLoader
        sys.path.remove(str(folder))
    scored = module.InfoBatch(range(num_rows), num_epochs=10)
    losses = cross_entropy(logits, targets, reduction="none")

    def step(rows: Tensor) -> None:
        scored.set_active_indices(rows)
        scored.update(losses)

    return step


def composer(num_rows: int, logits: Tensor, targets: Tensor) -> Step:
    """Chooses within the batch by its losses; the model's extra forward is left out, the loss is its own."""
    module = importlib.import_module("composer.algorithms.selective_backprop.selective_backprop")
    return lambda rows: module.select_using_loss(logits, targets, lambda inputs: inputs, cross_entropy)


def datacull(num_rows: int, logits: Tensor, targets: Tensor) -> Step:
    """Writes the losses that it is given to a file, a line a sample."""
    folder = tempfile.mkdtemp()
    logger = importlib.import_module("datacull").DCLogger(folder + "/")
    losses = cross_entropy(logits, targets, reduction="none")
    return lambda rows: logger.log_metric(0, rows, losses)


def dprune(num_rows: int, logits: Tensor, targets: Tensor) -> Step:
    """Notes who was right; the pass over all samples that it makes at each epoch's end is left out."""
    callback = importlib.import_module("dprune").ForgettingCallback()
    answers = types.SimpleNamespace(predictions=logits.numpy(), label_ids=targets.numpy())
    callback.trainer = types.SimpleNamespace(train_dataset=(), predict=lambda dataset: answers)

    def step(rows: Tensor) -> None:
        callback.learning_events = {}
        callback.on_epoch_end(None, None, None)

    return step


def cleanlab(num_rows: int, logits: Tensor, targets: Tensor) -> Step:
    """Label quality of many batches at once, from probabilities that it is given."""
    rank = importlib.import_module("cleanlab.rank")
    together = max(1, min(20, _PROBABILITIES // logits.numel()))
    probabilities = logits.double().softmax(1).repeat(together, 1).numpy()
    labels = targets.repeat(together).numpy()
    waiting = 0

    def step(rows: Tensor) -> None:
        nonlocal waiting
        waiting += 1
        if waiting == together:
            rank.get_label_quality_scores(labels, probabilities)
            waiting = 0

    return step


def peers(
    num_rows: int, logits: Tensor, targets: Tensor, folder: Path | None
) -> tuple[dict[str, Step], dict[str, dict[str, str]]]:
    """The libraries that are there, by what is compared; and the errors of the others."""
    made: dict[str, Callable[[], Step]] = {
        "aum": lambda: aum(num_rows, logits, targets),
        "Composer, select_using_loss without its forward": lambda: composer(num_rows, logits, targets),
        "cleanlab, get_label_quality_scores of given probabilities": lambda: cleanlab(num_rows, logits, targets),
        "DataCull, DCLogger of given losses": lambda: datacull(num_rows, logits, targets),
        "dPrune, ForgettingCallback without its pass": lambda: dprune(num_rows, logits, targets),
    }
    if folder is not None:
        made["InfoBatch, update with given losses"] = lambda: infobatch(num_rows, logits, targets, folder)
    tried = {name: _tried(make, torch.arange(len(logits))) for name, make in made.items()}
    failed = {name: {"error": found} for name, found in tried.items() if isinstance(found, str)}
    return {name: found for name, found in tried.items() if not isinstance(found, str)}, failed


def _tried(make: Callable[[], Step], rows: Tensor) -> Step | str:
    try:
        step = make()
        step(rows)
    except ModuleNotFoundError as error:
        return f"not installed ({error})"
    except Exception as error:  # whatever a peer does, the others are measured
        return f"{type(error).__name__}: {error}"
    return step
