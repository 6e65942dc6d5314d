from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prunesampler.analysis.images import read_cifar10
from prunesampler.errors import ArgumentError, UnsupportedError
from tests.helpers.pictures import pictures, png, write_parquet


def test_parquet_files_are_decoded_row_by_row(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    images, labels = read_cifar10(tmp_path, "train", quiet=True)
    assert torch.equal(images, pictures(300, 300))
    assert labels.tolist() == [i % 10 for i in range(300)]
    assert torch.equal(read_cifar10(tmp_path, "test", quiet=True)[0], pictures(120, 120))
    assert torch.equal(read_cifar10(tmp_path, "train", rows=150, quiet=True)[0], images[:150])


def test_torchvisions_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stored:
        def __init__(self, root: str, *, train: bool, download: bool) -> None:
            calls.append((root, train, download))
            self.data = pictures(200).permute(0, 2, 3, 1).numpy()
            self.targets = [i % 10 for i in range(200)]

    calls: list[Any] = []
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Stored)
    with pytest.raises(ArgumentError, match=r"root must hold .*--download"):
        read_cifar10(tmp_path, "train")
    assert not calls
    assert torch.equal(read_cifar10(tmp_path, "train", download=True)[0], pictures(200))
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert read_cifar10(tmp_path, "test", rows=3)[1].tolist() == [0, 1, 2]
    assert calls == [(str(tmp_path), True, True), (str(tmp_path), False, False)]


def test_a_damaged_torchvision_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ArgumentError, match="root must hold an intact CIFAR-10"):
        read_cifar10(tmp_path, "train")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": pa.array(["text"] * 300)}, "columns image"),
        ({"image": pa.array([b"no image"] * 300)}, r"must hold images \(row 0"),
        ({"image": pa.array([None] * 300, pa.binary())}, r"must hold images \(row 0"),
        ({"image": pa.array([png(torch.zeros(3, 8, 8, dtype=torch.uint8))] * 300)}, r"32 x 32 pixels \(row 0\)"),
    ],
)
def test_other_parquet_files_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    write_parquet(tmp_path, test=300, **columns)
    with pytest.raises(ArgumentError, match=message):
        read_cifar10(tmp_path, "train", quiet=True)


def test_parquet_files_without_the_columns_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": [1, 2]}), tmp_path / "train.parquet")
    with pytest.raises(ArgumentError, match="columns image"):
        read_cifar10(tmp_path, "train", quiet=True)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ArgumentError, match="intact Parquet"):
        read_cifar10(tmp_path, "train", quiet=True)


def test_without_torchvision_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'prunesampler\[demo\]'"):
        read_cifar10(tmp_path, "train")


@pytest.mark.skipif("PRUNESAMPLER_DATA" not in os.environ, reason="PRUNESAMPLER_DATA names no folder of CIFAR-10")
def test_rows_of_the_real_cifar10() -> None:
    images, labels = read_cifar10(Path(os.environ["PRUNESAMPLER_DATA"]), "train", rows=500, quiet=True)
    assert labels[:5].tolist() == [6, 9, 9, 4, 1]  # a frog, two trucks, a deer and a car
    assert torch.bincount(labels, minlength=10).min() > 20
    means = images.float().mean((0, 2, 3))
    assert ((means > 100) & (means < 140)).all()
