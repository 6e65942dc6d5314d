from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prunesampler.shards import build_index, pieces
from prunesampler.shards.repack_plan import Layout
from prunesampler.tables.score_table import Coreset
from tests.helpers.shardfiles import write_tar

CONTENTS = {f"{row}.{extension}": f"{row}{extension}".encode() * 60 * row for row in range(9) for extension in "ab"}
CONTENTS |= {"x" * 120 + ".a": b"long", "é.a": b"short"}


def spoil_filling(path: str) -> None:
    with tarfile.open(path) as tar, open(path, "rb+") as file:
        for info in tar:
            file.seek(info.offset_data + info.size)
            file.write(b"x" * (-info.size % 512))


@pytest.mark.parametrize(("at_once", "counts"), [(1, [10]), (2000, range(2, 10)), (1 << 20, [1])])
def test_pieces_make_what_tarfile_would(
    at_once: int, counts: Sequence[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_BYTES", at_once)
    path = write_tar(tmp_path / "a.tar", CONTENTS.items(), tarfile.PAX_FORMAT)
    spoil_filling(path)
    index = build_index(path, progress=False)
    layout = Layout(index, Coreset([0, *range(2, 11)], num_rows=11), 10**6, True, 3, False)
    found = [bytes(piece) for piece in pieces.pieces(layout, 0)]
    assert len(found) - 1 in counts
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for key in layout.keys.to_pylist():
            for name in [name for name in CONTENTS if name.partition(".")[0] == key]:
                info: Any = tarfile.TarInfo(name)
                info.size, info.mode = len(CONTENTS[name]), 0o444
                tar.addfile(info, io.BytesIO(CONTENTS[name]))
        size = expected.tell()
    assert b"".join(found) == expected.getvalue()[: size + 1024]
