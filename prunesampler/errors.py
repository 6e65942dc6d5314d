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
]


class PruneSamplerError(Exception):
    """Base of every exception that this library raises on purpose."""


class ArgumentError(PruneSamplerError, ValueError):
    """An argument breaks its rule.

    Args:
        argument: its name, as the caller wrote it.
        rule: what it must be, as the rest of a sentence.
        value: what was received.

    >>> print(ArgumentError("keep", "must be a float in (0, 1] or an int >= 2", 1))
    keep must be a float in (0, 1] or an int >= 2, got 1
    """

    def __init__(self, argument: str, rule: str, value: object) -> None:
        super().__init__(argument, rule, value)
        self.argument, self.rule, self.value = argument, rule, value

    def __str__(self) -> str:
        shown = repr(self.value)
        return f"{self.argument} {self.rule}, got {shown if len(shown) <= 200 else shown[:200] + '…'}"


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
