from __future__ import annotations

import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesampler.errors import MismatchError
from prunesampler.shards.packing import check_header, header_sizes, padded

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=300).filter(
    lambda name: not name.endswith("/")
)
SIZES = st.one_of(st.integers(0, 2000), st.integers(8**11 - 3, 2**50))
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


@settings(max_examples=200)
@given(NAMES, SIZES, FORMATS)
def test_headers_of_the_indexed_file_pass(name: str, size: int, format: int) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    try:
        header = info.tobuf(format, "utf-8", "strict")
    except ValueError:
        return  # USTAR has no room for it
    check_header("a.tar", header[-512:], name, size)
    if format == tarfile.GNU_FORMAT:
        assert [len(header)] == header_sizes(np.array([len(name.encode())])).tolist()
    if size + 1 < 8**11:
        with pytest.raises(MismatchError, match=r"a\.tar has changed"):
            check_header("a.tar", header[-512:], name, size + 1)


@pytest.mark.parametrize("other", [None, "b.png", "a.pn", "a.png2"])
def test_another_header_is_refused(other: str | None) -> None:
    info = tarfile.TarInfo(other or "")
    info.size = 7
    with pytest.raises(MismatchError, match=r"'a\.png' is not where it was"):
        check_header("a.tar", info.tobuf() if other else bytes(512), "a.png", 7)


def test_files_are_padded_to_whole_blocks() -> None:
    sizes = np.arange(2000)
    assert padded(sizes).tolist() == [512 * (-(-size // 512)) for size in sizes.tolist()]
