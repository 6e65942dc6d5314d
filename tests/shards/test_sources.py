from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from prunesampler.errors import CorruptFileError, MismatchError, UnsupportedError
from prunesampler.shards.sources import FileSource, StreamSource, open_source, read_range
from tests.helpers.http_server import Server, serving

CONTENT = random.Random(0).randbytes(3_000_000)
CODECS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": lambda content: bytes(pa.Codec("zstd").compress(content, asbytes=True)),
    "bz2": bz2.compress,
    "xz": lambda content: lzma.compress(content, preset=0),
}


def test_a_file_is_read_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(CONTENT)
    noise = random.Random(1)
    with open_source(f"file:{path}") as source:
        assert isinstance(source, FileSource)
        assert (source.seekable, source.streamed) == (True, False)
        assert (source.size, source.modified, source.length) == (len(CONTENT), path.stat().st_mtime_ns, len(CONTENT))
        offset = 0
        for _ in range(3000):
            offset = noise.choice((offset + 512, offset + 1024, offset + 40_000, noise.randrange(3_100_000)))
            count = noise.choice((0, 1, 512, 1024, 5000))
            assert source.take(offset, count) == CONTENT[offset : offset + count]
            assert source.data == CONTENT[source.base : source.base + len(source.data)]
        assert source.take(1 << 70, 512) == b""
        assert source.take(0, 1 << 70) == CONTENT


@pytest.mark.parametrize("codec", CODECS)
def test_codecs_are_told_by_their_first_bytes(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(CODECS[codec](CONTENT))
    with open_source(str(path)) as source:
        assert isinstance(source, StreamSource)
        assert (source.seekable, source.streamed) == (False, True)
        assert (source.size, source.modified) == (path.stat().st_size, path.stat().st_mtime_ns)
        assert source.take(5, 10) == CONTENT[5:15]
        assert source.take(2_500_000, 512) == CONTENT[2_500_000:2_500_512]
        assert source.take(2_999_990, 512) == CONTENT[-10:]
        assert source.length == len(CONTENT)


def everything(url: str) -> bytes:
    with open_source(url) as source:
        return source.take(0, 1 << 40)


def test_two_gzip_members_are_one_stream(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(CONTENT[:1000]) + gzip.compress(CONTENT[1000:]))
    assert everything(str(path)) == CONTENT


HARMS = [(codec, harm) for codec in CODECS for harm in ("cut", "flipped")]
HARMS.remove(("zstd", "flipped"))  # Arrow writes it without a checksum


@pytest.mark.parametrize(("codec", "harm"), HARMS)
def test_a_damaged_codec_is_refused(tmp_path: Path, codec: str, harm: str) -> None:
    path = tmp_path / "a.tar"
    content = bytearray(CODECS[codec](CONTENT))
    if harm == "flipped":
        content[len(content) // 2] ^= 0xFF
    path.write_bytes(content[: len(content) - 20 if harm == "cut" else None])
    with open_source(str(path)) as source, pytest.raises(CorruptFileError, match=r"a\.tar is damaged or cut short"):
        source.take(0, 1)
        source.drain()


@pytest.mark.parametrize("block", [1, 700, 1 << 20])
def test_a_stream_goes_forward(block: int) -> None:
    class Short(io.BytesIO):
        def read(self, count: int | None = -1) -> bytes:
            return super().read(min(block, count or 0))

    content = CONTENT[:20_000]
    source = StreamSource("stream", Short(content))
    for offset, count in ((0, 10), (5, 5), (512, 512), (600, 2000), (600, 3000), (9000, 0), (9000, 9), (19_999, 512)):
        assert source.take(offset, count) == content[offset : offset + count]
    with pytest.raises(ValueError, match="was read past byte 9000"):
        source.take(9000, 1)
    assert source.take(1 << 70, 512) == b""
    assert source.length == 20_000


def test_what_cannot_be_opened_is_the_error_of_the_system(tmp_path: Path) -> None:
    for path, error in ((tmp_path / "a.tar", FileNotFoundError), (tmp_path, IsADirectoryError)):
        with pytest.raises(error), open_source(str(path)):
            pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "a.tar").write_bytes(CONTENT)
    with serving(tmp_path) as server:
        yield server


def test_a_shard_is_streamed_by_one_request(server: Server) -> None:
    with open_source(server.url + "a.tar") as source:
        assert (source.size, source.seekable, source.streamed) == (len(CONTENT), True, True)
        assert source.take(0, 1 << 40) == CONTENT
    assert server.requests == [""]


def test_a_transfer_that_breaks_off_is_resumed_where_it_broke(server: Server) -> None:
    server.breaks_after = 1_300_000
    assert everything(server.url + "a.tar") == CONTENT
    assert server.requests == ["", "bytes=1300000-2999999", "bytes=2600000-2999999"]
    assert read_range(server.url + "a.tar", 10, 2_000_000, len(CONTENT)) == CONTENT[10:2_000_000]
    assert server.requests[3:] == ["bytes=10-1999999", "bytes=1300010-1999999"]
    server.breaks_after, server.breaks_first = None, True
    assert read_range(server.url + "a.tar", 7, 9) == CONTENT[7:9]
    assert everything(server.url + "a.tar") == CONTENT


def test_a_broken_transfer_that_cannot_be_resumed_is_refused(server: Server) -> None:
    server.breaks_after = 0
    for read in (everything, lambda url: read_range(url, 0, 9)):
        with pytest.raises(ConnectionError, match=r"a.tar cannot be read, in 5 attempts: it broke off at byte 0 of"):
            read(server.url + "a.tar")
    server.breaks_after, server.ranges = 1_300_000, False
    with pytest.raises(UnsupportedError, match=r"a.tar: the server sends whole files only"):
        everything(server.url + "a.tar")
    server.breaks_after, server.ranges, server.added = None, True, 7
    with pytest.raises(ConnectionError, match=r"a.tar cannot be read"):
        everything(server.url + "a.tar")


def test_a_range_that_is_not_the_wanted_one_is_refused(server: Server) -> None:
    url = server.url + "a.tar"
    assert read_range(url, 10, 25, len(CONTENT)) == CONTENT[10:25]
    with pytest.raises(MismatchError, match=r"a.tar has changed since it was indexed, from 77 to 3000000 bytes"):
        read_range(url, 10, 25, 77)
    server.shifted = 1
    with pytest.raises(CorruptFileError, match=r"a.tar: expected the bytes from 10, got 'bytes 11-25'"):
        read_range(url, 10, 25)
    server.ranges = False
    with pytest.raises(UnsupportedError, match=r"a.tar: the server sends whole files only: stream the shards"):
        read_range(url, 10, 25)


def test_an_answer_that_another_attempt_would_not_change_is_the_error_of_the_system(server: Server) -> None:
    for read in (everything, lambda url: read_range(url, 0, 9)):
        server.requests.clear()
        with pytest.raises(OSError, match="404"):
            read(server.url + "b.tar")
        assert len(server.requests) == 1
    with pytest.raises(ConnectionError, match=r"127.0.0.1:9/a.tar cannot be read.*refused"):
        everything("http://127.0.0.1:9/a.tar")


def test_the_output_of_a_command_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(CONTENT)
    with open_source(f"pipe:cat {path}") as source:
        assert (source.seekable, source.size, source.streamed) == (False, -1, True)
        assert source.take(0, 1 << 40) == CONTENT
        source.drain()
    with pytest.raises(OSError, match="exit 3"):
        everything("pipe:exit 3")


def test_other_schemes_are_read_by_fsspec() -> None:
    fsspec.filesystem("memory").pipe("/a.tar", CONTENT)
    with open_source("memory://a.tar") as source:
        assert (source.seekable, source.streamed, source.size) == (True, True, len(CONTENT))
        assert source.take(0, 1 << 40) == CONTENT
    assert read_range("memory://a.tar", 10, 25) == CONTENT[10:25]
