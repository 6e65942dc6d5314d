"""A ``state_dict`` as one safetensors file: reading somebody's checkpoint runs no code of theirs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from prunesampler.errors import CorruptFileError
from prunesampler.tables.atomic import atomic_write

__all__ = ["load_state", "save_state"]

_KEY = "prunesampler"
_TENSOR = "tensor:"  # in the JSON, a string that names a tensor; other strings are kept after "text:"
_TEXT = "text:"


def save_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a state whole or not at all.

    Args:
        path: of the file.
        state: nested dicts with str keys and lists, of tensors on any device and plain Python.

    Raises:
        TypeError: it holds anything else.
        OSError: it cannot be written.

    >>> import pathlib, tempfile, torch
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "state.safetensors"
    >>> save_state(path, {"epoch": 3, "sums": {"el2n": torch.zeros(2)}})
    >>> load_state(path)
    {'epoch': 3, 'sums': {'el2n': tensor([0., 0.])}}
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    text = json.dumps(_written(state, tensors))
    content = save(tensors, metadata={_KEY: text})
    with atomic_write(path) as file:
        file.write(content)


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What :func:`save_state` was given, tensors on the CPU.

    Raises:
        OSError: there is no such file.
        CorruptFileError: it was not written by :func:`save_state`, or not wholly.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        state = _read(json.loads(metadata[_KEY]), tensors)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CorruptFileError(f"{os.fspath(path)} is no state of a pruning run, or was damaged: {error}") from error
    if not isinstance(state, dict):
        raise CorruptFileError(f"{os.fspath(path)} is no state of a pruning run: it holds a {type(state).__name__}")
    return state


def _written(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return _TENSOR + name
    if isinstance(value, str):
        return _TEXT + value
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"the keys of a state must be str, got {list(value)}")
        return {key: _written(item, tensors) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_written(item, tensors) for item in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise TypeError(f"a state must hold tensors and plain Python, got {type(value).__name__}")


def _read(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, str):
        return tensors[value.removeprefix(_TENSOR)] if value.startswith(_TENSOR) else value.removeprefix(_TEXT)
    if isinstance(value, dict):
        return {key: _read(item, tensors) for key, item in value.items()}
    if isinstance(value, list):
        return [_read(item, tensors) for item in value]
    return value
