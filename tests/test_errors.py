from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest

import prunesampler as ps
from prunesampler import errors
from prunesampler.analysis.statistics import default_score
from prunesampler.errors import (
    ArgumentError,
    PruneSamplerError,
    check_bool,
    check_bytes,
    check_choice,
    check_int,
    check_number,
)
from prunesampler.integrations.callback import check_options


def test_one_tree() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        if not isinstance(kind, type):
            continue
        assert issubclass(kind, (PruneSamplerError, UserWarning)), name
        assert name in (errors.__doc__ or "")


def test_an_argument_error_names_argument_rule_and_value_and_is_a_value_error() -> None:
    error = ArgumentError("keep", "must be a float in (0, 1]", 1.5)
    assert str(error) == "keep must be a float in (0, 1], got 1.5"
    assert isinstance(error, ValueError)
    assert len(str(ArgumentError("rows", "must be few", list(range(10_000))))) < 250


@pytest.mark.parametrize(
    "error",
    [ArgumentError("a", "must be b", 3), errors.StateError("text"), errors.WriteError(28, "No space left", "a")],
)
def test_errors_cross_process_boundaries(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda: check_int("n", True), "n must be an int >= 0, got True"),
        (lambda: check_int("n", 1.0, 1), "n must be an int >= 1, got 1.0"),
        (lambda: check_int("n", 6, 0, 5), "n must be an int in [0, 5], got 6"),
        (lambda: check_int("n", 1, 0, 0), "n must be an int in [0, 0], got 1"),
        (lambda: check_number("x", 0, 0, 1, above=True), "x must be a finite number > 0 and <= 1, got 0"),
        (lambda: check_number("x", float("nan")), "x must be a finite number, got nan"),
        (lambda: check_bool("b", 1), "b must be True or False, got 1"),
        (lambda: check_choice("c", 1, ("a", True)), "c must be one of 'a', True, got 1"),
    ],
)
def test_a_check_names_argument_rule_and_value(check: Callable[[], object], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        check()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("work", "meant"),
    [
        (lambda table: ps.select(table, 0.5, by="eln2"), "el2n"),
        (lambda table: ps.select(table, 0.5, method="stratifed"), "stratified"),
        (lambda table: ps.ScoreTracker(3, scores=["el2n", "forgeting"]), "forgetting"),
        (lambda table: default_score(table, "el2m"), "el2n"),
        (lambda table: check_options({"score_epoch": 3}, own=()), "score_epochs"),
    ],
)
def test_a_slip_of_the_pen_is_told_what_was_meant(work: Callable[[ps.ScoreTable], object], meant: str) -> None:
    with pytest.raises(ArgumentError, match=rf"; did you mean '{meant}'\?$"):
        work(ps.ScoreTable({"el2n": [0.1, 0.2]}))


def test_a_check_returns_plain_python_values() -> None:
    assert type(check_int("n", np.int64(3), 0, 3)) is int
    assert type(check_number("x", np.float32(0.5))) is float


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (5, 5),
        ("7", 7),
        ("1GB", 10**9),
        ("1gib", 2**30),
        ("0.5 MB", 500_000),
        ("2k", 2000),
        ("3TiB", 3 << 40),
        ("9B", 9),
    ],
)
def test_a_number_of_bytes(text: int | str, expected: int) -> None:
    assert check_bytes("maxsize", text) == expected


@pytest.mark.parametrize("text", ["", "0", "0.1", "-1GB", "1e9", "GB", "1 G B", "1iB", "nan", 0, True])
def test_no_number_of_bytes(text: object) -> None:
    with pytest.raises(ArgumentError, match=r"maxsize must be an? (int|number)"):
        check_bytes("maxsize", text)
