"""Checking a saved state before anything is taken from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from prunesampler.errors import StateError


def check_layout(found: Any, expected: Any, where: str = "state") -> None:
    """Refuse nested dicts but those of ``expected``, which has (dtype, length) for a tensor, else a type or None."""
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping) or set(found) != set(expected):
            names = sorted(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
            raise StateError(f"{where} must hold {sorted(expected)}, got {names}")
        for key, value in expected.items():
            check_layout(found[key], value, f"{where}[{key!r}]")
    elif isinstance(expected, tuple):
        dtype, length = expected
        if not isinstance(found, Tensor) or found.dtype != dtype or found.shape != (length,):
            got = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise StateError(f"{where} must be a tensor of {dtype} ({length},), got {got}")
    elif (expected is None) != (found is None) or (expected is not None and type(found) is not expected):
        wanted = "None" if expected is None else f"of type {expected.__name__}"
        raise StateError(f"{where} must be {wanted}, got {type(found).__name__}")


def check_identity(state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuse a state of another configuration: a StateError names the entry, its value there and its value here."""
    for name, value in identity.items():
        if state[name] != value:
            raise StateError(f"the state was saved with {name} {state[name]!r}, and here it is {value!r}")


def names_in(state: Any, *path: str) -> list[str]:
    """The keys of a dict inside a state that was not checked yet; none where there is no such dict."""
    for key in path:
        state = state.get(key) if isinstance(state, Mapping) else None
    return [name for name in state if isinstance(name, str)] if isinstance(state, Mapping) else []


def copied(value: Any) -> Any:
    """Copies of all tensors in nested dicts, on the CPU."""
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
