"""Features of every row against a direct evaluation; in a file, broken off anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, TensorDataset

import prunesampler as ps

N, D = 23, 5


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(8, D), nn.Dropout(), nn.ReLU(), nn.Linear(D, 3))


def images() -> Tensor:
    return torch.randn(N, 1, 6, generator=torch.Generator().manual_seed(1))


def direct(end: int) -> np.ndarray:
    with torch.no_grad():
        return model().eval()[:end](images()).flatten(1).numpy()


def run(loader: Any, network: nn.Module | None = None, **options: Any) -> np.ndarray:
    return ps.features(network or model(), loader, progress=False, **options)


class Breaks(Dataset):
    """Fails at one row, until it is mended."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.indices = list(range(N))  # by which it is recognised

    def __len__(self) -> int:
        return N

    def __getitem__(self, row: int) -> Any:
        if row == self.at:
            raise OSError("disk")
        return images()[row], row % 3


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_they_are_the_input_of_the_last_layer_or_a_layers_output(dtype: Any, tmp_path: Path) -> None:
    unlabelled = DataLoader(TensorDataset(images()), 4, shuffle=True)
    for layer, end in ((None, 5), ("0", 1), ("4", 5)):
        for path in (None, tmp_path / f"{layer}.npy"):
            found = run(unlabelled, layer=layer, dtype=dtype, path=path)
            assert found.dtype == dtype
            np.testing.assert_allclose(found, direct(end), rtol=1e-5 if dtype == "float32" else 1e-3, atol=1e-4)
    assert isinstance(found, np.memmap)
    assert sorted(path.name for path in tmp_path.glob("4*")) == ["4.npy", "4.npy.json"]


def test_a_dataset_of_tensors_and_rows_that_do_not_come() -> None:
    found = run(DataLoader(images(), 4, sampler=SubsetRandomSampler([7, 2])))
    np.testing.assert_allclose(found[[2, 7]], direct(5)[[2, 7]], rtol=1e-5)
    assert np.isnan(found).all(1).sum() == N - 2


@pytest.mark.parametrize("flush", [1, 64])
def test_what_was_broken_off_goes_on_and_computes_no_row_twice(
    flush: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunesampler.tracking.features._FLUSH", flush)
    path, seen = tmp_path / "features.npy", []
    network = model()
    network.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    with pytest.raises(OSError, match="disk"):
        run(DataLoader(Breaks(9), 4), network, path=path)
    assert not path.exists()
    found = run(DataLoader(Breaks(), 4), network, path=path)
    np.testing.assert_allclose(found, direct(5), rtol=1e-5)
    assert sum(seen) == (N if flush == 1 else N + 8)
    again = run(DataLoader(Breaks(0), 4), network, path=path)
    assert np.array_equal(again, found), "a whole file is opened, and the loader left alone"


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path, loader = tmp_path / "features.npy", DataLoader(Breaks(), 4)
    run(loader, path=path)
    other = model()
    other[2].bias.data += 1
    for options, what in (({"network": other}, "model"), ({"layer": "2"}, "layer"), ({"fingerprint": "x"}, "fingerp")):
        with pytest.raises(ps.MismatchError, match=f"another {what}"):
            run(loader, path=path, **options)
    (tmp_path / "features.npy.json").write_text("[]")
    with pytest.raises(ps.MismatchError, match="another fingerprint"):
        run(loader, path=path)
    (tmp_path / "features.npy.json").unlink()
    with pytest.raises(ps.MismatchError, match="is not known to be features"):
        run(loader, path=path)


def test_a_damaged_part_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "features.npy"
    with pytest.raises(OSError, match="disk"):
        run(DataLoader(Breaks(9), 4), path=path)
    Path(f"{path}.part").write_bytes(b"1")
    with pytest.raises(ps.CorruptFileError, match="is damaged"):
        run(DataLoader(Breaks(), 4), path=path)


class Sums(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(2).expand(-1, 3)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"layer": "9"}, ps.ArgumentError, "layer must be the name of a module"),
        ({"layer": 2}, ps.ArgumentError, "layer must be the name of a module"),
        ({"dtype": "int8"}, ps.ArgumentError, "dtype must be one of"),
        ({"path": "features.parquet"}, ps.ArgumentError, r"path must end in \.npy"),
        ({"network": Sums()}, ps.UnsupportedError, "has no last layer to look into"),
    ],
)
def test_refusals(options: dict[str, Any], error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        run(DataLoader(TensorDataset(images()), 4), **options)


def test_what_float16_cannot_hold_is_refused() -> None:
    with pytest.raises(ps.ArgumentError, match='dtype must be "float32"'):
        run(DataLoader(TensorDataset(1e6 * images()), 4), dtype="float16")
