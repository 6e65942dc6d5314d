from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from prunesampler.errors import UnsupportedError
from prunesampler.shards.headers import tar_members
from prunesampler.shards.labels import LabelReader, class_index, class_indices
from prunesampler.shards.sources import FileSource, StreamSource
from tests.helpers.shardfiles import write_tar

FILES = [("a.PNG", b"p" * 3_000_000), ("a.json", b"1"), ("README", b"?"), ("b.png", b"q" * 700), ("c.json", b"3")]


@pytest.mark.parametrize("value", [b"1.5", b"cat", b"", 1.0, "1.0", -2, 2**31, b"-2", b"2147483648", object()])
def test_what_is_no_class_index(value: object) -> None:
    for call in (lambda: class_index("a.tar", "7", value), lambda: class_indices("a.tar", ["6", "7"], [b"0", value])):
        with pytest.raises(UnsupportedError, match=r"a.tar: the label of sample '7' must be an int in \[0, 2\*\*31\)"):
            call()


def test_class_indices() -> None:
    values = [b"3", b" 4\n", "5", 6, np.int64(7), -1, b"-1", None, 2**31 - 1]
    assert class_indices("a.tar", list(map(str, values)), values).tolist() == [3, 4, 5, 6, 7, -1, -1, -1, 2**31 - 1]
    assert class_indices("a.tar", [], []).dtype == np.int32


@pytest.mark.parametrize("streamed", [False, True])
def test_the_function_sees_every_sample_once(tmp_path: Path, streamed: bool) -> None:
    path = Path(write_tar(tmp_path / "a.tar", FILES))
    seen = []

    def label(key: str, files: Mapping[str, bytes]) -> int | None:
        seen.append((key, dict(files)))
        with pytest.raises(KeyError):
            files["jpg"]
        return int(files["json"]) if "json" in files else None

    with path.open("rb") as file:
        source = StreamSource("u", io.BytesIO(path.read_bytes())) if streamed else FileSource("u", file)
        reader = LabelReader(label, "u")
        for members in tar_members(source):
            reader.add(source, members)
        assert reader.end().tolist() == [1, -1, 3]
    contents = dict(FILES)
    assert seen == [
        ("a", {"png": contents["a.PNG"], "json": b"1"}),
        ("b", {"png": contents["b.png"]}),
        ("c", {"json": b"3"}),
    ]
