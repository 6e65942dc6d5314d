"""What prunesampler raises and warns.

::

    PruneSamplerError
    ├── ArgumentError (ValueError)   an argument breaks its rule
    ├── UnsupportedError             this loader, sampler or model cannot be followed safely
    ├── BindingError                 logits cannot be attributed to rows
    ├── StateError                   a call out of order, or a snapshot of another configuration
    ├── RankError                    another rank has died, or does not come
    └── FileError                    a file of ours cannot be used
        ├── CorruptFileError         damaged, cut short or edited
        ├── MismatchError            it belongs to another dataset or another format version
        └── WriteError (OSError)     it cannot be written

    PruneSamplerWarning (UserWarning)
"""

from __future__ import annotations

import difflib
import math
import numbers
import re
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = [
    "ArgumentError",
    "BindingError",
    "CorruptFileError",
    "FileError",
    "MismatchError",
    "PruneSamplerError",
    "PruneSamplerWarning",
    "RankError",
    "StateError",
    "UnsupportedError",
    "WriteError",
    "check_bool",
    "check_bytes",
    "check_choice",
    "check_int",
    "check_number",
    "did_you_mean",
    "missing",
]


class PruneSamplerError(Exception):
    """Base of every exception that this library raises on purpose."""


class ArgumentError(PruneSamplerError, ValueError):
    """An argument breaks its rule.

    Args:
        argument: its name, as the caller wrote it.
        rule: what it must be, as the rest of a sentence.
        value: what was received.
        hint: how the sentence ends, such as :func:`did_you_mean`.

    >>> print(ArgumentError("keep", "must be a float in (0, 1] or an int >= 2", 1))
    keep must be a float in (0, 1] or an int >= 2, got 1
    """

    def __init__(self, argument: str, rule: str, value: object, hint: str = "") -> None:
        super().__init__(argument, rule, value, hint)
        self.argument, self.rule, self.value, self.hint = argument, rule, value, hint

    def __str__(self) -> str:
        shown = repr(self.value)
        return f"{self.argument} {self.rule}, got {shown if len(shown) <= 200 else shown[:200] + '…'}{self.hint}"


class UnsupportedError(PruneSamplerError):
    """This loader, sampler, dataset or model cannot be followed without risking wrong rows."""


class BindingError(PruneSamplerError):
    """Logits cannot be attributed to the rows that they were computed from."""


class StateError(PruneSamplerError):
    """A call came out of order, or a snapshot belongs to another configuration."""


class RankError(PruneSamplerError):
    """Another rank has died, or did not come within the process group's timeout."""


class FileError(PruneSamplerError):
    """A file of ours cannot be used."""


class CorruptFileError(FileError):
    """A file is damaged, cut short, edited, or not one of ours."""


class MismatchError(FileError):
    """A file is sound but belongs to another dataset, or to a newer format."""


class WriteError(FileError, OSError):
    """A file cannot be written: a full or read-only disk. Made as any ``OSError``, of a number, a reason and a path.

    >>> print(WriteError(28, "No space left on device", "runs/a/scores.parquet"))
    runs/a/scores.parquet cannot be written: No space left on device
    """

    @classmethod
    def of(cls, error: OSError, path: object) -> WriteError:
        """The error of a write to ``path``."""
        return cls(error.errno, error.strerror or str(error), str(path))

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {self.strerror}"


class PruneSamplerWarning(UserWarning):
    """Something works, but probably not as its user expects."""


def missing(extra: str, error: ImportError) -> ImportError:
    """The ImportError of an optional dependency, with the extra that brings it."""
    return ImportError(f"{error}: pip install 'prunesampler[{extra}]'", name=error.name)


def check_int(name: str, value: Any, low: int = 0, high: int | None = None) -> int:
    """An int in [low, high], NumPy's included and bools excluded, as a Python int; ArgumentError otherwise."""
    is_int = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_int or value < low or (high is not None and value > high):
        bounds = f">= {low}" if high is None else f"in [{low}, {high}]"
        raise ArgumentError(name, f"must be an int {bounds}", value)
    return int(value)


def check_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, above: bool = False
) -> float:
    """A finite number in [low, high], or (low, high] if ``above``, as a Python float; ArgumentError otherwise."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (above and value == low):
        parts = [f"{'>' if above else '>='} {low:g}"] * (low > -math.inf) + [f"<= {high:g}"] * (high < math.inf)
        raise ArgumentError(name, " ".join(["must be a finite number", " and ".join(parts)]).rstrip(), value)
    return float(value)


def check_bool(name: str, value: Any) -> bool:
    """A bool; ArgumentError otherwise."""
    if not isinstance(value, bool):
        raise ArgumentError(name, "must be True or False", value)
    return value


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """One of ``choices``; ArgumentError otherwise."""
    if not any(value is choice or (type(value) is type(choice) and value == choice) for choice in choices):
        rule = f"must be one of {', '.join(map(repr, choices))}"
        raise ArgumentError(name, rule, value, did_you_mean(value, choices))
    return value


def did_you_mean(value: object, choices: Iterable[object]) -> str:
    """The end of a sentence that names the choice which looks most like ``value``; empty where none does.

    >>> did_you_mean("eln2", ["el2n", "margin"])
    "; did you mean 'el2n'?"
    """
    named = [choice for choice in choices if isinstance(choice, str)]
    found = difflib.get_close_matches(value, named, 1) if isinstance(value, str) else []
    return f"; did you mean {found[0]!r}?" if found else ""


def check_bytes(name: str, value: Any) -> int:
    """A number of bytes >= 1, or a text of it with a unit (kB of 1000 bytes, KiB of 1024, …) or without."""
    if not isinstance(value, str):
        return check_int(name, value, 1)
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kmgt]?)((?<=[kmgt])i(?=b))?b?", value.strip().lower())
    count = int(float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".find(found[2] or " ")) if found else 0
    if count < 1:
        raise ArgumentError(name, "must be a number of bytes such as 1GB, 512MiB or 300000", value)
    return count
