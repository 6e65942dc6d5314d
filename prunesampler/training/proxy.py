"""A proxy in training: a small model that learns from every batch and says which of its rows are hard."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.nn.functional import cross_entropy

from prunesampler.capture.find import find_logits
from prunesampler.capture.forward_hook import to_device
from prunesampler.errors import StateError, UnsupportedError
from prunesampler.tracking.eval_pass import called


class ProxyTraining:
    """A proxy, its optimizer, and how many batches it has seen.

    Attributes:
        module: the proxy.
    """

    def __init__(self, module: nn.Module, optimizer: optim.Optimizer, every: int) -> None:
        self.module, self._optimizer, self._every = module, optimizer, every
        self._seen = 0

    def losses(self, inputs: Any, targets: Tensor) -> Tensor:
        """(B,) float32 losses of one batch, of before the step that the proxy takes on it, where it takes one.

        Raises:
            UnsupportedError: targets that are not (B,) class indices, one for each logit.
        """
        device = next(self.module.parameters()).device
        learns = self._seen % self._every == 0
        self._seen += 1
        self.module.train()
        with torch.inference_mode(False), torch.set_grad_enabled(learns):
            inputs, targets = to_device(inputs, device), to_device(targets, device)
            logits = find_logits(called(self.module, inputs))
            if targets.is_floating_point() or logits.shape[:-1] != targets.shape or targets.dim() != 1:
                raise UnsupportedError(
                    f"the proxy gives logits of shape {tuple(logits.shape)} for targets of shape "
                    f"{tuple(targets.shape)}, {targets.dtype}: it must give (B, classes) for (B,) class indices; give "
                    "target_fn= or input_fn= where others were meant"
                )
            losses = cross_entropy(logits.float(), targets.long(), reduction="none")
            if learns:
                self._optimizer.zero_grad(set_to_none=True)
                losses.mean().backward()
                self._optimizer.step()
        return losses.detach()

    def hardest(self, inputs: Any, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """(count,) int64 positions of the highest losses, ascending and on the CPU; and all (B,) losses."""
        losses = self.losses(inputs, targets)
        return losses.topk(count).indices.sort().values.cpu(), losses

    def state_dict(self) -> dict[str, Any]:
        """Proxy, optimizer and count, as tensors and plain Python on the CPU."""
        cpu = torch.device("cpu")
        state = {"module": self.module.state_dict(), "optimizer": self._optimizer.state_dict()}
        return {**copy.deepcopy(to_device(state, cpu)), "seen": self._seen}

    def load_state_dict(self, state: Any) -> None:
        """Go on from there.

        Raises:
            StateError: of another proxy or optimizer.
        """
        try:
            self.module.load_state_dict(state["module"])
            self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
            self._seen = int(state["seen"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise StateError(f"the state holds no sound proxy: {error}") from error
