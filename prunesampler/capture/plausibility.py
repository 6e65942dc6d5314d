"""Whether what is taken for logits and targets can be that, seen from the first batches of a run."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from prunesampler.errors import UnsupportedError

_BATCHES = 8  # that are looked at, at the price of waiting for a GPU
_LABELS = 32  # so many labels tell how many classes there are
_ELSEWHERE = (
    "give logits_fn=, a function from the model's output to the logits, and where the model that is attached does not "
    "make them, attach(loader, None, ...) and loader.pruning.observe(logits, inputs) after each forward"
)


def check_no_probabilities(logits: Tensor) -> None:
    """Refuse (B, C) probabilities, whose softmax would be taken once more."""
    if logits.dim() != 2 or not logits.is_floating_point() or not len(logits):
        return
    values = logits.detach()
    # Probabilities of half precision, which a framework may have made float32, sum up to 1 only roughly.
    tolerance = 1e-4 if len(values) == 1 else 5e-2 if logits.dtype == torch.bfloat16 else 1e-2
    if bool((values >= 0).all()) and bool(((values.double().sum(1) - 1).abs() < tolerance).all()):
        raise UnsupportedError(
            "the model returned probabilities (all >= 0, and each row sums to 1) where scores are made of logits: give "
            "logits_fn=lambda output: output.clamp_min(1e-9).log() (their softmax is the probabilities again)"
        )


def all_in_unit_interval(logits: Tensor) -> str | None:
    """The text of a warning if all logits of a batch are between 0 and 1, as those of a sigmoid are."""
    values = logits.detach()
    low, high = float(values.min()), float(values.max())
    if values.numel() < 16 or not 0 <= low < high <= 1:
        return None
    return (
        "all that the model returned is between 0 and 1: if it ends in a sigmoid, give logits_fn=lambda output: "
        "torch.logit(output, 1e-6), and if these are logits, logits_fn=lambda output: output"
    )


class FirstBatches:
    """Looks at the logits and targets of the first batches, and at the gradient that comes back to these logits.

    A loss for a classifier pushes the label's logit up: there its gradient is lowest. If it is lowest elsewhere the
    loss is of other labels than these, or these are no logits.

    Args:
        given: whether the user said which tensor the logits are.
    """

    def __init__(self, *, given: bool) -> None:
        self._given = given
        self._looked = self._labels = self._classes = self._columns = 0
        self._counts: Tensor | None = None  # rows whose gradient was read; of them, those where it agreed

    @property
    def over(self) -> bool:
        """Whether these were the first batches, so that nothing is looked at any more."""
        return self._looked >= _BATCHES or self._labels >= 2 * _LABELS

    @property
    def answered(self) -> bool:
        """Whether a gradient came back."""
        return self._counts is not None

    def look(self, logits: Tensor, targets: Tensor) -> str | None:
        """Look at (B, C) logits and (B,) class indices that were checked; a doubt, as the text of a warning, or None.

        UnsupportedError: these are probabilities.
        """
        self._looked += 1
        check_no_probabilities(logits)
        self._follow(logits, targets)
        self._labels += len(targets)
        self._classes = max(self._classes, int(targets.max()) + 1)
        if self._looked == 1 and not self._given and (doubt := all_in_unit_interval(logits)):
            return doubt
        if self._given or self._labels < _LABELS or self._columns:
            return None
        self._columns = logits.shape[1]
        return many_columns(self._columns, self._classes)

    def _follow(self, logits: Tensor, targets: Tensor) -> None:
        if not logits.requires_grad:
            return
        reference, targets = weakref.ref(self), targets.detach()

        def read(gradient: Tensor) -> None:
            first_batches = reference()
            if first_batches is not None:
                first_batches._read(gradient.detach(), targets)

        logits.register_hook(read)

    @torch.no_grad()
    def _read(self, gradient: Tensor, targets: Tensor) -> None:
        lowest = gradient.float().min(1)
        read = (lowest.values < 0) & lowest.values.isfinite()
        agrees = read & (lowest.indices == targets.to(gradient.device, non_blocking=True))
        counts = torch.stack([read.sum(), agrees.sum()])
        self._counts = counts if self._counts is None else self._counts + counts

    def verdict(self, *, several_heads: bool) -> str | None:
        """What the gradients said so far, as the text of a warning, or None.

        That none came says something where the model has ``several_heads``, else the loss may be made inside forward.
        """
        counts, self._counts = self._counts, None
        if counts is None:
            if not (several_heads and self._looked):
                return None
            return f"no gradient of your loss reached the first of the model's outputs, taken for logits: {_ELSEWHERE}"
        read, agrees = counts.tolist()
        if read < _BATCHES or agrees >= 0.75 * read:
            return None
        return (
            f"in {read - agrees} of {read} rows the loss asked what was taken for logits for another class than the "
            "targets say, so these are not the logits or the labels of your loss, and scores by them mean little: for "
            f"the labels give target_fn=, a function from the batch to them; for the logits {_ELSEWHERE}"
        )


def many_columns(columns: int, classes: int) -> str | None:
    """The text of a warning if logits have far more columns than there are classes."""
    if columns < 4 * classes or columns < 8:
        return None
    return (
        f"the model returned {columns} columns, and labels go up to {classes - 1}: if these are an embedding, scores "
        f"by them mean nothing: {_ELSEWHERE}. If they are logits, logits_fn=lambda output: output says so"
    )
