from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

import prunesampler as ps
from prunesampler.shards.build import build_index
from prunesampler.shards.dataset import IndexedShards
from prunesampler.tables.dataset_names import class_names, named_classes, sample_paths
from tests.helpers.shardfiles import write_shards


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    datasets = pytest.importorskip("torchvision.datasets")
    for place, name in enumerate(("cat", "dog", "cat", "eel")):
        path = tmp_path / "pets" / name / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)
    return datasets.ImageFolder(tmp_path / "pets", transform=lambda image: torch.arange(3.0))


PATHS = ["cat/0.png", "cat/2.png", "dog/1.png", "eel/3.png"]


def test_an_image_folder_names_classes_and_files_also_from_within(folder: Any) -> None:
    wrapped = ConcatDataset([Subset(folder, torch.tensor([3, 1])), folder])
    assert class_names(folder) == class_names(wrapped) == ["cat", "dog", "eel"]
    assert sample_paths(folder).to_pylist() == PATHS
    assert sample_paths(wrapped).to_pylist() == ["eel/3.png", "cat/2.png", *PATHS]


class Features:
    def __init__(self, **named: list[str]) -> None:
        self.features = {name: type("ClassLabel", (), {"names": names}) for name, names in named.items()}


class Sized(list[int]):
    def __init__(self, **attributes: Any) -> None:
        super().__init__([0, 0])
        vars(self).update(attributes)


@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        (Features(image=[], label=["a", "b"], other=["c", "d"]), ["a", "b"]),
        (Features(animal=["a", "b"]), ["a", "b"]),
        (Features(fine=["a", "b"], coarse=["c", "d"]), None),
        (Sized(class_to_idx={"b": 1, "a": 0}), ["a", "b"]),
        (Sized(class_to_idx={"b": 7, "a": 0}), None),
        (Sized(classes=[("tench", "Tinca tinca"), ("goldfish",)]), ["tench", "goldfish"]),
        (Sized(classes=["a", "a"]), None),
        (Sized(classes=["a", "b"], target_transform=abs), None),
        (ConcatDataset([Sized(classes=["a", "b"]), Sized(classes=["b", "a"])]), None),
        (TensorDataset(torch.zeros(2)), None),
        (None, None),
    ],
)
def test_where_names_come_from(dataset: Any, names: Any) -> None:
    assert class_names(dataset) == names


@pytest.mark.parametrize("samples", [[("a", 0)], [("\udcff", 0), ("b", 1)], [(0, 0), (1, 0)], "ab"])
def test_samples_that_are_no_files_have_no_paths(samples: Any) -> None:
    assert sample_paths(Sized(samples=samples)) is None


def test_shards_give_their_keys(tmp_path: Path) -> None:
    index = build_index(write_shards(tmp_path, [2, 1]), progress=False)
    assert sample_paths(IndexedShards(index)).to_pylist() == ["000000", "000001", "000002"]


def test_a_run_and_a_pass_keep_them_in_their_tables_and_merging_too(folder: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 3)
    loader = DataLoader(folder, batch_size=2)
    ps.attach(loader, model, keep=0.5, score_epochs=1, epoch_length="full", save_dir=tmp_path / "run")
    for x, y in loader:
        torch.nn.functional.cross_entropy(model(x), y).backward()
    loader.pruning.detach()
    online, passed = ps.ScoreTable.load(tmp_path / "run" / "scores.parquet"), ps.score(model, loader, progress=False)
    for table in (online, passed, ps.merge([passed, passed.replace(provenance={"run": 2})])):
        assert table.keys == PATHS
        assert named_classes(table) == {0: "cat", 1: "dog", 2: "eel"}
    coreset = ps.Coreset.load(tmp_path / "run" / "coreset.parquet")
    assert coreset.keys == [PATHS[row] for row in coreset.rows]


@pytest.mark.parametrize("provenance", [{}, {"classes": "ab"}, {"classes": [1, 2]}, {"merged_from": [1]}])
def test_a_table_without_names_or_with_strange_ones_has_none(provenance: Any) -> None:
    assert named_classes(ps.ScoreTable({"el2n": np.zeros(2)}, provenance=provenance)) == {}
