"""The loop: what comes out, what a killed run comes to, and what is refused."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from prunesampler.condensation import METHODS, CondensedDataset, ConvNet, condense
from prunesampler.condensation.networks import new_network
from prunesampler.condensation.png import decode_png, encode_png
from prunesampler.errors import ArgumentError, CorruptFileError, StateError
from prunesampler.tables.score_table import Coreset

loop = importlib.import_module("prunesampler.condensation.condense")
OPTIONS: dict[str, Any] = {"iterations": 4, "batch_size": 8, "progress": False, "network_options": {"width": 4}}
LOOPS = {
    "dc": {"outer": 2, "inner": 2},
    "dsa": {"outer": 2, "inner": 1},
    "idm": {"steps": 2},
    "cafe": {"window": 2, "most": 3},
}


def stripes(count: int = 60, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes: lines along, lines across, a gradient; with noise."""
    rng = torch.Generator().manual_seed(0)
    down = torch.arange(8) % 4 / 4
    shapes = torch.stack([down.expand(8, 8), down.expand(8, 8).T, torch.arange(64).reshape(8, 8) / 64])
    labels = torch.arange(count) % 3
    return shapes[labels][:, None] + 0.1 * torch.randn(count, channels, 8, 8, generator=rng), labels


def run(method: str = "dm", per_class: int = 2, source: Any = None, **options: Any) -> CondensedDataset:
    given = {**OPTIONS, "method_options": LOOPS.get(method, {}), **options}
    return condense(stripes() if source is None else source, per_class, method, **given)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_moves_the_images_towards_a_lower_loss(method: str) -> None:
    before = torch.get_rng_state()
    start, end = (run(method, iterations=count, init="noise", augment=None) for count in (1, 20))
    assert torch.equal(before, torch.get_rng_state())
    assert end.stored.shape == (6, 1, 8, 8)
    assert end.stored_labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(end) == (24 if method == "idm" else 6)
    images, labels = stripes()

    def loss(dataset: CondensedDataset, seed: int) -> float:
        network = new_network("convnet", (1, 8, 8), 3, seed, width=8)
        pairs = (images, labels), (dataset.images, dataset.labels)
        both = [[dataset.normalization.apply(x[y == label]) for label in range(3)] for x, y in pairs]
        return float(METHODS[method](2).loss(network, *both).detach())

    assert sum(loss(end, seed) for seed in range(5)) < sum(loss(start, seed) for seed in range(5))


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_goes_on_to_the_same_images(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(method)
    real_iterate = loop._iterate

    def killed(objective: Any, task: Any, optimizer: Any, iteration: int) -> Any:
        if iteration == 3:
            raise KeyboardInterrupt
        return real_iterate(objective, task, optimizer, iteration)

    options: dict[str, Any] = {"save_dir": tmp_path / "run", "save_every": 2}
    monkeypatch.setattr(loop, "_iterate", killed)
    with pytest.raises(KeyboardInterrupt):
        run(method, **options)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "images-000000.png",
        "images-000002.png",
        "state.pt",
    ]
    monkeypatch.setattr(loop, "_iterate", real_iterate)
    with pytest.raises(StateError, match=r"state.pt already: .* resume=True"):
        run(method, **options)
    with pytest.raises(StateError, match="a run with seed 0, not 1"):
        run(method, seed=1, resume=True, **options)
    found = run(method, resume=True, **options)
    assert torch.equal(found.images, expected.images)
    assert found.digest == expected.digest
    read = run(method, resume=True, **options)
    assert torch.equal(read.images, CondensedDataset.load(tmp_path / "run").images)
    torch.testing.assert_close(read.stored, expected.stored, rtol=1e-3, atol=1e-3)
    with Image.open(tmp_path / "run/images-000004.png") as picture:
        assert picture.size == (2 * 34 + 2, 3 * 34 + 2)


def test_a_damaged_state_is_told(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_bytes(b"nothing")
    with pytest.raises(CorruptFileError, match=r"state.pt is damaged"):
        run(save_dir=tmp_path, resume=True)


def test_loaders_datasets_and_tensors_are_the_same_source() -> None:
    images, labels = stripes()
    dataset = TensorDataset(images, labels)
    expected = run()
    for source in (dataset, DataLoader(dataset, 7), iter([{"image": images, "label": labels}])):
        assert torch.equal(run(source=source).images, expected.images)
    eighths = (images.clamp(0, 1) * 255).byte()
    assert torch.equal(run(source=(eighths, labels)).images, run(source=(eighths / 255, labels)).images)


def test_what_the_images_are_at_first() -> None:
    images, labels = stripes()
    coreset = Coreset(np.arange(30, 42), num_rows=60)
    for init in ("real", "herding", "k_center", coreset):
        found = run(init=init, learning_rate=1e-9)
        for image, label in found:
            nearest = (images - image).abs().amax((1, 2, 3))
            row = int(nearest.argmin())
            assert nearest[row] < 1e-5
            assert labels[row] == label
            assert init is not coreset or 30 <= row < 36
    assert float(run(init="noise", learning_rate=1e-9).images.std()) > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_class": 21}, "images of every class; class 0 has 20, got 21"),
        ({"source": (torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long))}, "two classes or more"),
        ({"source": (torch.full((4, 1, 8, 8), torch.nan), torch.arange(4))}, "NaN or infinity in image 0"),
        ({"source": (torch.zeros(4, 8, 8), torch.arange(4))}, "must give images"),
        ({"source": (torch.zeros(4, 1, 8, 8), torch.rand(4))}, "must give class indices"),
        ({"network": lambda shape, classes: ConvNet((3, 8, 8), classes), "network_options": {}}, "images of 1 × 8 × 8"),
        ({"method": "dsaa"}, "did you mean 'dsa'"),
        ({"method_options": {"loops": 3}}, "method_options must be options of 'dm'"),
        ({"init": "zeros"}, "init must be one of"),
        ({"init": Coreset(np.arange(3), num_rows=60)}, "hold 2 rows of each class"),
        ({"iterations": 0}, "iterations must be an int >= 1"),
        ({"learning_rate": 0}, "learning_rate must be a finite number > 0"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=message):
        run(save_dir=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    with pytest.raises(StateError, match="give a lower learning_rate"):
        run(learning_rate=1e30, iterations=20)


def test_png_files_are_as_pillow_reads_them() -> None:
    rng = np.random.default_rng(0)
    for shape in ((5, 7), (4, 6, 3)):
        pixels = rng.integers(0, 256, shape, np.uint8)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode_png(pixels)))), pixels)
        assert np.array_equal(decode_png(encode_png(pixels)), pixels)
