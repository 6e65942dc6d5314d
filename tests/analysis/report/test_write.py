"""``ps.report`` shows the images of whatever dataset was scored."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

import prunesampler as ps
from prunesampler.cli.app import main
from prunesampler.errors import ArgumentError, MismatchError
from prunesampler.shards import IndexedShards, build_index
from tests.helpers.pictures import pictures, png
from tests.helpers.shardfiles import write_shards

N = 40
LABELS = torch.arange(N) % 2
PIXELS = pictures(N)
TABLE = ps.ScoreTable({"el2n": np.linspace(0, 1, N)}, labels=LABELS.numpy())


def of_tensors() -> Any:
    return TensorDataset(PIXELS, LABELS)


def of_floats() -> Any:  # to 1, as ToTensor gives them
    return TensorDataset(PIXELS / 255, LABELS)


def of_arrays() -> Any:
    return [(picture.permute(1, 2, 0).numpy(), int(label)) for picture, label in zip(PIXELS, LABELS, strict=True)]


def of_dicts() -> Any:
    return [{"label": int(label), "image": png(picture)} for picture, label in zip(PIXELS, LABELS, strict=True)]


def of_hugging_face() -> Any:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    columns = {"image": [Image.open(io.BytesIO(png(picture))) for picture in PIXELS], "label": LABELS.tolist()}
    return Dataset.from_dict(columns, features=Features(image=ImageFeature(), label=ClassLabel(names=["cat", "dog"])))


def shown(page: Path) -> dict[int, Any]:
    """Pixels by row."""
    found = re.findall(r'base64,([^"]+)" alt="\w+: row (\d+)', page.read_text(encoding="utf-8"))
    return {int(row): np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))) for image, row in found}


@pytest.mark.parametrize("dataset", [of_tensors, of_floats, of_arrays, of_dicts, of_hugging_face])
def test_the_images_of_a_dataset(dataset: Any, tmp_path: Path) -> None:
    page = ps.report(TABLE, dataset(), out=tmp_path / "report.html")
    found = shown(page)
    assert {*found} == {*range(N)}
    for row, image in found.items():
        np.testing.assert_array_equal(image, PIXELS[row].permute(1, 2, 0).numpy())
    assert ("<b>dog</b>" in page.read_text(encoding="utf-8")) == (dataset is of_hugging_face)


def test_the_images_of_tar_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    urls = write_shards(tmp_path / "shards", [20, 20])
    index = build_index(urls, progress=False)
    table = ps.ScoreTable({"el2n": np.linspace(0, 1, N)})
    table.save("scores.parquet")
    assert {*shown(ps.report("scores.parquet", IndexedShards(index), out="a.html"))} == {*range(N)}
    index.save("index.parquet")
    assert main(["report", "scores.parquet", "-o", "b.html", "--images", "index.parquet"]) == 0
    assert Path("a.html").read_bytes() == Path("b.html").read_bytes()


def test_normalised_pixels_are_stretched(tmp_path: Path) -> None:
    images = torch.zeros(N, 1, 4, 4)
    images[:, 0, 0] = -2.0
    images[:, 0, 3] = 2.0
    page = ps.report(TABLE, TensorDataset(images, LABELS), out=tmp_path / "report.html")
    assert shown(page)[0][:, 0, 0].tolist() == [0, 128, 128, 255]


@pytest.mark.parametrize(
    ("dataset", "error", "told"),
    [
        ([1] * N, ArgumentError, "must give images"),
        ([{"image": b"no image"}] * N, ArgumentError, "must give images"),
        (5, ArgumentError, "must be a folder, or a dataset with"),
        (of_arrays()[:-1], MismatchError, "has 39 rows, and the scores are of 40"),
        (of_arrays()[::-1], MismatchError, "row 0 was of class 0, and its image is of class 1"),
    ],
    ids=["numbers", "text", "no dataset", "shorter", "in another order"],
)
def test_what_has_no_images_of_these_rows_is_refused(
    dataset: Any, error: type[Exception], told: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=told):
        ps.report(TABLE, dataset, out=tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
