"""Checking a saved state before anything is taken from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunesampler.errors import StateError


def check_layout(found: Any, expected: Any, where: str = "state") -> None:
    """Refuse nested dicts but those of ``expected``, which has a tuple for a tensor, else a type or None.

    The tuple is (dtype, length), with the lowest value where there is one, and the highest. Floats must be finite.
    """
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping) or set(found) != set(expected):
            names = sorted(map(str, found)) if isinstance(found, Mapping) else type(found).__name__
            raise StateError(f"{where} must hold {sorted(expected)}, got {names}")
        for key, value in expected.items():
            check_layout(found[key], value, f"{where}[{key!r}]")
    elif isinstance(expected, tuple):
        _check_tensor(found, *expected, where=where)
    elif (expected is None) != (found is None) or (expected is not None and type(found) is not expected):
        wanted = "None" if expected is None else f"of type {expected.__name__}"
        raise StateError(f"{where} must be {wanted}, got {type(found).__name__}")


def _check_tensor(
    found: Any, dtype: torch.dtype, length: int, low: int | None = None, high: int | None = None, *, where: str
) -> None:
    dense = isinstance(found, Tensor) and found.layout is torch.strided and not found.is_meta
    if not dense or found.dtype != dtype or found.shape != (length,):
        got = type(found).__name__
        if isinstance(found, Tensor):
            kind = "" if found.layout is torch.strided else f", {found.layout}"
            got = f"{found.dtype} {tuple(found.shape)} on {found.device}{kind}"
        raise StateError(f"{where} must be a dense tensor of {dtype} ({length},), got {got}")
    if dtype.is_floating_point and not bool(found.isfinite().all()):
        raise StateError(f"{where} must be finite, got {int((~found.isfinite()).sum())} infinite or NaN values")
    if length and low is not None:
        found_low, found_high = int(found.amin()), int(found.amax())
        if found_low < low or (high is not None and found_high > high):
            rule = f"at least {low}" if high is None else f"in [{low}, {high}]"
            raise StateError(f"{where} must be {rule}, got {found_low} to {found_high}")


def check_count(found: Any, where: str) -> None:
    """Refuse all but an int >= 0."""
    check_layout(found, int, where)
    if found < 0:
        raise StateError(f"{where} must be >= 0, got {found}")


def is_other(found: Any, value: Any) -> bool:
    """Whether a state has something else than ``value``, plain data: a tensor is."""
    try:
        return isinstance(found, Tensor) or bool(found != value)
    except (TypeError, ValueError, RuntimeError):
        return True


def check_identity(state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuse a state of another configuration: a StateError names the entry, its value there and its value here."""
    for name, value in identity.items():
        if is_other(state[name], value):
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
