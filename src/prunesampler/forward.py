"""What goes into a model and what comes out: finding logits, targets and inputs, and hooking a module's forward."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunesampler.errors import BindingError, UnsupportedError

__all__ = [
    "ForwardHook",
    "ForwardListener",
    "find_logits",
    "find_targets",
    "tensor_leaves",
    "to_device",
    "weight_gradient",
]

_TARGET_KEYS = ("labels", "label", "targets", "target", "y")


def find_logits(output: Any) -> Tensor:
    """The logits in what a model returned.

    Args:
        output: a tensor, an object or mapping with ``logits`` (Hugging Face, Inception), or a tuple or list
            whose first entry is one of these.

    Raises:
        UnsupportedError: none of these.

    >>> find_logits({"loss": torch.tensor(1.0), "logits": torch.zeros(2, 3)}).shape
    torch.Size([2, 3])
    """
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
    """The targets in a batch.

    Args:
        batch: a tuple or list whose second entry they are, or a mapping with ``labels``, ``label``, ``targets``,
            ``target`` or ``y``.

    Raises:
        UnsupportedError: none of these.

    >>> find_targets((torch.zeros(2, 4), torch.tensor([1, 0]), {"path": "a"}))
    tensor([1, 0])
    """
    if isinstance(batch, Mapping):
        for key in _TARGET_KEYS:
            if key in batch:
                return batch[key]
    elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
        return batch[1]
    raise UnsupportedError(
        f"no targets in a batch of type {type(batch).__name__}: expected them second in a tuple, or under one of "
        f"{', '.join(_TARGET_KEYS)} in a dict; give target_fn=, a function from the batch to the targets"
    )


def tensor_leaves(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and mappings, in order.

    >>> [leaf.item() for leaf in tensor_leaves({"a": torch.tensor(1), "b": [torch.tensor(2), "text"]})]
    [1, 2]
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensor_leaves(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensor_leaves(item)


def to_device(value: Any, device: torch.device) -> Any:
    """``value`` with every tensor in nested tuples, lists and mappings on ``device``.

    >>> to_device([torch.tensor(1), "text"], torch.device("cpu"))
    [tensor(1), 'text']
    """
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(item, device) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(to_device(item, device) for item in value)
    return value


class ForwardListener(Protocol):
    """Whom a :class:`ForwardHook` tells about a forward."""

    def forwarded(self, inputs: tuple[Any, ...], output: Any) -> None:
        """A training forward (train mode, gradients on) has returned."""


def _no_hook(*args: Any) -> None:
    """What stands in a copied or pickled model where the hook was."""


def _pickled_hook() -> Callable[..., None]:
    return _no_hook


class ForwardHook:
    """A forward hook that tells a listener of every training forward of one module.

    The module holds it, it holds the listener weakly, and a deep copy (EMA) or pickle (``torch.save(model)``) of the
    module carries an empty function instead. Under ``torch.compile`` it runs outside of the graph.

    Args:
        module: the module that the training loop calls: the DDP or compiled wrapper, where there is one.
        listener: told of forwards until it is garbage or the hook is removed.

    >>> class Print:
    ...     def forwarded(self, inputs, output):
    ...         print(tuple(output.shape))
    >>> model, listener = nn.Linear(2, 3), Print()
    >>> hook = ForwardHook(model, listener)
    >>> _ = model(torch.zeros(5, 2))
    (5, 3)
    >>> hook.remove()
    >>> _ = model(torch.zeros(5, 2))
    """

    def __init__(self, module: nn.Module, listener: ForwardListener) -> None:
        self._listener = weakref.ref(listener)
        self._module = weakref.ref(module)
        self._tell = torch.compiler.disable(self._tell_listener)
        self._handle = module.register_forward_hook(self, with_kwargs=True)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if module.training and torch.is_grad_enabled():
            self._tell((*args, kwargs), output)

    def _tell_listener(self, inputs: tuple[Any, ...], output: Any) -> None:
        listener = self._listener()
        if listener is not None:
            listener.forwarded(inputs, output)

    @property
    def in_training(self) -> bool:
        """Whether a forward now would be a training forward."""
        module = self._module()
        return module is not None and module.training and torch.is_grad_enabled()

    def remove(self) -> None:
        """Take the hook off the module."""
        self._handle.remove()

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return _no_hook

    def __reduce__(self) -> tuple[Any, ...]:
        return _pickled_hook, ()


def weight_gradient(logits: Tensor, weights: Tensor, parameter: nn.Parameter | None = None) -> None:
    """Scale the gradient that reaches each sample's logits by that sample's weight.

    This equals weighting the samples' losses wherever the loss reaches the parameters through the logits, and needs
    no per-sample loss.

    Args:
        logits: (B, …) with a gradient.
        weights: (B,) non-negative floats on the logits' device.
        parameter: watched in the next backward: its gradient arriving without the logits' means that the loss goes
            another way.

    Raises:
        BindingError: in the backward, when the loss does not come through ``logits``.

    >>> logits = torch.ones(2, 1, requires_grad=True)
    >>> weight_gradient(logits, torch.tensor([2.0, 0.5]))
    >>> logits.sum().backward()
    >>> logits.grad.flatten().tolist()
    [2.0, 0.5]
    """
    reached = False

    def scale(gradient: Tensor) -> Tensor:
        nonlocal reached
        reached = True
        return gradient * weights.to(gradient.dtype).reshape(-1, *[1] * (gradient.dim() - 1))

    def check(_: Tensor) -> None:
        watch.remove()
        if not reached:
            raise BindingError(
                "a backward reached the parameters but not the model's logits, so the coreset's weights were not "
                "applied: the loss is computed from something else inside forward; use a coreset without weights"
            )

    logits.register_hook(scale)
    if parameter is not None:
        watch = parameter.register_post_accumulate_grad_hook(check)
