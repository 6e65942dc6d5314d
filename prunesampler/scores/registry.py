"""All scores by name: which end of each is hard, what it is computed from, and by which function."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from prunesampler.errors import ArgumentError, check_choice
from prunesampler.scores import curvature, dynamics, gradients
from prunesampler.scores import logits as formulas
from prunesampler.scores.logits import Prediction, check_logits

Direction = Literal["higher", "lower"]
Needs = Literal["logits", "last_layer", "inputs", "model"]

# What other columns of a score table are called, and an argument of ScoreTracker.record.
_COUNTED = ("forgetting", "forgetting_events", "learned", "correct", "presentations", "last_epoch")
_RESERVED = ("row", "rows", "key", "shard", "weight", "label", *_COUNTED, "suggested_label", "signed_confidence")


@dataclass(frozen=True)
class About:
    """What the docs' table says of a score."""

    what: str
    cost: str
    use: str
    source: str


@dataclass(frozen=True)
class Score:
    """A score's entry in the registry.

    Attributes:
        function: as in :func:`register_score`.
        direction: whether a higher or a lower value means a harder sample.
        needs: what the function is given.
        built_in: whether it is one of ours: of logits, :class:`~prunesampler.scores.logits.Prediction` has it, from
            work that it shares with others; of the model, the function takes ``logits_fn`` and ``memory`` too.
        over_epochs: whether it is one of all epochs together, whatever the reduction, so that one pass has none. The
            function gives what it is made of in each: a mean over epochs, or
        window: of windows, (N, 10) → (N,).
        about: what stands in the docs.
    """

    function: Callable[..., Tensor]
    direction: Direction
    needs: Needs = "logits"
    built_in: bool = False
    over_epochs: bool = False
    window: Callable[[Tensor], Tensor] | None = None
    about: About | None = None

    def values(self, name: str, *given: Any, **options: Any) -> Tensor:
        """The function's (B,) values, given as many targets at the end."""
        values, size = self.function(*given, **options), len(given[-1])
        if not isinstance(values, Tensor) or values.shape != (size,) or values.is_complex():
            found = f"{values.dtype} {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise ArgumentError(f"the function of score {name!r}", f"must return a tensor of {size} numbers", found)
        return values.detach()


_EL2N = "[Paul et al. 2021](https://arxiv.org/abs/2107.07075)"
_AUM = "[Pleiss et al. 2020](https://arxiv.org/abs/2001.10528)"
_FREE, _PASS = "nothing beside the forward", "a forward and a backward with norms of every layer's gradient"

SCORES: dict[str, Score] = {
    "el2n": Score(
        formulas.el2n,
        "higher",
        built_in=True,
        about=About(
            "distance between the prediction and the label", _FREE, "by default; a few epochs are enough", _EL2N
        ),
    ),
    "loss": Score(
        formulas.loss, "higher", built_in=True, about=About("cross entropy", _FREE, "if your field is used to it", "")
    ),
    "margin": Score(
        formulas.margin,
        "lower",
        built_in=True,
        about=About("the label's logit minus the best other one", _FREE, "to look for wrong labels, beside EL2N", _AUM),
    ),
    "entropy": Score(
        formulas.entropy,
        "higher",
        built_in=True,
        about=About("how undecided the prediction is, whatever the label", _FREE, "without trust in the labels", ""),
    ),
    "aum": Score(
        formulas.margin,
        "lower",
        built_in=True,
        over_epochs=True,
        about=About(
            "the mean of the margin over all epochs, whatever `reduction` says",
            _FREE,
            "to look for wrong labels, over a whole run",
            _AUM,
        ),
    ),
    "aum_softmax": Score(
        formulas.softmax_margin,
        "lower",
        built_in=True,
        over_epochs=True,
        about=About(
            "the same of probabilities instead of logits",
            _FREE,
            "to follow CCS, which selects by it",
            "[Zheng et al. 2023](https://arxiv.org/abs/2210.15809)",
        ),
    ),
    "dyn_unc": Score(
        formulas.probability,
        "higher",
        built_in=True,
        over_epochs=True,
        window=dynamics.dyn_unc,
        about=About(
            "the standard deviation of the label's probability in windows of ten epochs, averaged",
            _FREE,
            "if you score a whole run; rows have it from the tenth epoch on",
            "[He et al. 2024](https://arxiv.org/abs/2306.05175)",
        ),
    ),
    "dual": Score(
        formulas.probability,
        "higher",
        built_in=True,
        over_epochs=True,
        window=dynamics.dual,
        about=About(
            "the same times 1 − the mean probability",
            _FREE,
            "over the first 30 of 200 epochs, as published; rows have it from the tenth epoch on",
            "[Cho et al. 2025](https://arxiv.org/abs/2502.06905)",
        ),
    ),
    "grand": Score(
        gradients.grand,
        "higher",
        "model",
        built_in=True,
        about=About(
            "norm of the loss gradient over all parameters that train",
            _PASS,
            "where EL2N's approximation is in doubt; never at initialisation, where it "
            "[does not reproduce](https://arxiv.org/abs/2303.14753)",
            _EL2N,
        ),
    ),
    "grand_last": Score(
        gradients.grand_last,
        "higher",
        "last_layer",
        built_in=True,
        about=About(
            "the same over the last layer alone: EL2N · √(‖features‖² + 1)",
            "a forward",
            "as `grand`, for less",
            _EL2N,
        ),
    ),
    "curvature": Score(
        curvature.curvature,
        "higher",
        "model",
        built_in=True,
        about=About(
            "by how much the input's gradient changes along its signs",
            "two forwards and two backwards",
            'to keep prototypes: coresets by it keep the lowest, `method="bottom"`',
            "[Garg and Roy 2023](https://openaccess.thecvf.com/content/CVPR2023/html/"
            "Garg_Samples_With_Low_Loss_Curvature_Improve_Data_Efficiency_CVPR_2023_paper.html)",
        ),
    ),
    "curvature_rademacher": Score(
        curvature.curvature_rademacher,
        "higher",
        "model",
        built_in=True,
        about=About(
            "the same as a mean over ten directions of random signs",
            "eleven forwards and eleven backwards",
            "as `curvature`, with less noise",
            "the authors' later code",
        ),
    ),
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
    """Registered scores of logits, or what else :meth:`Prediction.score` gives, of one batch: (B, C) floats and (B,)
    class indices beside them.

    (B,) float32 by name; NaN where the target is outside [0, C) or the logits are not finite. Built-in scores never
    wait for the device.
    """
    check_logits(logits, targets)
    seen = Prediction.of(names, logits, targets)
    found = {}
    for name in names:
        if name not in SCORES or SCORES[name].built_in:
            found[name] = seen.score(name)
        else:
            given = logits if logits.dtype == torch.float64 else logits.float()
            values = SCORES[name].values(name, given, seen.targets.clamp(0, seen.classes - 1))
            found[name] = seen.masked(torch.where(values.isfinite(), values, torch.nan))
    return found
