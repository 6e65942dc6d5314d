from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, StackDataset, Subset, TensorDataset

from prunesampler.errors import ArgumentError
from prunesampler.tables.fingerprint import fingerprint, matches


class Listed(Dataset[Any]):
    """A dataset that lists what it is told to, and must not be read."""

    def __init__(self, length: int = 3, **lists: Any) -> None:
        self.length = length
        self.__dict__.update(lists)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("a sample was read")


class Other(Listed):
    pass


def of(**lists: Any) -> str | None:
    return fingerprint(Listed(**lists))


SAMPLES = [("/data/a/1.jpg", 0), ("/data/a/2.jpg", 0), ("/data/b/1.jpg", 1)]


def test_a_datasets_own_fingerprint_is_taken() -> None:
    own = Listed(fingerprint="sha256:0123", targets=[0, 1, 2])
    assert fingerprint(own) == "sha256:0123"
    assert fingerprint(Listed(fingerprint=len)) == "size:3"
    inside = fingerprint(Subset(own, [0, 1]))
    assert inside == fingerprint(Subset(Listed(fingerprint="sha256:0123"), [0, 1]))
    assert inside != fingerprint(Subset(Listed(fingerprint="sha256:0124"), [0, 1]))


def test_it_is_what_the_first_release_wrote() -> None:
    assert of(targets=[0, 1, 2]) == "sha256:6e711aff82964bf3407f17d94ca63fde7e0c9b15366fedff2880e49504c00ee2"
    assert of(samples=SAMPLES) == "sha256:86cc921bea638cb3df4f19ca0978edd2c12c6b7a7867dd6ee0b12c6d3180abb7"
    assert fingerprint(keys=["a", "b"]) == "sha256:a10f5699ef0b29d80da28db939666c0be7383706fd2787559fd51ad415cb1722"


def test_different_datasets_differ() -> None:
    found = [
        *(of(targets=targets) for targets in ([0, 1, 2], [0, 2, 1], [0, 1, 2, 3])),
        of(targets=[0, 1, 2], length=4),
        of(labels=[0, 1, 2]),
        of(targets=[0, 1, 2], labels=[0, 1, 2]),
        *(of(targets=targets) for targets in (["0", "1", "2"], [0.0, 1.0, 2.0], [0, 1, None])),
        *(of(targets=targets) for targets in ([(0, 1), (2,)], [(0,), (1, 2)])),
        of(samples=SAMPLES),
        of(samples=SAMPLES[::-1]),
        of(samples=[(path, 1 - label) for path, label in SAMPLES]),
        of(samples=[{"path": path, "class": label} for path, label in SAMPLES]),
        fingerprint(Other(targets=[0, 1, 2])),
        fingerprint(Subset(Listed(targets=[0, 1, 2]), [0, 1])),
        fingerprint(Subset(Listed(targets=[0, 1, 2]), [1, 0])),
        fingerprint(Subset(Listed(targets=[0, 1, 3]), [0, 1])),
        fingerprint(ConcatDataset([Listed(targets=[0, 1, 2]), Listed(targets=[1])])),
        fingerprint(ConcatDataset([Listed(targets=[1]), Listed(targets=[0, 1, 2])])),
        fingerprint(StackDataset(a=Listed(targets=[0, 1, 2]), b=Listed(targets=[0, 1, 3]))),
        fingerprint(StackDataset(b=Listed(targets=[0, 1, 2]), a=Listed(targets=[0, 1, 3]))),
        *(of(_fingerprint=text) for text in ("0123", "0124")),
        *(fingerprint(keys=keys) for keys in ([0, 1, 2], ["0", "1", "2"], ["0", "2", "1"], ["01", "2", ""])),
    ]
    assert len(set(found)) == len(found)
    assert all(text is not None and text.startswith("sha256:") and len(text) == 71 for text in found)


WAYS: list[Callable[[list[int]], Any]] = [
    *(tuple, np.array, torch.tensor, pd.Series, pa.array),
    lambda values: np.array(values, np.uint8),
    lambda values: np.array(values)[::-1][::-1],
    lambda values: torch.tensor(values, dtype=torch.int32),
    lambda values: [torch.tensor(value) for value in values],
    lambda values: [np.int64(value) for value in values],
    lambda values: pd.Series(values, index=[9, 4, 4]),
    lambda values: pa.chunked_array([values[:1], values[1:]]),
]


@pytest.mark.parametrize("way", WAYS)
def test_the_container_of_the_values_does_not_matter(way: Callable[[list[int]], Any]) -> None:
    assert of(targets=way([0, 5, 2])) == of(targets=[0, 5, 2])
    assert of(targets=way([0, 5, 3])) != of(targets=[0, 5, 2])


def test_strings_and_keys_in_any_container() -> None:
    for way in (tuple, np.array, pd.Series, pa.array):
        assert of(samples=way(["x.jpg", "y.jpg"])) == of(samples=["x.jpg", "y.jpg"])
    assert of(samples=[Path("x.jpg"), Path("y.jpg")]) == of(samples=["x.jpg", "y.jpg"])
    assert of(samples=[os.fsdecode(b"\xff.jpg")]) != of(samples=[os.fsdecode(b"\xfe.jpg")])
    for way in (tuple, np.array, pd.Series, pa.array, iter):
        assert fingerprint(keys=way([3, 4])) == fingerprint(keys=[3, 4])
        assert fingerprint(keys=way(["c", "d"])) == fingerprint(keys=["c", "d"])
    assert fingerprint(Listed(targets=[0]), keys=[3, 4]) == fingerprint(keys=[3, 4])
    with pytest.raises(ArgumentError, match="keys"):
        fingerprint(keys=[1, "a"])


def test_a_copy_in_another_folder_is_the_same_dataset() -> None:
    moved = [(path.replace("/data", "/scratch/job7"), label) for path, label in SAMPLES]
    assert of(samples=SAMPLES) != of(samples=moved)
    expected = of(samples=SAMPLES, root="/data")
    assert expected == of(samples=moved, root="/scratch/job7")
    assert expected == of(samples=moved, root=Path("/scratch/job7/"))
    assert of(samples=["/data2/a"], root="/data") == of(samples=["/data2/a"])


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30), st.lists(st.integers(-5, 5), min_size=1, max_size=30))
@settings(max_examples=50)
def test_small_lists_are_equal_if_and_only_if_their_fingerprints_are(left: list[int], right: list[int]) -> None:
    assert (of(targets=left) == of(targets=right)) == (left == right)


def test_arrays_of_several_dimensions() -> None:
    many = np.arange(12).reshape(3, 4)
    assert of(targets=many) == of(targets=torch.tensor(many)) == of(targets=many.tolist())
    assert of(targets=many) != of(targets=many[::-1])
    deep = np.arange(24).reshape(3, 2, 4)
    assert of(targets=deep) == of(targets=torch.tensor(deep)) != of(targets=deep.reshape(3, 4, 2))


class Counted(list[int]):
    """A list that counts what is asked of it."""

    asked = 0

    def __getitem__(self, index: Any) -> Any:
        self.asked += 1
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("all entries were visited")


def test_at_most_65536_entries_are_touched_the_last_among_them() -> None:
    n = 1_000_000
    targets = Counted([0] * n)
    expected = of(targets=targets, length=n)
    assert targets.asked == 65_536
    for place in (0, n - 1):
        changed = np.zeros(n, np.int8)
        changed[place] = 1
        assert of(targets=changed, length=n) != expected
    assert of(targets=np.zeros(n, np.int8), length=n) == expected
    images = torch.zeros(1, dtype=torch.uint8).expand(60_000, 3, 224, 224)  # 9 GB if it were copied
    assert of(samples=images) is not None


def test_a_resorted_large_dataset_is_noticed() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 1_000_000)
    assert of(targets=labels) != of(targets=np.sort(labels))
    assert of(targets=labels) != of(targets=np.roll(labels, 1))


def test_tensor_datasets_go_by_their_integer_tensors() -> None:
    x, y = torch.zeros(4, 2), torch.tensor([0, 1, 1, 0])
    assert fingerprint(TensorDataset(x, y)) == fingerprint(TensorDataset(x + 1e-7, y))
    assert fingerprint(TensorDataset(x, y)) != fingerprint(TensorDataset(x, y.flip(0) + 1))
    assert fingerprint(TensorDataset(x, x)) == "size:4"


def test_a_fingerprint_of_the_size_alone_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="prunesampler"):
        assert fingerprint(Listed()) == "size:3"
        assert "Listed lists nothing to recognise it by but its size" in caplog.text
        caplog.clear()
        assert of(targets=[1]) is not None
        assert caplog.text == ""
    assert fingerprint(ConcatDataset([Listed(), Listed()])) == "size:6"
    assert str(fingerprint(Subset(Listed(), [2, 0]))).startswith("sha256:")
    assert fingerprint([1, 2]) == "size:2"


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        raise AssertionError("it was iterated")


def test_no_length_is_no_fingerprint() -> None:
    assert fingerprint(Endless()) is None
    assert fingerprint(3) is None
    with pytest.raises(ArgumentError, match="dataset must be given"):
        fingerprint()


class Awkward(Listed):
    @property
    def targets(self) -> Any:
        raise RuntimeError("not loaded")

    def labels(self) -> None:
        raise AssertionError("called")

    samples = "samples"
    dataset = "cifar10"


def test_attributes_of_other_types_are_ignored() -> None:
    assert fingerprint(Awkward()) == "size:3"
    assert of(targets=np.array(3)) == "size:3"
    assert of(samples=(entry for entry in SAMPLES)) == "size:3"
    assert of(datasets=3, tensors=3, root=3, targets=object()) == "size:3"


def test_a_dataset_that_contains_itself_has_a_fingerprint() -> None:
    loop = Listed(targets=[1, 2])
    loop.dataset = loop  # type: ignore[attr-defined]
    assert fingerprint(loop) is not None
    deep: Any = Listed(targets=[1])
    for _ in range(40):
        deep = Subset(deep, [0])
    assert fingerprint(deep) is not None


def test_it_is_the_same_in_another_process() -> None:
    code = """
        from prunesampler.tables.fingerprint import fingerprint
        class Listed:
            targets = [0, 1, 2]
            samples = [("a", 0), {"b": 1, "a": 2.5}]
            def __len__(self): return 3
        print(fingerprint(Listed()))
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert found == of(targets=[0, 1, 2], samples=[("a", 0), {"b": 1, "a": 2.5}])


def test_an_unknown_fingerprint_matches_every_other() -> None:
    for pair in (("size:3", "size:3"), (None, "size:3"), ("size:3", None), (None, None)):
        assert matches(*pair)
    assert not any(matches("size:3", other) for other in ("size:4", "sha256:00"))
