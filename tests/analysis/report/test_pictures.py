from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from prunesampler.analysis.report.pictures import load_pictures
from prunesampler.errors import ArgumentError, MismatchError, UnsupportedError
from prunesampler.tables.score_table import ScoreTable
from tests.helpers.pictures import pictures, write_parquet


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


def test_without_torchvision_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'prunesampler\[report\]'"):
        load_pictures(tmp_path, table([0]), [0])
