"""Runs of a training function of the user's, each kept in a file of JSON once it is finished."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prunesampler.errors import ArgumentError, CorruptFileError, MismatchError, WriteError, check_int
from prunesampler.tables.atomic import atomic_write, remove_unfinished

_log = logging.getLogger("prunesampler")

Rows = npt.NDArray[np.int64] | Callable[[int], npt.NDArray[np.int64]] | None
"""What a run may train on: (K,) rows, ascending; a function of the epoch, from 0, to such rows; None: all of them."""


@dataclass(frozen=True)
class Trial:
    """One finished run.

    Attributes:
        arm, seed: which one.
        share: how long it trained, as a fraction of the full training.
        rows: how many it trained on in an epoch; None: all.
        digest: of these rows.
        metric: what the training function returned.
        seconds: how long it took.
    """

    arm: str
    seed: int
    share: float
    rows: int | None
    digest: str | None
    metric: float
    seconds: float


class Trials:
    """Calls ``train(rows, seed=…, share=…)``, and remembers in ``save_dir`` what it returned.

    Args:
        train: a function ``(rows, *, seed: int, share: float) -> float``: trains a new model on these rows alone, for
            ``share`` of the steps of the full training (its schedule ends there), and returns a metric of validation
            data, higher is better. ``rows`` is (K,) int64, ascending, or None for all.
        save_dir: a folder, made if need be, for one file of JSON a run; a run that is there is not run again.

    Raises:
        ArgumentError: ``train`` cannot be called so, or returns anything but a finite number.
        MismatchError: a file in the folder is of a run on other rows or of another length.
        CorruptFileError: a file in the folder is damaged.

    >>> trials = Trials(lambda rows, *, seed, share: share * len(rows))
    >>> trials.run("kept", np.arange(4), seed=0, share=0.5).metric
    2.0
    """

    def __init__(self, train: Callable[..., Any], save_dir: str | os.PathLike[str] | None = None) -> None:
        try:
            inspect.signature(train).bind(None, seed=0, share=1.0)
        except (TypeError, ValueError) as error:
            rule = f"must be a function (rows, *, seed, share) -> float ({error})"
            raise ArgumentError("train", rule, train) from None
        self.train, self.folder = train, None if save_dir is None else Path(save_dir).absolute()
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise WriteError.of(error, self.folder) from error

    def run(self, arm: str, rows: Rows, *, seed: int, share: float) -> Trial:
        """The result of this run: from its file, if it has one."""
        first = rows(0) if callable(rows) else rows
        digest = None if first is None else hashlib.sha256(first.astype("<i8").tobytes()).hexdigest()
        file = None if self.folder is None else self.folder / f"{arm}-seed{seed}.json"
        if file is not None and file.exists():
            found = _load(file)
            if found.digest != digest or not math.isclose(found.share, share, rel_tol=1e-9):
                raise MismatchError(f"{file} is of other rows or of another length: give another save_dir")
            return found
        began = time.perf_counter()
        metric = self.train(rows, seed=seed, share=share)
        try:
            value = float(metric)
        except (TypeError, ValueError, RuntimeError):
            value = math.nan
        if isinstance(metric, str | bool) or not math.isfinite(value):
            raise ArgumentError("train", "must return a finite number, higher is better", metric)
        count = None if first is None else len(first)
        trial = Trial(arm, seed, float(share), count, digest, value, time.perf_counter() - began)
        _log.info("%s, seed %d: %g in %.0f s", arm, seed, trial.metric, trial.seconds)
        if file is not None:
            remove_unfinished(file)
            with atomic_write(file) as opened:
                opened.write(json.dumps(asdict(trial), indent=1).encode() + b"\n")
        return trial


def check_seeds(seeds: int | Sequence[int]) -> list[int]:
    """The seeds 0, 1, … of a number of them, or distinct ones as they are given."""
    if isinstance(seeds, Sequence) and not isinstance(seeds, str) and seeds:
        found = [check_int("seeds", seed) for seed in seeds]
        if len(set(found)) < len(found):
            raise ArgumentError("seeds", "must be distinct", seeds)
        return found
    return list(range(check_int("seeds", seeds, 1)))


def _load(file: Path) -> Trial:
    try:
        found = Trial(**json.loads(file.read_text(encoding="utf-8")))
        if not math.isfinite(found.metric + found.share):
            raise ValueError("a number is not finite")
        return found
    except (ValueError, TypeError) as error:
        raise CorruptFileError(f"{file} is damaged ({error}): remove it to run this arm again") from error
