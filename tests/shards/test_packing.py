from __future__ import annotations

import io
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesampler.errors import MismatchError
from prunesampler.shards.packing import END, check_header, check_headers, file_header, header_sizes, padded

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=300).filter(
    lambda name: not name.endswith("/")
)
SIZES = st.one_of(st.integers(0, 2000), st.integers(8**11 - 3, 2**50))


@settings(max_examples=200)
@given(NAMES, SIZES)
def test_a_header_says_name_and_size_and_is_as_long_as_planned(name: str, size: int) -> None:
    header = file_header(name, size)
    assert [len(header)] == header_sizes(np.array([len(name.encode())])).tolist()
    with tarfile.open(fileobj=io.BytesIO(header + END), encoding="utf-8") as tar:
        info = tar.next()
    assert info is not None
    assert (info.name, info.size, info.mtime, info.uid, info.mode) == (name, size, 0, 0, 0o444)
    assert info.isreg()
    check_header("a.tar", header[-512:], name, size)


def test_the_short_way_gives_what_tarfile_does() -> None:
    info = tarfile.TarInfo("é.png")
    info.size, info.mode = 12_345, 0o444
    assert file_header("é.png", 12_345) == info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["a.png", "x" * 98 + "/" + "y" * 60 + ".png"])
def test_headers_of_every_writer_are_known_again(name: str, format: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = 1234, 1.5  # type: ignore[assignment]
    block = info.tobuf(format)[-512:]
    check_header("a.tar", block, name, 1234)
    with pytest.raises(MismatchError, match=r"a\.tar has changed"):
        check_header("a.tar", block, name, 1235)


@pytest.mark.parametrize("block", [bytes(512), b"b" * 512, file_header("b.png", 7), file_header("a.pn", 7)])
def test_another_header_is_refused(block: bytes) -> None:
    with pytest.raises(MismatchError, match=r"'a\.png' is not where it was"):
        check_header("a.tar", block, "a.png", 7)


@pytest.mark.parametrize("wrong", [None, 0, 1, 2, 3])
def test_many_headers_are_checked_as_one_is(wrong: int | None) -> None:
    files = [("a.png", 7), ("é" * 60 + ".png", 8), ("b.png", 8**11), ("c.png", 0)]
    said = [(name, size + (place == wrong)) for place, (name, size) in enumerate(files)]
    blocks = np.frombuffer(b"".join(file_header(*file)[-512:] for file in said), np.uint8).reshape(4, 512)
    names, sizes = pa.array([name for name, _ in files], pa.large_string()), np.array([size for _, size in files])
    urls = [f"{place}.tar" for place in range(4)]
    if wrong is None or files[wrong][1] == 8**11:  # which is not compared
        check_headers(urls, np.arange(4), blocks, names, sizes)
        return
    with pytest.raises(MismatchError, match=rf"{wrong}\.tar has changed"):
        check_headers(urls, np.arange(4), blocks, names, sizes)


def test_padding() -> None:
    sizes = np.arange(2000)
    assert padded(sizes).tolist() == [512 * (-(-size // 512)) for size in sizes.tolist()]
