"""Columns: what callers pass, checked and turned into arrays of one form.

Every function raises ArgumentError with the name of the argument. ``length`` is the number of rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from prunesampler.errors import ArgumentError

Int64s = npt.NDArray[np.int64]
_LEVELS = 100  # of nested JSON


def _vector(argument: str, values: Any, length: int | None, kinds: str, rule: str) -> npt.NDArray[Any]:
    if hasattr(values, "detach"):  # a tensor, without importing torch
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise ArgumentError(argument, rule, values) from error
    if array.ndim != 1 or (array.dtype.kind not in kinds and array.size):
        raise ArgumentError(argument, rule, f"{array.dtype} of shape {array.shape}")
    _check_length(argument, array, length)
    return array


def _check_length(argument: str, values: Any, length: int | None) -> None:
    if length is not None and len(values) != length:
        raise ArgumentError(argument, f"must hold {length} values, one per row", len(values))


def row_numbers(argument: str, values: object, num_rows: int) -> Int64s:
    """Row numbers in the caller's order, int64: at least one, each in [0, num_rows).

    Floats are refused because they cannot hold every row number.
    """
    array = _vector(argument, values, None, "iu", "must be integers in one dimension")
    if not len(array):
        raise ArgumentError(argument, "must not be empty", [])
    if int(array.min()) < 0 or int(array.max()) >= num_rows:
        raise ArgumentError(argument, f"must be in [0, {num_rows})", f"{array.min()} … {array.max()}")
    return array.astype(np.int64)


def row_layout(rows: object, num_rows: int) -> tuple[Int64s, Callable[..., Any]]:
    """Distinct row numbers, ascending, and a function that puts a column into their order; all read-only.

    ``column(argument, values, check, **options)`` is ``check(argument, values, len(rows), **options)`` reordered, or
    None for None.
    """
    given = row_numbers("rows", rows, num_rows)
    order = None if (given[1:] > given[:-1]).all() else np.argsort(given, kind="stable")

    def column(argument: str, values: object, check: Callable[..., Any], **options: Any) -> Any:
        if values is None:
            return None
        checked = check(argument, values, len(given), **options)
        if order is not None:
            checked = checked.take(order)
        if isinstance(checked, np.ndarray):
            checked.flags.writeable = False
        return checked

    ascending: Int64s = column("rows", given, lambda _, values, __: values)
    repeated = ascending[1:] == ascending[:-1]
    if repeated.any():
        raise ArgumentError("rows", "must not repeat", int(ascending[1:][repeated][0]))
    return ascending, column


def floats(argument: str, values: object, length: int) -> npt.NDArray[np.float32]:
    """A copy as float32, finite or NaN."""
    with np.errstate(over="ignore"):
        array = _vector(argument, values, length, "fiu", "must be numbers in one dimension").astype(np.float32)
    if np.isinf(array).any():
        raise ArgumentError(argument, "must be finite, or NaN where there is no value", "an infinite value")
    array[np.isnan(array)] = np.nan  # one bit pattern, so that equal columns have equal digests
    return array


def integers(argument: str, values: object, length: int, *, lowest: int) -> npt.NDArray[np.int32]:
    """A copy as int32, every value at least ``lowest``."""
    rule = f"must be integers in [{lowest}, 2**31)"
    array = _vector(argument, values, length, "iu", rule)
    if len(array) and (int(array.min()) < lowest or int(array.max()) >= 2**31):
        raise ArgumentError(argument, rule, f"{array.min()} … {array.max()}")
    return array.astype(np.int32)


def flags(argument: str, values: object, length: int) -> npt.NDArray[np.bool_]:
    """A copy as bool."""
    return _vector(argument, values, length, "b", "must be bools in one dimension").astype(np.bool_)


def identities(argument: str, values: Any, length: int | None) -> Any:
    """Keys or shard names: an int64 array when all are integers, a ``pyarrow.LargeStringArray`` when all are str."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    try:
        if not isinstance(values, pa.Array | pa.ChunkedArray):
            values = pa.array(values if isinstance(values, np.ndarray) else list(values))
        chunks = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
        text = str(chunks.type) in ("string", "large_string", "string_view")
        if chunks.null_count or not (text or pa.types.is_integer(chunks.type)):
            raise TypeError(f"{chunks.null_count} nulls, {chunks.type}")
        chunks = chunks.cast(pa.large_string() if text else pa.int64())
        chunks.validate(full=True)  # that text is UTF-8
    except MemoryError:
        raise
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise ArgumentError(argument, "must be all str or all int (64 bit)", values) from error
    _check_length(argument, chunks, length)
    return pa.concat_arrays(chunks.chunks) if text else chunks.to_numpy()


def json_object(argument: str, value: Mapping[str, Any] | None) -> dict[str, Any]:
    """A deep copy as JSON would give it back: tuples become lists; NaN and infinities are refused, and 100 levels."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(dict(value or {}), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ArgumentError(argument, "must be a mapping of JSON values", value) from error
    except RecursionError:
        copy = {}
        level: list[Any] = [None]
    else:
        level = [copy]
        for _ in range(_LEVELS):
            level = [each for outer in level for each in _inside(outer)]
    if level:
        raise ArgumentError(argument, f"must be nested at most {_LEVELS} deep", type(value).__name__)
    return copy


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def optional_text(argument: str, value: object) -> str | None:
    """A str that is not empty, or None."""
    if value is None or (isinstance(value, str) and value):
        return value
    raise ArgumentError(argument, "must be a str that is not empty, or None", value)
