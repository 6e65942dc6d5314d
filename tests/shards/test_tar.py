from __future__ import annotations

import io
import random
import re
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext, tar_file_iterator

from prunesampler.errors import CorruptFileError, MismatchError, UnsupportedError
from prunesampler.shards.sources import StreamSource, open_source
from prunesampler.shards.tar import check_header, split_name, split_names, tar_members
from tests.helpers.shardfiles import write_shards, write_tar

Found = list[tuple[str, int, int]]


def found(path: Path | str) -> Found:
    with open_source(str(path)) as source:
        members = [part for run in tar_members(source) for part in zip(*run[:3], strict=True)]
    return [(name, int(offset), int(size)) for name, offset, size in members]


def streamed(content: bytes) -> Found:
    source = StreamSource("stream", io.BytesIO(content))
    members = []
    for run in tar_members(source):
        for name, offset, size, small in zip(*run, strict=True):
            assert source.take(int(offset), int(size)) == content[offset : offset + size]
            assert small == (content[offset : offset + size] if size <= 32 else b"")
            members.append((name, int(offset), int(size)))
    return members


def by_tarfile(path: Path | str) -> Found:
    with tarfile.open(path, "r:") as tar:
        return [(member.name, member.offset_data, member.size) for member in tar if member.isreg()]


def check(path: Path) -> Found:
    """The files of a tar, which are those that tarfile finds, from a file and from a stream."""
    expected = by_tarfile(path)
    assert found(path) == expected
    assert streamed(path.read_bytes()) == expected
    return expected


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.tar"


FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
SHORT = ["a.jpg", "../b.jpg", "/c.jpg", "p/" * 70 + "g.jpg", "d/" * 40 + "e.jpg", "f.g.jpg", "é.jpg", "empty.txt"]
LONG = ["n" * 300 + ".jpg", "b.jpg", "é" * 200 + ".jpg", "x" * 95 + ".jpg"]


@pytest.mark.parametrize(("form", "names"), [*((f, SHORT) for f in FORMATS), *((f, LONG) for f in FORMATS[1:])])
def test_names_of_every_format_are_read(path: Path, form: int, names: list[str]) -> None:
    write_tar(path, [(name, b"" if name == "empty.txt" else name.encode() * 50) for name in names], form)
    assert [name for name, *_ in check(path)] == names


def test_what_webdataset_writes_is_read(tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [700])
    assert b"mtime=" in Path(path).read_bytes()
    assert len(check(Path(path))) == 1400


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, linkname
    return info


def raw(info: tarfile.TarInfo, form: int = tarfile.USTAR_FORMAT) -> bytes:
    return info.tobuf(form)


def test_what_is_not_a_file_is_skipped(path: Path) -> None:
    kinds = [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE]
    others = [header(f"{place}.jpg", kind=kind, linkname="../a.jpg") for place, kind in enumerate(kinds)]
    write_tar(path, [("a.jpg", b"a"), *others, ("b.jpg", b"b"), ("old/", b""), ("c.jpg", b"c")])
    assert [name for name, *_ in check(path)] == ["a.jpg", "b.jpg", "old/", "c.jpg"]
    with path.open("wb") as file:  # a link that declares a size has no bytes; a kind of the future has
        for kind, body in ((b"2", b""), (b"1", b""), (b"Z", bytes(1024)), (b"7", bytes(1024)), (b"\0", bytes(1024))):
            file.write(raw(header(f"{kind[0]}.jpg", 600, kind)) + body)
        file.write(raw(header("folder/", 600, b"\0")) + raw(header("last.jpg")) + bytes(1024))
    assert [name for name, *_ in check(path)] == ["55.jpg", "0.jpg", "last.jpg"]


def summed(block: bytes, signed: bool = False) -> bytes:
    """The block with its checksum."""
    others = block[:148] + b" " * 8 + block[156:]
    total = sum(others) - (256 * sum(byte > 127 for byte in others) if signed else 0)
    return block[:148] + b"%06o\0 " % total + block[156:]


PLAIN = raw(header("a.jpg", 5))
UNUSUAL = {
    "spaces": summed(PLAIN[:124] + b"         5 \0" + PLAIN[136:]),
    "twelve digits": summed(PLAIN[:124] + b"000000000005" + PLAIN[136:]),
    "a tail": summed(PLAIN[:124] + b"5\0garbage!!!"[:12] + PLAIN[136:]),
    "base 256": summed(PLAIN[:124] + b"\x80" + bytes(10) + b"\x05" + PLAIN[136:]),
    "signed sum": summed(raw(header("é.jpg", 5)), signed=True),
    "name with a tail": summed(b"a.jpg\0a tail".ljust(100, b"\0") + PLAIN[100:]),
    "v7": summed(PLAIN[:257] + bytes(255)),
    "long sum": PLAIN[:148] + b"%07o\0" % int(PLAIN[148:154], 8) + PLAIN[156:],
    "sum with spaces": PLAIN[:148] + b"%6o  " % int(PLAIN[148:154], 8) + PLAIN[156:],
    "sum with a tail": PLAIN[:148] + b"%06o\0x" % int(PLAIN[148:154], 8) + PLAIN[156:],
}


def pax(records: dict[str, str], kind: bytes = tarfile.XHDTYPE, name: str = "pax") -> bytes:
    body = b""
    for keyword, value in records.items():
        rest = f" {keyword}={value}\n".encode()
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        body += str(length).encode() + rest
    return raw(header(name, len(body), kind)) + body.ljust(-(-len(body) // 512) * 512, b"\0")


LONG_NAME = raw(header("././@LongLink", 9, b"L")) + b"long.jpg".ljust(512, b"\0")
EXTENSIONS = [
    pax({"mtime": "1.5"}),
    pax({"mtime": "-1"}),
    pax({"mtime": "1.5", "uid": "70000", "comment": "x" * 600}),
    pax({"path": "renamed.jpg"}),
    pax({"path": "renamed.jpg/"}),
    pax({"size": "5"}),
    pax({"path": "first.jpg"}) + pax({"path": "second.jpg", "size": "5"}),
    pax({"path": "first.jpg"}) + LONG_NAME,
    LONG_NAME + pax({"path": "pax.jpg"}),
    raw(header("././@LongLink", 9, b"K")) + b"link.jpg".ljust(512, b"\0"),
    pax({"comment": "by git archive"}, tarfile.XGLTYPE),
    pax({"path": "renamed.jpg"}, tarfile.SOLARIS_XHDTYPE),
    pax({"hdrcharset": "BINARY", "path": "é.jpg"}),
]


@pytest.mark.parametrize(
    "blocks", [*UNUSUAL.values(), *(each + raw(header("a.jpg", 0 if b"size=" in each else 5)) for each in EXTENSIONS)]
)
def test_unusual_headers_mean_what_they_mean_to_tarfile(path: Path, blocks: bytes) -> None:
    path.write_bytes(blocks + b"12345".ljust(512, b"\0") + raw(header("b.jpg")) + bytes(1024))
    assert [size for *_, size in check(path)] == [5, 0]


@given(st.lists(st.tuples(st.text("ab./_é", min_size=1, max_size=120), st.integers(0, 3000)), max_size=12), st.data())
def test_any_tar_is_read_as_by_tarfile(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, int]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("tars") / "a.tar"
    noise = random.Random(0)
    with tarfile.open(path, "w", format=data.draw(st.sampled_from(FORMATS[1:]))) as tar:
        for name, size in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = size, data.draw(st.sampled_from([0, 1.25]))
            info.mtime = int(info.mtime) if tar.format != tarfile.PAX_FORMAT else info.mtime
            tar.addfile(info, io.BytesIO(noise.randbytes(size)))
    check(path)


def test_many_headers_and_long_names_among_them_are_read(path: Path) -> None:
    noise = random.Random(0)
    names = [f"{i}{'n' * 120 if i % 700 == 0 else ''}.jpg" for i in range(3000)]
    write_tar(path, [(name, noise.randbytes(noise.choice((0, 9, 3000)))) for name in names], tarfile.GNU_FORMAT)
    assert len(check(path)) == 3000


def test_large_files_are_skipped_over(path: Path) -> None:
    with path.open("wb") as file:
        for place, size in enumerate((3 << 30, 3 << 30, 9 << 30)):
            file.write(raw(header(f"{place}.jpg", size), tarfile.GNU_FORMAT))
            file.seek(size, 1)
        file.write(bytes(1024))
    assert found(path) == by_tarfile(path)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        *((cut, "is cut short") for cut in (512, 1, 511, 1000, 2047, 2048, 2049, 2560, 3000)),
        (2600, "is cut short: it has 2600 bytes, and 'b.jpg' in it ends at byte 3072"),
        (3072, "is cut short: after 'b.jpg' there is no end of the archive. If nothing is missing, append 1,024 zero"),
        (0, "is empty, without even the end of an archive"),
    ],
)
def test_a_tar_that_is_cut_short_is_refused(path: Path, cut: int, message: str) -> None:
    write_tar(path, [("a.jpg", bytes(700)), ("b.jpg", bytes(700))])
    content = path.read_bytes()
    path.write_bytes(content[:cut])
    with pytest.raises(CorruptFileError, match=re.escape(f"{path} {message}")):
        found(path)
    with pytest.raises(CorruptFileError, match=re.escape(message)):
        streamed(content[:cut])
    path.write_bytes(content[:3072] + bytes(1024))
    assert len(check(path)) == 2


@pytest.mark.parametrize("size", [1 << 40, 8**11 - 1, 256**11 - 1])
def test_a_gigantic_size_is_refused(path: Path, size: int) -> None:
    block = raw(header("a.jpg", size % 8**11), tarfile.GNU_FORMAT)
    block = summed(block[:124] + b"\x80" + size.to_bytes(11, "big") + block[136:])
    path.write_bytes(block + bytes(2048))
    for read in (found, lambda path: streamed(path.read_bytes())):
        with pytest.raises(CorruptFileError, match=r"is cut short.*'a.jpg'"):
            read(path)
    path.write_bytes(summed(block[:156] + b"x" + block[157:]) + bytes(2048))
    with pytest.raises(UnsupportedError, match="has an extension of"):
        found(path)


def test_damaged_headers_are_refused(path: Path) -> None:
    write_tar(path, [(f"{place}.jpg", b"12345") for place in range(5)])
    content = path.read_bytes()
    for place in (*range(0, 8), *range(124, 155), 156):
        damaged = bytearray(content)
        damaged[2048 + place] ^= 1
        path.write_bytes(damaged)
        for read in (found, lambda path: streamed(path.read_bytes())):
            with pytest.raises(CorruptFileError, match=r"no sound header at byte 2048, after '1.jpg'"):
                read(path)


NEGATIVE = [summed(PLAIN[:124] + field + PLAIN[136:]) for field in (b"-0000001000\0", b"\xff" * 12)]
RECORDS = (b"99 path=a\n", b"path=a\n", b"10 path=ab", b"9 size=x\n", b"10 size=-1\n", b"\n")


@pytest.mark.parametrize(
    "block",
    [
        *NEGATIVE,
        pax({"mtime": "1.5"}),
        pax({"path": "a"}),
        *(raw(header("pax", len(body), b"x")) + body.ljust(512, b"\0") + PLAIN for body in RECORDS),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(path: Path, block: bytes) -> None:
    path.write_bytes(raw(header("first.jpg")) + block + bytes(2048))
    with pytest.raises(CorruptFileError, match=r"no sound header at byte 512, after 'first.jpg'"):
        found(path)


@pytest.mark.parametrize("content", [b"not a tar", b"x" * 512, b"PK\3\4" + bytes(2000)])
def test_what_is_not_a_tar_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"a.tar is (not a tar|cut short)"):
        found(path)
    path.write_bytes(bytes(1024))  # an archive without files
    assert check(path) == []


SPARSE_MAP = pax({"GNU.sparse.name": "a.jpg", "GNU.sparse.map": "0,1"})
NOT_UTF8 = summed(b"\xff.jpg".ljust(100, b"\0") + PLAIN[100:])


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        (raw(header("a.jpg", 0, tarfile.GNUTYPE_SPARSE), tarfile.GNU_FORMAT), r"'a.jpg' is sparse"),
        (SPARSE_MAP + raw(header("GNUSparseFile.0/a.jpg")), r"a.jpg' is sparse"),
        (NOT_UTF8, r"the name b'\\xff.jpg' is not UTF-8"),
        (raw(header("@LongLink", 6, b"L")) + b"\xff.jpg".ljust(512, b"\0") + PLAIN, r"b'\\xff.jpg' is not UTF-8"),
        (pax({"path": "a.jpg"}, tarfile.XGLTYPE) + PLAIN, r"global PAX header sets \['path'\]"),
    ],
)
def test_what_cannot_be_followed_is_refused(path: Path, blocks: bytes, message: str) -> None:
    path.write_bytes(raw(header("first.jpg")) + blocks + bytes(1024))
    with pytest.raises(UnsupportedError, match=message):
        found(path)


NAMES = st.text(alphabet="ab.._/\n é", max_size=12)
CORNERS = [
    *("a/.hidden", "a/b/.hidden", "a.b/.hidden", ".hidden", "a.", "a", "./a.jpg", "/a.jpg", "../a.b.c", "a.b/c"),
    *("__a__", "__a.b__", "__a__.jpg", "__a__/b.jpg", "__a.jpg", "____", "__", "__.jpg", "a/__b__.jpg", "__a/b__"),
    "a\nb.c",
]


def skipped(name: str) -> bool:
    """Whether webdataset's own iterator skips the one file of a tar."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo(name))
    file.seek(0)
    return not list(tar_file_iterator(file))


@pytest.mark.parametrize("name", CORNERS)
def test_odd_names_are_split_as_webdataset_splits_them(name: str) -> None:
    expected = None if skipped(name) or base_plus_ext(name) == (None, None) else base_plus_ext(name)
    assert split_name(name) == expected


@given(st.lists(NAMES, max_size=8))
def test_names_are_split_as_webdataset_splits_them(names: list[str]) -> None:
    for name in names:
        if not name.startswith("__"):
            assert (split_name(name) or (None, None)) == base_plus_ext(name)
    for given_names in (names, [*names, *CORNERS], [f"{name}.jpg" for name in ("7", "a.b/8")]):
        places, keys, extensions = split_names(pa.array(given_names, pa.large_string()))
        expected = [(place, *parts) for place, name in enumerate(given_names) if (parts := split_name(name))]
        assert list(zip(places.tolist(), keys.to_pylist(), extensions.to_pylist(), strict=True)) == expected


@settings(max_examples=200)
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=300),
    st.one_of(st.integers(0, 2000), st.integers(8**11 - 3, 2**50)),
    st.sampled_from(FORMATS),
)
def test_headers_of_the_indexed_file_pass(name: str, size: int, format: int) -> None:
    try:
        block = header(name, size).tobuf(format, "utf-8", "strict")[-512:]
    except ValueError:
        return  # USTAR has no room for it
    check_header("a.tar", block, name, size)
    if size + 1 < 8**11:
        with pytest.raises(MismatchError, match=r"a\.tar has changed"):
            check_header("a.tar", block, name, size + 1)


@pytest.mark.parametrize("other", [None, "b.png", "a.pn", "a.png2"])
def test_another_header_is_refused(other: str | None) -> None:
    with pytest.raises(MismatchError, match=r"'a\.png' is not where it was"):
        check_header("a.tar", header(other, 7).tobuf() if other else bytes(512), "a.png", 7)
