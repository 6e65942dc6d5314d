"""Hooking a module's forward, and the tensors in what it is given."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

_DEPTH = 3  # objects in objects that are looked into


def tensor_leaves(value: Any, depth: int = _DEPTH) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists, mappings, and objects that hold a batch, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensor_leaves(item, depth)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensor_leaves(item, depth)
    elif depth and not callable(value) and not isinstance(value, Dataset):
        for item in _attributes(value):
            yield from tensor_leaves(item, depth - 1)


def _attributes(value: Any) -> Iterator[Any]:
    yield from getattr(value, "__dict__", {}).values()
    slots = getattr(type(value), "__slots__", ())
    for name in (slots,) if isinstance(slots, str) else slots:
        if hasattr(value, name):
            yield getattr(value, name)


def to_device(value: Any, device: torch.device) -> Any:
    """``value`` with every tensor in nested tuples, lists and mappings on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(item, device) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(to_device(item, device) for item in value)
    move = getattr(value, "to", None)  # of an object that holds a batch
    return move(device) if callable(move) else value


def _no_hook(*args: Any) -> None:
    """Replaces the hook in a copied or pickled model."""


def _pickled_hook() -> Callable[..., None]:
    return _no_hook


class ForwardHook:
    """A forward hook that calls ``listener.forwarded(inputs, output)`` after every training forward of one module.

    The module holds it, it holds the listener weakly, and a deep copy (EMA) or pickle (``torch.save(model)``) of the
    module has an empty function instead. Under ``torch.compile`` it runs outside of the graph.
    """

    def __init__(self, module: nn.Module, listener: Any) -> None:
        self._handle = handle = module.register_forward_hook(self, with_kwargs=True)
        self._listener = weakref.ref(listener, lambda _: handle.remove())
        self._module = weakref.ref(module)
        self._tell = torch.compiler.disable(self._tell_listener)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """What the module calls after each forward."""
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

    def __reduce__(self) -> tuple[Any, ...]:
        return _pickled_hook, ()
