"""Some samples of a collated batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from prunesampler.errors import UnsupportedError


def batch_slice(batch: Any, positions: Tensor, size: int) -> Any:
    """The samples at some positions of a batch of ``size``, in a batch of the same types.

    Tensors and arrays whose first dimension is ``size`` are indexed, and so are lists and tuples of ``size`` entries
    that hold none such (texts, paths, images one by one). Whatever else a batch carries stays as it is.

    Args:
        batch: nested tuples, lists and mappings.
        positions: (K,) int64 on the CPU.
        size: samples in the batch.

    Raises:
        UnsupportedError: it holds no tensor or array of ``size`` samples.

    >>> import torch
    >>> batch_slice({"x": torch.arange(6).reshape(3, 2), "id": ["a", "b", "c"]}, torch.tensor([0, 2]), 3)
    {'x': tensor([[0, 1],
            [4, 5]]), 'id': ['a', 'c']}
    """
    if not any(_holds_samples(leaf, size) for leaf in _leaves(batch)):
        raise UnsupportedError(
            f"no tensor of {size} samples in a batch of type {type(batch).__name__}, so it cannot be divided: give the "
            "loader a collate_fn that returns tensors in a tuple, a list or a dict"
        )
    return _slice(batch, positions, size)


def _slice(value: Any, positions: Tensor, size: int) -> Any:
    if isinstance(value, Tensor):
        return value.index_select(0, positions.to(value.device)) if _holds_samples(value, size) else value
    if isinstance(value, np.ndarray):
        return value[positions.numpy()] if _holds_samples(value, size) else value
    if isinstance(value, Mapping):
        parts = {key: _slice(item, positions, size) for key, item in value.items()}
        if type(value) is dict:
            return parts
        changed: Any = copy.copy(value)
        for key, item in parts.items():
            changed[key] = item
        return changed
    if isinstance(value, (tuple, list)):
        if len(value) == size and not any(_holds_samples(leaf, size) for leaf in _leaves(value)):
            kept = [value[position] for position in positions.tolist()]
        else:
            kept = [_slice(item, positions, size) for item in value]
        return type(value)(*kept) if hasattr(value, "_fields") else type(value)(kept)
    return value


def _holds_samples(leaf: Any, size: int) -> bool:
    return leaf.ndim > 0 and len(leaf) == size


def _leaves(value: Any) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)
