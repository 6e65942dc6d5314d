"""Condensed images in memory, in a file, and in anybody's loader."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import prunesampler
from prunesampler.condensation import CondensedDataset
from prunesampler.condensation.augment import augment, draw
from prunesampler.condensation.objective import expand, seeded
from prunesampler.errors import ArgumentError, CorruptFileError, MismatchError
from prunesampler.tables.score_table import ScoreTable


def dataset(channels: int = 3, **options: Any) -> CondensedDataset:
    images = torch.randn(4, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    given: dict[str, Any] = {"mean": [0.5] * channels, "std": [0.25] * channels, "provenance": {"method": "dm"}}
    return CondensedDataset(images, [0, 0, 1, 1], **(given | options))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("encoding", "error"), [("float16", 2e-3), ("png", 0.02)])
def test_a_file_gives_the_images_back(channels: int, encoding: Any, error: float, tmp_path: Path) -> None:
    made = dataset(channels, augment="crop_flip", parts=2)
    made.save(tmp_path / "condensed.parquet", encoding)
    read = CondensedDataset.load(tmp_path)
    assert prunesampler.load(tmp_path / "condensed.parquet").digest == read.digest
    torch.testing.assert_close(read.stored, made.stored, atol=error, rtol=0)
    for name in ("kinds", "parts", "provenance"):
        assert getattr(read, name) == getattr(made, name)
    assert torch.equal(read.labels, torch.tensor([0, 1]).repeat_interleave(8))
    assert torch.equal(read.images, expand(read.stored, 2))
    assert read.normalization.apply(read.images).allclose((read.images - 0.5) / 0.25)
    if encoding == "float16":
        read.save(tmp_path / "again.parquet")
        assert CondensedDataset.load(tmp_path / "again.parquet").digest == read.digest


def test_the_file_is_plain_parquet(tmp_path: Path) -> None:
    dataset().save(tmp_path / "a.parquet")
    dataset().save(tmp_path / "b.parquet", "png")
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["label"].to_pylist() == [0, 0, 1, 1]
    first = np.frombuffer(table["image"][0].as_py(), "<f2").reshape(3, 8, 8)
    np.testing.assert_allclose(first, dataset().images[0].numpy(), atol=2e-3)
    picture = np.asarray(Image.open(io.BytesIO(pq.read_table(tmp_path / "b.parquet")["image"][3].as_py())))
    low, high = float(dataset().images.min()), float(dataset().images.max())
    np.testing.assert_allclose(picture / 255 * (high - low) + low, dataset().images[3].permute(1, 2, 0), atol=0.02)


def test_any_loader_reads_it_and_the_augmentation_goes_on() -> None:
    made = dataset(augment="dsa")
    images, labels = next(iter(DataLoader(made, 4)))
    assert torch.equal(images, made.images)
    assert labels.tolist() == [0, 0, 1, 1]
    found = made.augmented(images, seed=3)
    drawn = draw(made.kinds, seeded(3), 4)
    torch.testing.assert_close(found, augment((images - 0.5) / 0.25, drawn) * 0.25 + 0.5)
    torch.testing.assert_close(dataset().augmented(images, 3), images)


def test_damaged_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "condensed.parquet"
    dataset().save(path)
    whole = path.read_bytes()
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "label", table["label"].take([2, 1, 0, 3])), path)
    with pytest.raises(CorruptFileError, match="damaged or edited"):
        CondensedDataset.load(path)
    for size in (10, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptFileError, match="damaged or cut short"):
            CondensedDataset.load(path)
    ScoreTable({"el2n": [0.1]}).save(path)
    with pytest.raises(MismatchError, match="'scores', not 'condensed'"):
        CondensedDataset.load(path)
    with pytest.raises(FileNotFoundError):
        CondensedDataset.load(tmp_path / "none.parquet")


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    for options, message in (
        ({"mean": [0.5]}, "mean must be 3 finite numbers"),
        ({"parts": 0}, "parts must be an int >= 1"),
        ({"augment": "shear"}, "augment must be"),
    ):
        with pytest.raises(ArgumentError, match=message):
            dataset(**options)
    with pytest.raises(ArgumentError, match="labels must be 4 class indices"):
        CondensedDataset(torch.zeros(4, 1, 2, 2), [0], mean=[0], std=[1])
    with pytest.raises(ArgumentError, match="too large for float16"):
        CondensedDataset(torch.full((1, 1, 2, 2), 1e6), [0], mean=[0], std=[1]).save(tmp_path / "x.parquet")
    with pytest.raises(ArgumentError, match="1 or 3 channels"):
        dataset(2).save(tmp_path / "x.parquet", "png")
    assert not list(tmp_path.iterdir())
