from __future__ import annotations

import pickle

import pytest

from prunesampler import errors
from prunesampler.errors import ArgumentError, PruneSamplerError


def test_one_tree() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
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
