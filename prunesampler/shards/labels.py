"""The labels of samples in tar shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from prunesampler.errors import UnsupportedError
from prunesampler.shards.headers import Members
from prunesampler.shards.names import split_name
from prunesampler.shards.sources import Source

__all__ = ["Label", "LabelReader", "class_index", "class_indices"]

Label = str | Callable[[str, Mapping[str, bytes]], int | None] | None
"""Where labels come from: the extension of a file that holds an int, a function of key and files, or nowhere."""


def class_index(url: str, key: str, value: object) -> int | None:
    """A label from an int, or from its decimal text; None for −1.

    Raises:
        UnsupportedError: anything else, or not in [−1, 2**31).

    >>> class_index("a.tar", "7", b"3\\n"), class_index("a.tar", "8", -1)
    (3, None)
    """
    try:
        number = -2 if isinstance(value, float) else int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        number = -2
    if not -1 <= number < 2**31:
        raise UnsupportedError(
            f"{url}: the label of sample {key!r} must be an int in [0, 2**31), got {value!r:.60}: "
            "name the extension of another file, or give a function, or None"
        )
    return None if number < 0 else number


def class_indices(url: str, keys: Iterable[object], values: Sequence[object]) -> npt.NDArray[np.int32]:
    """:func:`class_index` of many, −1 for None.

    >>> class_indices("a.tar", ["7", "8"], [b"3", b"-1"])
    array([ 3, -1], dtype=int32)
    """
    try:
        numbers = np.array([int(value) for value in values if type(value) is bytes], np.int64)
        if len(numbers) == len(values) and (not len(numbers) or -1 <= numbers.min() <= numbers.max() < 2**31):
            return numbers.astype(np.int32)
    except (ValueError, OverflowError):
        pass
    pairs = zip(keys, values, strict=True)
    checked = [None if value is None else class_index(url, str(key), value) for key, value in pairs]
    return np.array([-1 if number is None else number for number in checked], np.int32)


class LabelReader:
    """Calls a function with one sample of a shard after the other.

    Args:
        function: of a key, and the sample's files by extension in lower case, which are read when they are looked at
            (in a streamed shard: all of them); returns an int, or None.
        url: of the shard.
    """

    def __init__(self, function: Callable[[str, Mapping[str, bytes]], int | None], url: str) -> None:
        self._function, self._url = function, url
        self._key: str | None = None
        self._files: dict[str, Callable[[], bytes]] = {}
        self._keys: list[str] = []
        self._labels: list[object] = []

    def add(self, source: Source, members: Members) -> None:
        """Files that follow those of the last call."""
        for name, offset, size in zip(members.names, members.offsets.tolist(), members.sizes.tolist(), strict=True):
            part = split_name(name)
            if part is None:
                continue
            if part[0] != self._key:
                self._call()
                self._key, self._files = part[0], {}
            self._files[part[1].lower()] = _later(source, offset, size)

    def end(self) -> npt.NDArray[np.int32]:
        """The labels of all samples in their order, −1 where one has none."""
        self._call()
        return class_indices(self._url, self._keys, self._labels)

    def _call(self) -> None:
        if self._key is not None:
            self._keys.append(self._key)
            self._labels.append(self._function(self._key, _Files(self._files)))


class _Files(Mapping[str, bytes]):
    def __init__(self, readers: Mapping[str, Callable[[], bytes]]) -> None:
        self._readers = readers

    def __getitem__(self, extension: str) -> bytes:
        return self._readers[extension]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def _later(source: Source, offset: int, size: int) -> Callable[[], bytes]:
    if source.streamed:
        content = source.take(offset, size)
        return lambda: content
    return lambda: source.take(offset, size)
