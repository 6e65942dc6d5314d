"""Hooking a module's forward, and the tensors in what it is given."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from prunesampler.errors import UnsupportedError

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


def check_hookable(module: nn.Module) -> None:
    """Refuse a module that takes no forward hook of Python's."""
    if isinstance(module, torch.jit.ScriptModule):
        raise UnsupportedError(
            f"model is a ScriptModule ({type(module).__name__}), whose forward nothing in Python can follow: attach "
            "to the module that it was made from and script it after training, or give attach model=None and call "
            "loader.pruning.observe(logits) after each forward"
        )


class ForwardHook:
    """A forward hook that calls ``listener.forwarded(inputs, output)`` after every training forward of one module.

    The module holds it, it holds the listener weakly, and goes with it. A deep copy (EMA) or pickle
    (``torch.save(model)``) of the module has a function of the standard library that does nothing in its place, so
    that whoever loads it needs no prunesampler. Under ``torch.compile`` it runs outside of the graph.
    """

    def __init__(self, module: nn.Module, listener: Any) -> None:
        self._handle = handle = module.register_forward_hook(self, with_kwargs=True)
        self._listener = weakref.ref(listener, lambda _: handle.remove())
        self._tell = torch.compiler.disable(self._tell_listener)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """What the module calls after each forward."""
        if module.training and torch.is_grad_enabled():
            self._tell((*args, kwargs), output)

    def _tell_listener(self, inputs: tuple[Any, ...], output: Any) -> None:
        listener = self._listener()
        if listener is not None:
            listener.forwarded(inputs, output)

    def remove(self) -> None:
        """Take the hook off the module."""
        self._handle.remove()

    def __getattr__(self, name: str) -> Any:
        if name == "__name__":  # torch.jit.script wants to compile each hook under its name
            raise AttributeError(
                "a model cannot be scripted while prunesampler follows its forwards: do it once they are no longer "
                "scored or weighted, or call loader.pruning.detach() first"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (contextlib.nullcontext(), "__exit__")  # takes any arguments and returns None
