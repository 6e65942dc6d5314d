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


class Probe:
    """What is kept of one input of a batch: some values, on its device, and while others hold it, all of them."""

    def __init__(self, leaf: Tensor) -> None:
        self.input, self._values = Input.of(leaf), sample(leaf)
        self._constant: bool | None = None
        self._elsewhere: tuple[Tensor, Tensor] | None = None  # where a constant one has other values, and these

    @property
    def device(self) -> torch.device:
        """Where the values are."""
        return self._values.device

    @property
    def constant(self) -> bool:
        """Whether all values that are kept are the same. May wait for the device."""
        if self._constant is None:
            self._constant = torch.equal(self._values, self._values[:1].expand_as(self._values))
        return self._constant

    def sharpen(self) -> None:
        """Keep other values of a constant one, if the whole has any. May wait for the device."""
        if self.constant and (whole := self._whole) is not None:
            flat = whole.detach().reshape(-1)
            positions = _positions_of_others(flat, self._values[0])
            if len(positions):
                self._elsewhere, self._constant = (positions, flat[positions]), False

    def equals(self, leaf: Tensor, values: Tensor) -> bool:
        """Whether ``leaf``, whose :func:`sample` is ``values``, has all values that are kept."""
        if self.input.numel != leaf.numel() or not _equal(self._values, values):
            return False
        return self._elsewhere is None or _equal(self._elsewhere[1], _at(leaf, self._elsewhere[0]))

    def equals_whole(self, leaf: Tensor) -> bool | None:
        """Whether ``leaf`` has the values of the whole; None where these are not at hand any more."""
        if self.input.is_still(leaf):
            return True
        whole = self._whole
        return None if whole is None else same_values(whole, leaf)

    def differs(self, leaf: Tensor) -> Tensor:
        """Whether ``leaf``, of as many elements, lacks one of the values: (), int32, left on its device."""
        differs = [_unequal(self._values, sample(leaf))]
        if self._elsewhere is not None:
            differs.append(_unequal(self._elsewhere[1], _at(leaf, self._elsewhere[0])))
        return torch.cat(differs).any().int()

    @property
    def _whole(self) -> Tensor | None:
        leaf = self.input.tensor()
        return leaf if leaf is not None and self.input.is_still(leaf) else None


Pair = tuple[int, int]


def likeness(probes: list[Probe], leaves: list[Tensor], samples: list[Tensor]) -> tuple[list[Pair], list[Pair]]:
    """Pairs (input of the forward, input of the batch) that are equal in the values that are kept.

    Where all of them are constant (a mask, an empty image), they stand apart: those neither confirm nor exclude.
    """

    def equal() -> list[Pair]:
        return [(i, j) for i, leaf in enumerate(leaves) for j, b in enumerate(probes) if b.equals(leaf, samples[i])]

    pairs = equal()
    if pairs and all(probes[j].constant for _, j in pairs):
        for j in {j for _, j in pairs}:
            probes[j].sharpen()
        pairs = equal()
    telling = [(i, j) for i, j in pairs if not probes[j].constant]
    return telling, [] if telling else pairs


def same_values(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same elements, in any shape and precision, on any device."""
    return one.numel() == other.numel() and _equal(one.detach().reshape(-1), other.detach().reshape(-1))


def _at(leaf: Tensor, positions: Tensor) -> Tensor:
    return leaf.detach().take(positions.to(leaf.device, non_blocking=True))


def _equal(expected: Tensor, values: Tensor) -> bool:
    expected = expected.to(values.device, values.dtype)  # casts round alike here and in the loop
    if torch.equal(expected, values):
        return True
    return torch.equal(expected.nan_to_num(), values.nan_to_num()) and torch.equal(expected.isnan(), values.isnan())


def _unequal(expected: Tensor, values: Tensor) -> Tensor:
    expected = expected.to(values.device, values.dtype, non_blocking=True)
    return expected.nan_to_num() != values.nan_to_num()


def _positions_of_others(flat: Tensor, value: Tensor) -> Tensor:
    """Up to 256 positions where ``flat`` has another value, sought from the start."""
    start, size = 0, 1 << 16
    while start < len(flat):
        found = (flat[start : start + size] != value).nonzero().reshape(-1)
        if len(found):
            return found[:_VALUES] + start
        start, size = start + size, 2 * size
    return flat.new_empty(0, dtype=torch.int64)
