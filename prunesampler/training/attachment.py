"""The tie between a run and the loader and the model that it follows now."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from prunesampler.capture.forward_hook import ForwardHook
from prunesampler.capture.row_loader import RowLoader, plain_class, row_loader_class
from prunesampler.capture.rows import Collated
from prunesampler.training.continuation import carry, let_go, unwrapped, weakly


class Attachment:
    """What a loader, its iterators and the model's hook report to. It lives as long as the loader or an iterator.

    The run lives on with its model, and may go on with another loader through another attachment. What an iterator of
    the earlier loader hands out from then on does not concern the run.
    """

    def __init__(self, run: Any) -> None:
        self._run = run

    @property
    def _is_followed(self) -> bool:
        return self._run.followed.attachment() is self

    def before_pass(self) -> None:
        """``iter(loader)``."""
        self._run.before_pass()

    def started(self) -> Any:
        """An iterator begins."""
        return self._run.started()

    def fetched(self, token: Any, item: Collated) -> Any:
        """A batch is fetched. Returns what is handed out of it."""
        return self._run.fetched(token, item) if self._is_followed else item.batch

    def exhausted(self, token: Any) -> None:
        """An iterator ended."""
        if self._is_followed:
            self._run.exhausted(token)

    def released(self, token: Any) -> None:
        """Nobody holds an iterator any more."""
        if self._is_followed:
            self._run.released(token)

    def forwarded(self, inputs: tuple[Any, ...], output: Any) -> None:
        """A training forward has returned."""
        self._run.forwarded(inputs, output)

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:  # sys may be gone by then
        if not _is_finalizing() and self._is_followed:
            self._run.lose_loader()


class Followed:
    """The loader and the model, which the run does not hold, so that they end with the last name for them.

    Attributes:
        attachment, loader: functions that return what the loader reports to, and the loader; None once they are gone.
        has_model: whether there ever was a model.
    """

    def __init__(self) -> None:
        self.attachment = self.loader = self._model = weakly(None)
        self._inner = weakly(None)  # the model without what wraps it
        self._hook: ForwardHook | None = None
        self.has_model = False

    def tie(self, run: Any, loader: RowLoader[Any], model: nn.Module | None) -> Attachment:
        """Follow these, in the place of those before."""
        attachment = Attachment(run)
        self.attachment, self.loader = weakref.ref(attachment), weakref.ref(loader)
        if model is not None:
            self.has_model, self._model, self._inner = True, weakref.ref(model), weakref.ref(unwrapped(model))
            carry(model, run)
        self.hook(False)
        return attachment

    def are(self, loader: Any, model: nn.Module | None) -> bool:
        """Whether these very objects are followed now."""
        return self.loader() is loader and self._model() is model

    def is_model(self, model: nn.Module | None) -> bool:
        """Whether the run is of this model, however it is wrapped."""
        return not self.has_model if model is None else self._inner() is unwrapped(model)

    @property
    def in_training(self) -> bool:
        """Whether a forward now would be a training forward."""
        model = self._model()
        return torch.is_grad_enabled() and (model is not None and model.training if self.has_model else True)

    @property
    def trained(self) -> int:
        """How often the parameters were changed in place, as optimizers do."""
        model = self._model()
        return 0 if model is None else sum(each._version for each in model.parameters())

    def why_silent(self, trained: bool) -> str:
        """Why no logits may have come in a whole pass, and the cure; ``trained``: the model's weights have changed."""
        model = self._model()
        if not self.has_model:
            return "no logits came: call loader.pruning.observe(logits) after each forward"
        if model is not None and not model.training:
            return "the model is in eval mode, in which nothing is scored: call model.train() before the loop"
        if trained:
            return (
                "the model was trained, but its call was not seen: call model(x), not model.forward(x) nor a module "
                "inside it, attach the very wrapper that the loop calls (DDP, torch.compile), or give the logits to "
                "loader.pruning.observe(logits)"
            )
        return "the model that attach was given was neither called nor trained: give it the one that the loop calls"

    def hook(self, watched: bool) -> None:
        """Whether the model reports its forwards."""
        model, attachment = self._model(), self.attachment()
        if not watched and self._hook is not None:
            self._hook.remove()
            self._hook = None
        elif watched and self._hook is None and model is not None and attachment is not None:
            self._hook = ForwardHook(model, attachment)

    @property
    def owes_rest(self) -> bool:
        """Whether a StatefulDataLoader has yet to hand out the rest of an epoch that was cut off."""
        state = getattr(self.loader(), "next_iter_state", None) or {"_iterator_finished": True}
        return not state.get("_iterator_finished")

    def forget_rest(self) -> None:
        """Its next pass is a whole one: what it would go on with is of a sampler that is replaced now."""
        if hasattr(loader := self.loader(), "next_iter_state"):
            vars(loader)["next_iter_state"] = None

    def adopt(self, rest: Any) -> None:
        """Another loader, which hands out the rest of one pass, reports here too."""
        if not isinstance(rest, RowLoader):
            rest.__class__ = row_loader_class(RowLoader, cast(Any, type(rest)))
        rest._row_listener = self.attachment()

    def release_loader(self) -> None:
        """The loader reports no more."""
        if (loader := self.loader()) is not None:
            loader.__class__ = plain_class(loader)

    def let_model_go(self, run: Any) -> None:
        """The model carries its run no more."""
        if (model := self._inner()) is not None:
            let_go(model, run)
