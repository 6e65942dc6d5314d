from __future__ import annotations

import http.client
import io
import urllib.error
import urllib.request
from typing import Any

import fsspec
import pytest

from prunesampler.errors import MismatchError, UnsupportedError
from prunesampler.shards.parts import check_size, read_part
from prunesampler.shards.store import Shard

CONTENT = bytes(range(200))


def shard(url: str, size: int = 200) -> Shard:
    return Shard(url, 1, size, -1, True, "", "")


class Response(io.BytesIO):
    def __init__(self, request: urllib.request.Request, status: int, total: int) -> None:
        first, end = map(int, request.headers["Range"].removeprefix("bytes=").split("-"))
        super().__init__(CONTENT[first : end + 1] if status == 206 else CONTENT)
        self.status = status
        self.headers = {"Content-Range": f"bytes {first}-{end}/{total}"} if status == 206 else {}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    listed: list[Any] = []

    def urlopen(request: urllib.request.Request, timeout: float) -> Response:
        answer = listed.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Response(request, *answer)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return listed


def test_broken_connections_are_tried_again(answers: list[Any]) -> None:
    answers += [ConnectionResetError(), http.client.IncompleteRead(b""), (206, 200)]
    assert read_part(shard("http://host/a.tar"), 10, 25) == CONTENT[10:25]
    assert not answers
    answers += [ConnectionResetError()] * 3
    with pytest.raises(ConnectionResetError):
        read_part(shard("http://host/a.tar"), 10, 25)


def test_an_answer_that_no_trying_changes(answers: list[Any]) -> None:
    answers += [urllib.error.HTTPError("http://host/a.tar", 404, "Not Found", {}, None)]  # type: ignore[arg-type]
    with pytest.raises(OSError, match="404"):
        read_part(shard("http://host/a.tar"), 0, 9)
    answers += [(200, 200)]
    with pytest.raises(UnsupportedError, match="whole files only"):
        read_part(shard("http://host/a.tar"), 0, 9)
    answers += [(206, 201)]
    with pytest.raises(MismatchError, match="from 200 to 201 bytes"):
        read_part(shard("http://host/a.tar"), 0, 9)
    assert not answers


def test_other_schemes() -> None:
    fsspec.filesystem("memory").pipe_file("/parts.tar", CONTENT)
    assert read_part(shard("memory://parts.tar"), 10, 25) == CONTENT[10:25]


def test_sizes() -> None:
    check_size(shard("a.tar"), 200)
    check_size(shard("a.tar", -1), 7)
    with pytest.raises(MismatchError, match=r"a\.tar has changed"):
        check_size(shard("a.tar"), 199)
