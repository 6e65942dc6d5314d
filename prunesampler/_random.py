"""Mixing seeds and hashing rows: pure functions of integers, the same on every machine."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["hash64", "mix"]

_MASK = 2**64 - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _finish(value: int) -> int:
    value = (value ^ (value >> 30)) * _FIRST & _MASK
    value = (value ^ (value >> 27)) * _SECOND & _MASK
    return value ^ (value >> 31)


def mix(*parts: int) -> int:
    """One 64-bit key from any integers; every part and their order matter.

    Seeds are mixed rather than added because ``seed + epoch`` gives seed 0 in epoch 1 the order of seed 1 in
    epoch 0. The result is the same on every machine and in every version of this library. The steps are those
    of SplitMix64 (Steele, Lea and Flood, 2014).

    Args:
        parts: integers of any size and sign.

    Returns:
        An int in [0, 2**64).

    >>> mix(0, 1) == mix(1, 0)
    False
    >>> hex(mix(0, 1))
    '0x68d19f94795e7dd4'
    """
    state = len(parts)
    for part in parts:
        rest = 2 * part if part >= 0 else -2 * part - 1
        while True:
            state = _finish((state ^ (rest & _MASK)) + _GOLDEN & _MASK)
            rest >>= 64
            if not rest:
                break
        state = _finish(state + _GOLDEN & _MASK)
    return state


def hash64(key: int, values: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """A keyed hash of non-negative integers, evenly spread over [0, 2**64).

    For one key, different values have different hashes, so sorting by the hash breaks every tie.

    Args:
        key: any int, as from :func:`mix`.
        values: non-negative integers, int64, of any shape.

    Returns:
        uint64, the shape of ``values``.

    >>> hash64(mix(0), [5, 6]) == hash64(mix(0), [6, 5])[::-1]
    array([ True,  True])
    """
    hashed: npt.NDArray[np.uint64] = np.array(values, dtype=np.uint64)
    hashed *= np.uint64(_GOLDEN)
    hashed += np.uint64(mix(key))
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        hashed ^= hashed >> np.uint64(shift)
        hashed *= np.uint64(factor)
    hashed ^= hashed >> np.uint64(31)
    return hashed
