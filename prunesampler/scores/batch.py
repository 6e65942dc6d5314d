"""A batch for a model, of which single samples can be taken, and the gradient of its loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_flatten, tree_unflatten

from prunesampler.errors import check_int
from prunesampler.scores.logits import check_logits

_CPU_MEMORY = 1 << 30


class Batch:
    """What a model is called with for (B,) targets, of which single samples can be taken.

    Tensors in ``inputs`` whose first axis has length B belong to the samples; anything else is given to each.
    """

    def __init__(
        self, model: nn.Module, inputs: Any, targets: Tensor, logits_fn: Callable[[Any], Tensor] | None = None
    ) -> None:
        self.model, self.targets, self._logits_fn = model, targets, logits_fn
        self.leaves, self.form = tree_flatten(inputs)
        self.axes = tuple(
            0 if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == len(targets) else None for leaf in self.leaves
        )

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, samples: slice) -> Batch:
        leaves = [leaf if axis is None else leaf[samples] for leaf, axis in zip(self.leaves, self.axes, strict=True)]
        return Batch(self.model, tree_unflatten(leaves, self.form), self.targets[samples], self._logits_fn)

    def split(self, size: int) -> Iterator[Batch]:
        """In parts of ``size`` samples."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def logits(self, leaves: Any = None, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """(B, C) logits, of other leaves of the inputs and with other parameters where they are given."""
        inputs = tree_unflatten(list(self.leaves if leaves is None else leaves), self.form)
        args, keywords = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, {})
        args = args if isinstance(args, tuple) else (args,)
        if parameters is None:
            output = self.model(*args, **keywords)
        else:
            output = torch.func.functional_call(self.model, dict(parameters), args, keywords)
        return output if self._logits_fn is None else self._logits_fn(output)


def loss_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """A number with the gradient of the cross entropy's sum over samples; exact for confident ones too.

    Autograd's log-softmax has 1 − p for the label, and so 0 where p rounds to 1.
    """
    check_logits(logits, targets)
    logits = wide(logits)
    label = targets.long().unsqueeze(1)
    others = logits.detach().softmax(1).scatter(1, label, 0.0)
    return (logits * others.scatter(1, label, -others.sum(1, keepdim=True))).sum()


def memory_for(device: torch.device, given: int | None) -> int:
    """Bytes that may be taken: as given, or half of what is free on a GPU, or 1 GiB on a CPU."""
    if given is not None:
        return check_int("memory", given, 1)
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else _CPU_MEMORY


def wide(tensor: Tensor) -> Tensor:
    """float64 where it is that, else float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


@contextmanager
def kept_bytes(model: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes by place that forwards in the block keep for their backward, the model's own parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            kept[place] = max(kept.get(place, 1), tensor.numel() * tensor.element_size())
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        yield kept
