from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prunesampler.cli.demo_data import Images, Split, load_cifar10, load_digits, train_loader
from prunesampler.errors import ArgumentError, UnsupportedError
from prunesampler.tables.fingerprint import fingerprint
from tests.helpers.pictures import pictures, png, write_parquet


def crops(image: np.ndarray) -> set[bytes]:
    """Every picture that a crop and a flip can make of one, the slow way."""
    padded = np.zeros((3, 40, 40), np.uint8)
    padded[:, 4:36, 4:36] = image
    found = set()
    for down in range(9):
        for right in range(9):
            crop = padded[:, down : down + 32, right : right + 32]
            found |= {crop.tobytes(), np.ascontiguousarray(crop[:, :, ::-1]).tobytes()}
    return found


def seen(images: Images, rows: list[int]) -> list[bytes]:
    inputs, _ = images.__getitems__(rows)
    return [bytes(image) for image in ((inputs + 2) * images.white / 4).round().byte().contiguous().numpy()]


def test_digits_are_split_alike_every_time_and_by_class() -> None:
    split, again = load_digits(), load_digits()
    assert torch.equal(split.train.images, again.train.images)
    assert (len(split.train), len(split.test)) == (1347, 450)
    shares = [torch.bincount(part.targets) / len(part) for part in (split.train, split.test)]
    assert (shares[0] - shares[1]).abs().max() < 0.003
    train = {image.numpy().tobytes() for image in split.train.images}
    assert len({image.numpy().tobytes() for image in split.test.images} - train) > 440


def test_a_batch_is_its_samples() -> None:
    images = Images(pictures(5), torch.arange(5), white=255)
    inputs, targets = images.__getitems__([3, 0])
    for place, row in enumerate([3, 0]):
        alone, target = images[row]
        assert torch.equal(inputs[place], alone)
        assert targets[place] == target == row
    assert inputs.min() >= -2
    assert inputs.max() <= 2


def test_augmentation_crops_and_flips_each_image_by_itself() -> None:
    images = Images(pictures(4), torch.arange(4), white=255)
    possible = [crops(image.numpy()) for image in images.images]
    augmented = images.augmented(0)
    made: list[set[bytes]] = [set() for _ in range(4)]
    for _ in range(50):
        for row, image in zip([2, 0, 3, 1], seen(augmented, [2, 0, 3, 1]), strict=True):
            assert image in possible[row]
            made[row].add(image)
    assert all(len(variants) > 30 for variants in made)
    assert seen(images, [1]) == [images.images[1].numpy().tobytes()]


def test_augmentation_depends_on_its_seed_alone() -> None:
    images = Images(pictures(4), torch.arange(4), white=255)
    torch.manual_seed(1)
    first = seen(images.augmented(7), [0, 1, 2])
    before = torch.get_rng_state()
    assert seen(images.augmented(7), [0, 1, 2]) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert seen(images.augmented(8), [0, 1, 2]) != first
    assert fingerprint(images.augmented(7)) == fingerprint(images)


def test_the_loader_shuffles_by_its_seed_alone() -> None:
    images = Images(pictures(10), torch.arange(10), white=255)

    def order(seed: int) -> list[int]:
        return [int(target) for _, targets in train_loader(images, 4, seed) for target in targets]

    before = torch.get_rng_state()
    assert order(3) == order(3) != order(4)
    assert sorted(order(3)) == list(range(10))
    assert torch.equal(torch.get_rng_state(), before)


def test_parquet_files_are_decoded_row_by_row(tmp_path: Path) -> None:
    write_parquet(tmp_path)
    split = load_cifar10(tmp_path, quiet=True)
    assert torch.equal(split.train.images, pictures(300, 300))
    assert torch.equal(split.test.images, pictures(120, 120))
    assert split.train.targets.tolist() == [i % 10 for i in range(300)]
    few = load_cifar10(tmp_path, rows=150, quiet=True)
    assert (len(few.train), len(few.test)) == (150, 120)
    assert torch.equal(few.train.images, split.train.images[:150])


def test_an_empty_folder_is_refused_without_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("must not be reached")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", fail)
    with pytest.raises(ArgumentError, match=r"root must hold .*--download"):
        load_cifar10(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_torchvisions_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stored:
        def __init__(self, root: str, *, train: bool, download: bool) -> None:
            calls.append((root, train, download))
            count = 200 if train else 100
            self.data = pictures(count).permute(0, 2, 3, 1).numpy()
            self.targets = [i % 10 for i in range(count)]

    calls: list[Any] = []
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Stored)
    split = load_cifar10(tmp_path, download=True)
    assert calls == [(str(tmp_path), False, True), (str(tmp_path), True, True)]
    assert torch.equal(split.train.images, pictures(200))
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert len(load_cifar10(tmp_path, rows=100).train) == 100
    assert calls[-1] == (str(tmp_path), True, False)


def test_a_damaged_torchvision_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ArgumentError, match="root must hold an intact CIFAR-10"):
        load_cifar10(tmp_path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": pa.array(["text"] * 300)}, "columns image"),
        ({"image": pa.array([b"no image"] * 300)}, r"must hold images \(row 0"),
        ({"image": pa.array([None] * 300, pa.binary())}, r"must hold images \(row 0"),
        (
            {"image": pa.array([png(torch.zeros(3, 8, 8, dtype=torch.uint8))] * 300)},
            r"32 x 32 pixels \(row 0\)",
        ),
    ],
)
def test_other_parquet_files_are_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    write_parquet(tmp_path, test=300, **columns)
    with pytest.raises(ArgumentError, match=message):
        load_cifar10(tmp_path, quiet=True)


def test_parquet_files_without_the_columns_are_refused(tmp_path: Path) -> None:
    for part in ("train", "test"):
        pq.write_table(pa.table({"label": [1, 2]}), tmp_path / f"{part}.parquet")
    with pytest.raises(ArgumentError, match="columns image"):
        load_cifar10(tmp_path, quiet=True)
    (tmp_path / "test.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ArgumentError, match="intact Parquet"):
        load_cifar10(tmp_path, quiet=True)


def test_too_few_rows_are_refused() -> None:
    images = Images(pictures(200), torch.zeros(200, dtype=torch.int64), white=255)
    split = Split("some", images, images)
    assert split.first(None) is split
    with pytest.raises(ArgumentError, match="rows must be an int >= 100, got 99"):
        split.first(99)


@pytest.mark.parametrize(("module", "load"), [("sklearn", load_digits), ("torchvision", load_cifar10)])
def test_a_missing_extra_names_its_cure(
    module: str, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnsupportedError, match=r"pip install 'prunesampler\[demo\]'"):
        load(*[tmp_path] if module == "torchvision" else [])


@pytest.mark.skipif("PRUNESAMPLER_DATA" not in os.environ, reason="PRUNESAMPLER_DATA names no folder of CIFAR-10")
def test_real_cifar10_rows() -> None:
    split = load_cifar10(Path(os.environ["PRUNESAMPLER_DATA"]), rows=500, quiet=True)
    assert (len(split.train), len(split.test)) == (500, 500)
    # The first images of CIFAR-10 are a frog, two trucks, a deer and a car.
    assert split.train.targets[:5].tolist() == [6, 9, 9, 4, 1]
    assert torch.bincount(split.train.targets, minlength=10).min() > 20
    means = split.train.images.float().mean((0, 2, 3))
    assert ((means > 100) & (means < 140)).all()
