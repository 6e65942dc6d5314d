from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from prunesampler.errors import CorruptFileError
from prunesampler.shards.sources import FileSource, StreamSource, open_source

CONTENT = random.Random(0).randbytes(3_000_000)


def zstd(content: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(content, asbytes=True))


CODECS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstd,
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


def test_two_gzip_members_are_one_stream(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(CONTENT[:1000]) + gzip.compress(CONTENT[1000:]))
    with open_source(str(path)) as source:
        assert source.take(0, 1 << 40) == CONTENT


HARMS = [(codec, harm) for codec in CODECS for harm in ("cut", "flipped")]
HARMS.remove(("zstd", "flipped"))  # Arrow writes it without a checksum


@pytest.mark.parametrize(("codec", "harm"), HARMS)
def test_damage(tmp_path: Path, codec: str, harm: str) -> None:
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


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), open_source(str(tmp_path / "a.tar")):
        pass
    with pytest.raises(IsADirectoryError), open_source(str(tmp_path)):
        pass
