"""All scores by name: which end of each is hard, what it is computed from, and by which function."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from prunesampler.errors import ArgumentError, check_choice
from prunesampler.scores import gradients
from prunesampler.scores import logits as formulas
from prunesampler.scores.logits import Prediction, check_logits

Direction = Literal["higher", "lower"]
Needs = Literal["logits", "last_layer", "inputs", "model"]

# What other columns of a score table are called, and an argument of ScoreTracker.record.
_COUNTED = ("forgetting", "forgetting_events", "learned", "correct", "presentations", "last_epoch")
_RESERVED = ("row", "rows", "key", "shard", "weight", "label", *_COUNTED)


@dataclass(frozen=True)
class Score:
    """A score's entry in the registry.

    Attributes:
        function: as in :func:`register_score`.
        direction: whether a higher or a lower value means a harder sample.
        needs: what the function is given.
        built_in: whether it is one of ours: of logits, :class:`~prunesampler.scores.logits.Prediction` has it, from
            work that it shares with others; of the model, the function takes ``logits_fn`` and ``memory`` too.
    """

    function: Callable[..., Tensor]
    direction: Direction
    needs: Needs = "logits"
    built_in: bool = False

    def values(self, name: str, *given: Any, **options: Any) -> Tensor:
        """The function's (B,) values, given as many targets at the end."""
        values, size = self.function(*given, **options), len(given[-1])
        if not isinstance(values, Tensor) or values.shape != (size,) or values.is_complex():
            found = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise ArgumentError(f"the function of score {name!r}", f"must return a tensor of {size} numbers", found)
        return values.detach()


SCORES: dict[str, Score] = {
    "el2n": Score(formulas.el2n, "higher", built_in=True),
    "loss": Score(formulas.loss, "higher", built_in=True),
    "margin": Score(formulas.margin, "lower", built_in=True),
    "entropy": Score(formulas.entropy, "higher", built_in=True),
    "grand": Score(gradients.grand, "higher", "model", built_in=True),
    "grand_last": Score(gradients.grand_last, "higher", "last_layer", built_in=True),
}


def register_score(
    name: str, function: Callable[..., Tensor], *, direction: Direction, needs: Needs = "logits"
) -> None:
    """Add a score of your own: from then on its name is accepted wherever ``"el2n"`` is.

    That is in this process: register it again in each script that computes it, before the tracker or
    :func:`prunesampler.attach`. A saved table carries the direction, so that selecting from it needs no registration.

    Args:
        name: of the column; not that of another column of a score table, and not ending in ``"_spread"``.
        function: gives (B,) numbers, one per sample, which must not depend on the other samples of the batch:

            * needs ``"logits"``: ``function(logits, targets)``, of (B, C) float32 (float64 where the model's are)
              and (B,) int64 in [0, C). Without gradients. It should not wait for a GPU.
            * needs ``"last_layer"``: ``function(layer, features, logits, targets)``, of the linear layer that gives
              the logits and its (B, d) inputs. Without gradients.
            * needs ``"inputs"``: ``function(inputs, targets)``, of what the model is called with.
            * needs ``"model"``: ``function(model, inputs, targets)``, the model in eval mode, gradients enabled.
        direction: ``"higher"`` or ``"lower"``: the values of harder samples. :func:`prunesampler.select` follows it.
        needs: what the function is given. :class:`prunesampler.ScoreTracker` and the training batches of ``attach``
            compute only scores of logits; :func:`prunesampler.score` and ``attach(..., rescore=)`` compute all.

    Raises:
        ArgumentError: an argument breaks its rule, or the name belongs to another score.

    >>> def label_probability(logits, targets):
    ...     return logits.softmax(1).gather(1, targets[:, None])[:, 0]
    >>> register_score("label_probability", label_probability, direction="lower")
    >>> import prunesampler as ps
    >>> tracker = ps.ScoreTracker(2, scores=["label_probability"])
    >>> tracker.update([0, 1], torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([1, 0]))
    >>> tracker.end_epoch()
    >>> tracker.table().directions
    {'label_probability': 'lower'}
    """
    if not isinstance(name, str) or not name or name in _RESERVED or name.endswith("_spread"):
        raise ArgumentError("name", f'must be a str, not ending in "_spread" and none of {_RESERVED}', name)
    if not callable(function):
        raise ArgumentError("function", "must be a function that returns one number per sample", function)
    check_choice("direction", direction, ("higher", "lower"))
    check_choice("needs", needs, get_args(Needs))
    entry = Score(function, direction, needs)
    if SCORES.setdefault(name, entry) != entry:
        raise ArgumentError("name", "must not be that of another registered score: choose another one", name)


@torch.no_grad()
def compute(names: Collection[str], logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Registered scores of logits, or ``"correct"``, of one batch: (B, C) floats and (B,) class indices beside them.

    (B,) float32 by name; NaN where the target is outside [0, C) or the logits are not finite. ``"correct"`` is bool,
    and False there. Built-in scores never wait for the device.
    """
    check_logits(logits, targets)
    seen = Prediction.of(names, logits, targets)
    found = {}
    for name in names:
        if name == "correct" or SCORES[name].built_in:
            found[name] = seen.score(name)
        else:
            given = logits if logits.dtype == torch.float64 else logits.float()
            values = SCORES[name].values(name, given, seen.targets.clamp(0, seen.classes - 1))
            found[name] = seen.masked(torch.where(values.isfinite(), values, torch.nan))
    return found
