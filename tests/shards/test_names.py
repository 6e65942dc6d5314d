from __future__ import annotations

import io
import tarfile

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_iterator

from prunesampler.shards.names import split_name, split_names

NAMES = st.text(alphabet="ab.._/\n é", max_size=12)


def passed_over(name: str) -> bool:
    """webdataset's own iterator, on a tar of one empty file."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo(name))
    file.seek(0)
    return not list(tar_file_iterator(file))


@given(NAMES)
def test_names_are_split_as_webdataset_splits_them(name: str) -> None:
    found = split_name(name)
    if not name.startswith("__"):
        assert (found or (None, None)) == base_plus_ext(name)
    assert split_names(pa.array([name], pa.large_string()))[1].to_pylist() == ([found[0]] if found else [])


CORNERS = [
    *("a/.hidden", "a/b/.hidden", "a.b/.hidden", ".hidden", "a.", "a", "./a.jpg", "/a.jpg", "../a.b.c", "a.b/c"),
    *("__a__", "__a.b__", "__a__.jpg", "__a__/b.jpg", "__a.jpg", "____", "__", "__.jpg", "a/__b__.jpg", "__a/b__"),
    "a\nb.c",
]


@pytest.mark.parametrize("name", CORNERS)
def test_corners(name: str) -> None:
    part = None if passed_over(name) else base_plus_ext(name)
    expected = None if part == (None, None) else part
    assert split_name(name) == expected
    _, keys, extensions = split_names(pa.array(["plain.jpg", name], pa.large_string()))
    split = list(zip(keys.to_pylist(), extensions.to_pylist(), strict=True))
    assert split == [("plain", "jpg")] + ([expected] if expected else [])


@given(st.lists(NAMES, max_size=8))
def test_many_names_are_split_like_one(names: list[str]) -> None:
    places, keys, extensions = split_names(pa.array(names, pa.large_string()))
    expected = [(place, *part) for place, name in enumerate(names) if (part := split_name(name))]
    assert list(zip(places.tolist(), keys.to_pylist(), extensions.to_pylist(), strict=True)) == expected


def test_samples_are_those_of_webdataset() -> None:
    names = ["7.png", "7.CLS", "README", "a.b/8.seg.png", "a.b/8.png", "9.png"]
    files = [{"fname": name, "data": b"", "__url__": "u"} for name in names]
    found = [(sample["__key__"], sorted(set(sample) - {"__key__", "__url__"})) for sample in group_by_keys(files)]
    _, keys, extensions = split_names(pa.array(names, pa.large_string()))
    ours: dict[str, list[str]] = {}
    for key, extension in zip(keys.to_pylist(), extensions.to_pylist(), strict=True):
        ours.setdefault(key, []).append(extension.lower())
    assert [(key, sorted(members)) for key, members in ours.items()] == found
