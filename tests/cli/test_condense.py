from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from prunesampler.cli.app import main
from prunesampler.condensation import CondensedDataset
from prunesampler.condensation import condense as condense_images
from tests.condensation.test_condense import stripes
from tests.helpers.command_line import assert_refused
from tests.helpers.pictures import png
from tests.helpers.shardfiles import write_split

GIVEN = ["-n", "2", "--iterations", "2", "--width", "4", "--quiet"]


def pixels(count: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = stripes(count)
    return (images.clamp(0, 1) * 255).byte(), labels


@pytest.fixture(autouse=True)
def files(here: Path) -> None:
    """The same images, in the order of their classes, as a folder, a Parquet file and shards; and a folder of tests."""
    images, labels = pixels()
    order = labels.argsort(stable=True)
    encoded = [png(images[row].expand(3, -1, -1)) for row in order]
    classes = labels[order].tolist()
    for row, (file, label) in enumerate(zip(encoded, classes, strict=True)):
        for folder in ("train", "test"):
            path = here / folder / "abc"[label] / f"{row:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file)
    pq.write_table(pa.table({"image": pa.array(encoded, pa.binary()), "label": classes}), "train.parquet")
    bytes_in_struct = [{"bytes": file, "path": ""} for file in encoded]
    pq.write_table(pa.table({"image": bytes_in_struct, "label": classes}), "hub.parquet")
    samples = zip(encoded, classes, strict=True)
    made = [{"__key__": f"{row:03d}", "png": file, "cls": label} for row, (file, label) in enumerate(samples)]
    write_split(here / "shards", made, [17, 13])


@pytest.mark.parametrize("source", ["train", "train.parquet", "hub.parquet", "shards/{000000..000001}.tar"])
def test_a_folder_a_parquet_file_and_shards_are_condensed_alike(
    source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["condense", source, "-o", "out", *GIVEN]) == 0
    assert capsys.readouterr().out == "6 images, written to out/condensed.parquet\n"
    images, labels = pixels()
    order = labels.argsort(stable=True)
    given = {"iterations": 2, "network_options": {"width": 4}, "progress": False}
    expected = condense_images((images[order].expand(-1, 3, -1, -1), labels[order]), 2, **given)  # type: ignore[arg-type]
    torch.testing.assert_close(CondensedDataset.load("out").stored, expected.stored, atol=1e-3, rtol=1e-3)


def test_what_they_are_worth(capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = ["--evaluate", "test", "--epochs", "2", "--seeds", "2", "--networks", "convnet,mlp"]
    assert main(["condense", "train", "-o", "out", "--method", "idm", "--option", "steps=1", *evaluation, *GIVEN]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "accuracy in percent, mean ± deviation of 2 networks"
    assert [line.split()[0] for line in lines[3:7]] == ["condensed", "random", "herding", "k_center"]
    assert lines[-1] == "24 images, written to out/condensed.parquet"
    again = ["condense", "train", "-o", "out", "--method", "idm", "--option", "steps=1", "--resume", "--json", *GIVEN]
    assert main([*again, *evaluation]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["digest"] == CondensedDataset.load("out").digest
    assert [len(each["accuracies"]) for each in found["evaluation"]] == [2] * 8


def test_misuse_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(source: str, message: str, *more: str) -> None:
        assert_refused(capsys, ["condense", source, "-o", "out", *GIVEN, *more], message)

    refused("none", "none")
    refused("train", "class 0 has 10, got 11", "-n", "11")
    refused("train", "did you mean 'dsa'", "--method", "dsaa")
    refused("train/a", "source must be a folder with one of images a class")
    (here / "train/a/00.png").write_bytes(b"no image")
    refused("train", "source must hold images (train/a/00.png")
    (here / "train/a/00.png").write_bytes(png(torch.zeros(3, 9, 8, dtype=torch.uint8)))
    refused("train", "must hold images of one size, or --size be given")
    assert main(["condense", "train", "-o", "out", "--size", "8", *GIVEN]) == 0
    capsys.readouterr()
    refused("train", "out holds condensed.parquet already", "--size", "8")
