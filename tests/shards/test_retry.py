from __future__ import annotations

import io
import urllib.error
from email.message import Message
from typing import Any

import pytest

from prunesampler.shards import retry
from prunesampler.shards.retry import retried


def answer(code: int) -> urllib.error.HTTPError:
    return urllib.error.HTTPError("http://a/0.tar", code, "so", Message(), io.BytesIO())


class Failing:
    """Raises these, one at a time, and then gives 7."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> int:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return 7


def test_pauses_grow_from_attempt_to_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(retry, "PAUSE", 0.5)
    monkeypatch.setattr(retry.time, "sleep", pauses.append)
    again: list[int] = []
    action = Failing(answer(503), TimeoutError(), answer(429), ConnectionResetError())
    assert retried("http://a/0.tar", action, (OSError,), lambda: again.append(action.calls)) == 7
    assert pauses == [0.5, 1.0, 2.0]
    assert again == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (answer(404), FileNotFoundError, "the server answers 404 so: 'http://a/0.tar'"),
        (answer(403), PermissionError, "the server answers 403 so: 'http://a/0.tar'"),
        (answer(400), OSError, "http://a/0.tar cannot be read: the server answers 400 so"),
        (FileNotFoundError("bucket/0.tar"), FileNotFoundError, "No such file or directory: 'http://a/0.tar'"),
        (KeyError("x"), KeyError, "x"),
    ],
)
def test_what_is_said_for_good_is_not_asked_again(error: Exception, kind: Any, message: str) -> None:
    action = Failing(error)
    with pytest.raises(kind, match=message):
        retried("http://a/0.tar", action, (OSError,))
    assert action.calls == 1


def test_the_last_attempt_names_shard_and_cause() -> None:
    action = Failing(*[ConnectionResetError("by peer")] * 9)
    with pytest.raises(ConnectionError, match=r"^http://a/0\.tar cannot be read, in 5 attempts: by peer$"):
        retried("http://a/0.tar", action, (OSError,))
    assert action.calls == 5
