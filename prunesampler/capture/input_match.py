"""Recognising a batch in the inputs of a model, by some of its values."""

from __future__ import annotations

import weakref
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

_VALUES = 256  # compared of each input


class Input(NamedTuple):
    """The tensor that a forward was given, as it was then."""

    tensor: weakref.ref[Tensor]
    address: int
    version: int
    numel: int

    @classmethod
    def of(cls, leaf: Tensor) -> Input:
        """``leaf`` as it is now."""
        return cls(weakref.ref(leaf), leaf.data_ptr(), leaf._version, leaf.numel())

    def is_still(self, leaf: Tensor) -> bool:
        """Whether ``leaf`` is this tensor, unchanged."""
        # Once the tensor is garbage its memory may hold another batch.
        return self.tensor() is not None and self[1:] == (leaf.data_ptr(), leaf._version, leaf.numel())


@lru_cache(maxsize=64)
def _positions(numel: int, device: torch.device) -> Tensor:
    if numel <= _VALUES:
        return torch.arange(numel, device=device)
    # Multiples of the golden ratio are even at every length and in step with no image width.
    fractions = torch.arange(1, _VALUES + 1, dtype=torch.float64).mul_(0.6180339887498949).frac_()
    return (fractions * numel).long().to(device)


def sample(leaf: Tensor) -> Tensor:
    """Up to 256 values of ``leaf``, always at the same flat positions; on its device."""
    return leaf.detach().take(_positions(leaf.numel(), leaf.device))


class Probe(NamedTuple):
    """Some values of one input of a batch, on its device."""

    numel: int
    values: Tensor

    def equals(self, numel: int, values: Tensor) -> bool:
        """Whether an input of ``numel`` elements, with these values at the same positions, is this one."""
        if self.numel != numel:
            return False
        expected = self.values.to(values.device, values.dtype)  # casts round alike here and in the loop
        return torch.equal(expected, values) or torch.equal(expected.nan_to_num(), values.nan_to_num())

    @property
    def constant(self) -> bool:
        """Whether all its values are the same."""
        return bool((self.values == self.values[0]).all())


def likeness(probes: list[Probe], samples: list[tuple[int, Tensor]]) -> list[tuple[int, int]]:
    """Pairs (input of the forward, input of the batch) that are equal; a constant one (a mask) says nothing."""
    pairs = [
        (i, j)
        for i, (numel, values) in enumerate(samples)
        for j, probe in enumerate(probes)
        if probe.equals(numel, values)
    ]
    if len(probes) == 1:  # whether it is constant changes nothing, and takes long to find out
        return pairs
    return [pair for pair in pairs if not probes[pair[1]].constant] or (
        pairs if all(probe.constant for probe in probes) else []
    )
