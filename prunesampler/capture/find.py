"""Finding logits in what a model returns and targets in what a loader hands out, and when that is only a guess."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunesampler.errors import ArgumentError, PruneSamplerWarning, UnsupportedError

TARGET_KEYS = ("labels", "label", "targets", "target", "y")


def find_logits(output: Any) -> Tensor:
    """The logits in what a model returned: a tensor, one under ``logits``, or the first of a tuple."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        if isinstance(logits := output.get("logits"), Tensor):
            return logits
    elif isinstance(logits := getattr(output, "logits", None), Tensor):
        return logits
    elif isinstance(output, (tuple, list)) and output:
        return find_logits(output[0])
    raise UnsupportedError(
        f"no logits in the model's output of type {type(output).__name__}: expected a tensor, .logits, ['logits'] "
        "or a tuple that starts with one; give logits_fn=, a function from the output to the logits"
    )


def find_targets(batch: Any) -> Any:
    """The targets in a batch: under ``labels`` or the like in a dict or a named tuple, or the second of a tuple."""
    named = _named(batch)
    for key in TARGET_KEYS:
        if key in named:
            return named[key]
    if isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return batch[1]
    raise UnsupportedError(
        f"no targets in a batch of type {type(batch).__name__}: expected them second in a tuple, or under one of "
        f"{', '.join(TARGET_KEYS)} in a dict; give target_fn=, a function from the batch to the targets"
    )


def _named(batch: Any) -> Mapping[Any, Any]:
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return dict(zip(batch._fields, batch, strict=True))
    return batch if isinstance(batch, Mapping) else {}


def check_output(output: Any, *, own_scores: bool) -> bool:
    """Refuse a tuple where another tensor than the first may well be the logits; whether it has several heads.

    The first is taken where the others of two dimensions depend on some of its parameters only (features), or are as
    wide (further heads); where there is no gradient to tell them apart, with a warning. With ``own_scores`` it may
    have other dimensions than two.
    """
    if not isinstance(output, (tuple, list)) or isinstance(getattr(output, "logits", None), Tensor) or not output:
        return False
    first = output[0]
    wide = [place for place, entry in enumerate(output) if _is_wide(entry)]
    if not _is_wide(first):
        if wide and not own_scores and isinstance(first, Tensor):
            raise UnsupportedError(
                f"the model returned {_shapes(output)}, and the first of a tuple is taken for the logits, which are of "
                f"shape (batch, classes): say which they are, as in logits_fn=lambda output: output[{wide[0]}]"
            )
        return check_output(first, own_scores=own_scores)
    several = False
    for place in wide[1:]:
        of_first, of_other = _parameters(first), _parameters(output[place])
        if len(first) != len(output[place]) or of_other < of_first:
            continue
        if first.shape != output[place].shape or of_first < of_other:
            raise UnsupportedError(
                f"the model returned {_shapes(output)}, of which the first or number {place} (counted from 0) may be "
                "the logits, the other features, say: say which, as in "
                f"logits_fn=lambda output: output[{place}] (or output[0])"
            )
        several = True
        if not of_first:
            warnings.warn(
                f"the model returned {_shapes(output)}, and the first was taken for the logits: if they are another, "
                f"say so, as in logits_fn=lambda output: output[{place}], and if not, with output[0]",
                PruneSamplerWarning,
                stacklevel=4,
            )
    return several


def _is_wide(entry: Any) -> bool:
    return isinstance(entry, Tensor) and entry.dim() == 2 and entry.shape[1] > 1 and entry.is_floating_point()


def _shapes(entries: Any) -> str:
    return f"({', '.join(str(tuple(e.shape)) if isinstance(e, Tensor) else type(e).__name__ for e in entries)})"


def _parameters(result: Tensor) -> set[Any]:
    """The ends of a tensor's graph: the parameters that it depends on."""
    ends, seen, waiting = set(), set(), [result.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
            if hasattr(node, "variable"):
                ends.add(node)
    return ends


def check_batch(batch: Any, rows: Tensor) -> None:
    """Refuse a batch of ``rows`` where its labels may well be elsewhere than :func:`find_targets` takes them from."""
    named = _named(batch)
    keys = [key for key in TARGET_KEYS if key in named and _is_labels(named[key], rows)]
    if any(not _are_equal(named[keys[0]], named[key]) for key in keys[1:]):
        raise UnsupportedError(
            f"the labels of a batch may be under any of {', '.join(map(repr, keys))}: say which they are, as in "
            f"target_fn=lambda batch: {_place(batch, keys[0])}"
        )
    if any(key in named for key in TARGET_KEYS) or not isinstance(batch, (tuple, list)) or len(batch) < 2:
        return
    places = [place for place, entry in enumerate(batch) if _is_labels(entry, rows)]
    if 1 in places and places[-1] > 1:
        mixed = any(_is_weight(entry) for entry in batch)
        cure = "if it is mixed of two samples each (mixup, CutMix), score in a separate pass with rescore=plain_loader"
        which = _which(batch, [place for place in places if place])
        cures = (cure, f"otherwise say {which}") if mixed else (f"say {which}", cure)
        raise UnsupportedError(
            f"entries {places} of a batch, counted from 0, are integers, one per row, and each may be its labels: "
            f"{'; '.join(cures)}"
        )
    second = batch[1]
    if 1 not in places and places and (places[-1] > 1 or not _is_column(second, len(rows))):
        raise UnsupportedError(
            f"the second entry of a batch, taken for its targets, is {_described(second)}, while entries {places}, "
            f"counted from 0, are integers, one per row: say {_which(batch, places)}"
        )


def _which(batch: Any, places: list[int]) -> str:
    # Offsets of an EmbeddingBag, and ids in order, increase: as an example they would mislead.
    plain = [place for place in places if not _increases(batch[place])]
    return f"which the labels are, as in target_fn=lambda batch: batch[{(plain or places)[-1]}]"


def _increases(column: Any) -> bool:
    return bool((torch.as_tensor(column).long().diff() > 0).all())


def _place(batch: Any, key: str) -> str:
    return f"batch[{key!r}]" if isinstance(batch, Mapping) else f"batch.{key}"


def _described(entry: Any) -> str:
    if isinstance(entry, Tensor):
        return f"{entry.dtype} of shape {tuple(entry.shape)}"
    return f"of type {type(entry).__name__}"


def _is_labels(entry: Any, rows: Tensor) -> bool:
    """Whether these may be class indices: integers, one per row, and not the numbers of the rows."""
    if isinstance(entry, (list, tuple)):
        integers = all(type(value) is int for value in entry)
    elif isinstance(entry, Tensor):
        integers = not (entry.is_floating_point() or entry.is_complex() or entry.dtype == torch.bool)
    else:
        integers = isinstance(entry, np.ndarray) and entry.dtype.kind in "iu"
    return integers and _is_column(entry, len(rows)) and not _are_equal(entry, rows)


def _is_column(entry: Any, length: int) -> bool:
    if isinstance(entry, (Tensor, np.ndarray)):
        return entry.ndim == 1 and len(entry) == length
    return isinstance(entry, (list, tuple)) and len(entry) == length


def _are_equal(one: Any, other: Any) -> bool:
    return torch.equal(*(torch.as_tensor(column).detach().cpu().long() for column in (one, other)))


def _is_weight(entry: Any) -> bool:
    """Whether this may be the weight of a mixed batch."""
    if isinstance(entry, (Tensor, np.ndarray, np.generic)):
        number = torch.as_tensor(entry).is_floating_point() and torch.as_tensor(entry).numel() == 1
    else:
        number = isinstance(entry, float)
    return number and 0 <= float(entry) <= 1


class Finder:
    """Logits and targets as the user's functions say, or by rule; then the first batches are looked at for doubts.

    Args:
        logits_fn: model output → logits, or None.
        target_fn: batch → targets, or None.
        own_scores: whether a function of the user's makes the scores, of logits and targets of any kind.

    Attributes:
        several_heads: whether outputs were seen in which other tensors are as likely the logits.
    """

    def __init__(
        self,
        logits_fn: Callable[[Any], Tensor] | None,
        target_fn: Callable[[Any], Any] | None,
        *,
        own_scores: bool,
        batches: int = 8,
    ) -> None:
        self.logits_fn, self.target_fn, self._own_scores = logits_fn, target_fn, own_scores
        self._batches = batches  # that are still looked at
        self.several_heads = False
        self._clear: set[tuple[Any, ...]] = set()  # outputs of these shapes were found to be clear

    def targets(self, batch: Any, rows: Tensor) -> Any:
        """The targets in a batch of these rows, int64 on the CPU."""
        if self.target_fn is not None:
            return self.target_fn(batch)
        if self._batches and not self._own_scores:
            self._batches -= 1
            check_batch(batch, rows)
        return find_targets(batch)

    def logits(self, output: Any) -> Tensor:
        """The logits in what the model returned."""
        if self.logits_fn is not None:
            logits = self.logits_fn(output)
            if not isinstance(logits, Tensor):
                raise ArgumentError("logits_fn", "must return a tensor", logits)
            return logits
        self.look(output, own_scores=self._own_scores)
        return find_logits(output)

    def look(self, output: Any, *, own_scores: bool = True) -> None:
        """Refuse an output whose logits are in doubt; ``own_scores`` as :func:`check_output` has it."""
        if self.logits_fn is None and isinstance(output, (tuple, list)):
            shapes = tuple(getattr(entry, "shape", ())[1:] for entry in output)
            if shapes not in self._clear:
                self.several_heads |= check_output(output, own_scores=own_scores)
                self._clear.add(shapes)

    @property
    def settled(self) -> Callable[[Any], Tensor] | None:
        """:meth:`logits` once a tuple was found to be clear, by a gradient that a later pass will not have."""
        return self.logits if self._clear else None
