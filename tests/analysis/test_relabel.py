from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import prunesampler as ps
from prunesampler.errors import ArgumentError, CorruptFileError, MismatchError
from prunesampler.tables.fingerprint import fingerprint

TABLE = ps.ScoreTable(
    {"el2n": [0.1, 0.2, 1.2, 1.3, 0.1]},
    rows=[0, 1, 2, 3, 5],
    num_rows=6,
    labels=[0, 1, 2, 2, 1],
    keys=["a", "b", "c,d", 'e"', "f"],
)
HEAD = "row,key,label,suggested_label,decision\n"
DECISIONS = HEAD + '2,"c,d",2,0,wrong\n3,"e""",2,1,unsure\n0,a,0,1,right\n1,b,1,,WRONG\n5,f,1,0,\n'


def written(folder: Path, text: str) -> Path:
    (folder / "decisions.csv").write_bytes(text.encode())
    return folder / "decisions.csv"


@pytest.mark.parametrize(
    ("options", "labels", "changed", "dropped"),
    [
        ({}, [0, 1, 0, 2, -1, 1], [2], [1]),
        ({"wrong": "drop"}, [0, 1, 2, 2, -1, 1], [], [1, 2]),
        ({"unsure": "drop"}, [0, 1, 0, 2, -1, 1], [2], [1, 3]),
    ],
)
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_decisions_change_labels_or_drop_rows(
    options: dict[str, Any], labels: Any, changed: Any, dropped: Any, ending: str, tmp_path: Path
) -> None:
    found = ps.relabel(written(tmp_path, "\ufeff" + DECISIONS.replace("\n", ending)), TABLE, **options)
    assert found.labels.tolist() == labels
    assert found.changed.tolist() == changed
    assert found.dropped.tolist() == dropped
    kept = [place for place, row in enumerate(TABLE.rows.tolist()) if row not in dropped]
    assert found.coreset.rows.tolist() == TABLE.rows[kept].tolist()
    assert found.coreset.keys == [["a", "b", "c,d", 'e"', "f"][place] for place in kept]
    assert found.coreset.num_rows == 6
    found.coreset.save(tmp_path / "coreset.parquet")


@pytest.mark.parametrize("wrong", ["relabel", "drop"])
@pytest.mark.parametrize("suggested", [0, -1])
def test_what_is_left_is_trained_on(wrong: Any, suggested: int, tmp_path: Path) -> None:
    inputs, labels = torch.eye(6), torch.tensor([0, 1, 2, 2, 0, 1])
    dataset = TensorDataset(inputs, labels)
    table = ps.ScoreTable({"el2n": [0.5] * 6}, labels=labels.tolist(), fingerprint=fingerprint(dataset))
    decisions = written(tmp_path, HEAD + f"2,,2,{suggested},wrong\n")
    found = ps.relabel(decisions, table, wrong=wrong)
    found.coreset.save(tmp_path / "coreset.parquet")
    loader = DataLoader(TensorDataset(inputs, torch.from_numpy(found.labels)), batch_size=6, shuffle=True)
    loader = ps.attach(loader, torch.nn.Identity(), coreset=tmp_path / "coreset.parquet")
    ((x, y),) = loader
    assert sorted(x.argmax(1).tolist()) == found.coreset.rows.tolist()
    assert torch.equal(y, torch.from_numpy(found.labels)[x.argmax(1)])
    if len(found.changed) == 0:
        with pytest.raises(MismatchError, match="fingerprint"):
            other = TensorDataset(inputs, labels.flip(0))
            ps.attach(DataLoader(other, batch_size=6, shuffle=True), torch.nn.Identity(), coreset=found.coreset)


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("row,label\n", CorruptFileError, "no column suggested_label"),
        ("", CorruptFileError, "no column row"),
        (HEAD + "2,c,2,0,maybe\n", CorruptFileError, "line 2: decision must be wrong, right or unsure, got 'maybe'"),
        (HEAD + "2,c,2\n", CorruptFileError, "line 2"),
        (HEAD + "two,c,2,0,wrong\n", CorruptFileError, "line 2"),
        (HEAD + "2,c,2,0,wrong\n2,c,2,0,right\n", CorruptFileError, "line 3: row 2 stands there twice"),
        (HEAD + "2,c,1,0,wrong\n", MismatchError, "row 2 is of class 1 there, and of class 2 in the table"),
        (HEAD + "6,c,1,0,wrong\n", MismatchError, "none of 6"),
        (HEAD + "-1,c,1,0,wrong\n", MismatchError, "none of 6"),
    ],
)
def test_files_that_are_refused(text: str, error: type[Exception], match: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=match):
        ps.relabel(written(tmp_path, text), TABLE)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "decisions.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CorruptFileError, match="no CSV"):
        ps.relabel(tmp_path / "decisions.csv", TABLE)
    with pytest.raises(ArgumentError, match="must hold labels"):
        ps.relabel(written(tmp_path, DECISIONS), ps.ScoreTable({"el2n": [0.1, 0.2]}))
    with pytest.raises(ArgumentError, match=r"^wrong "):
        ps.relabel(written(tmp_path, DECISIONS), TABLE, wrong="delete")  # type: ignore[arg-type]
