from __future__ import annotations

import base64
import io
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from prunesampler.analysis.images import load_pictures, read_cifar10
from prunesampler.errors import ArgumentError, MismatchError, UnsupportedError
from prunesampler.tables.score_table import ScoreTable
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


def test_the_binary_version_is_read_without_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for number in (1, 2):
        shown = pictures(3, number).numpy()
        (folder / f"data_batch_{number}.bin").write_bytes(b"".join(bytes([i]) + shown[i].tobytes() for i in range(3)))
    images, labels = read_cifar10(tmp_path, "train", rows=5)
    assert torch.equal(images, torch.cat([pictures(3, 1), pictures(3, 2)])[:5])
    assert labels.tolist() == [0, 1, 2, 0, 1]
    for wrong in (b"", b"\0" * 3072, b"\x0a" + b"\0" * 3072):
        (folder / "test_batch.bin").write_bytes(wrong)
        with pytest.raises(ArgumentError, match="root must hold an intact CIFAR-10"):
            read_cifar10(tmp_path, "test")


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
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(UnsupportedError, match=r"pip install 'prunesampler\[demo\]'"):
        read_cifar10(tmp_path, "train")
    with pytest.raises(UnsupportedError, match=r"pip install 'prunesampler\[report\]'"):
        load_pictures(tmp_path, table([0]), [0])


@pytest.mark.skipif("PRUNESAMPLER_DATA" not in os.environ, reason="PRUNESAMPLER_DATA names no folder of CIFAR-10")
def test_rows_of_the_real_cifar10() -> None:
    images, labels = read_cifar10(Path(os.environ["PRUNESAMPLER_DATA"]), "train", rows=500, quiet=True)
    assert labels[:5].tolist() == [6, 9, 9, 4, 1]  # a frog, two trucks, a deer and a car
    assert torch.bincount(labels, minlength=10).min() > 20
    means = images.float().mean((0, 2, 3))
    assert ((means > 100) & (means < 140)).all()


def decoded(uri: str) -> Image.Image:
    head, data = uri.split(",")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == f"data:image/{str(image.format).lower()};base64"
    return image


def table(labels: list[int]) -> ScoreTable:
    return ScoreTable({"el2n": np.linspace(0, 1, len(labels))}, labels=labels)


def image_folder(root: Path, sizes: dict[str, tuple[int, int]]) -> None:
    for place, (name, size) in enumerate(sizes.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (10 * place, 0, 0)).save(root / name)


def test_rows_of_cifar10_are_its_training_images(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    found = load_pictures(tmp_path, table([row % 10 for row in range(300)]), [0, 299, 17])
    assert list(found.uris) == [0, 299, 17]
    assert (found.names[0], found.names[9]) == ("airplane", "truck")
    for row, uri in found.uris.items():
        pixels = torch.from_numpy(np.array(decoded(uri))).permute(2, 0, 1)
        assert torch.equal(pixels, pictures(300, 300)[row])


def test_fewer_rows_were_scored_than_there_are(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    assert list(load_pictures(tmp_path, table([0, 1, 2]), [2]).uris) == [2]


def test_rows_of_an_image_folder_are_in_its_order(tmp_path: Path) -> None:
    image_folder(tmp_path, {"b/1.png": (8, 8), "a/2.png": (300, 150), "a/1.png": (96, 20)})
    found = load_pictures(tmp_path, table([0, 0, 1]), [0, 1, 2])
    assert found.names == {0: "a", 1: "b"}
    assert [decoded(uri).size for uri in found.uris.values()] == [(96, 20), (96, 48), (8, 8)]
    assert [decoded(uri).getpixel((0, 0)) for uri in (found.uris[0], found.uris[2])] == [(20, 0, 0), (0, 0, 0)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], "holds 3 images, and the scores are of 2 rows"),
        ([0, 1, 1], "row 1 was of class 1, and its image is of class 0"),
    ],
)
def test_other_images_are_refused(labels: list[int], message: str, tmp_path: Path) -> None:
    image_folder(tmp_path, {"a/1.png": (8, 8), "a/2.png": (8, 8), "b/1.png": (8, 8)})
    with pytest.raises(MismatchError, match=message):
        load_pictures(tmp_path, table(labels), [0])


def test_rows_without_labels_cannot_differ(tmp_path: Path) -> None:
    image_folder(tmp_path, {"a/1.png": (8, 8), "b/1.png": (8, 8)})
    assert len(load_pictures(tmp_path, table([-1, 1]), [0]).uris) == 1
    assert len(load_pictures(tmp_path, ScoreTable({"el2n": [0, 1]}), [1]).uris) == 1


def test_what_holds_no_images_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ArgumentError, match="images must hold CIFAR-10, or a folder of images for each class"):
            load_pictures(folder, table([0]), [0])
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.png").write_bytes(b"no image")
    with pytest.raises(ArgumentError, match="images must be readable"):
        load_pictures(tmp_path, table([0]), [0])


def test_keys_that_are_files_of_the_folder_are_the_images_whatever_its_layout(tmp_path: Path) -> None:
    image_folder(tmp_path / "data", {"x.png": (8, 8), "deep/er/y.png": (300, 150)})
    image_folder(tmp_path, {"secret.png": (8, 8)})
    keyed = table([1, 0]).replace(keys=["deep/er/y.png", "x.png"], provenance={"classes": ["cat", "dog"]})
    found = load_pictures(tmp_path / "data", keyed, [1, 0])
    assert [decoded(found.uris[row]).size for row in (0, 1)] == [(96, 48), (8, 8)]
    assert found.names == {0: "cat", 1: "dog"}
    for key in ("../secret.png", str(tmp_path / "secret.png"), "nowhere.png", "\0"):
        with pytest.raises((ArgumentError, MismatchError)):
            load_pictures(tmp_path / "data", keyed.replace(keys=["deep/er/y.png", key]), [1])
    (tmp_path / "data" / "x.png").write_bytes(b"no image")
    with pytest.raises(ArgumentError, match="images must be readable"):
        load_pictures(tmp_path / "data", keyed, [1])
