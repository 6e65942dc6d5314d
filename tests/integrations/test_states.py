"""States go to a file and come back; a file that is none is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunesampler.errors import CorruptFileError
from prunesampler.integrations.states import load_state, save_state


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    state = {
        "none": None,
        "flag": True,
        "count": 2**60,
        "rate": 0.1,
        "name": "tensor:0",
        "text": "text:",
        "list": [1, "a", [torch.arange(3)]],
        "nested": {"empty": {}, "half": torch.ones(2, dtype=torch.float16), "flags": torch.tensor([True, False])},
    }
    save_state(tmp_path / "state", state)
    found = load_state(tmp_path / "state")
    assert found.keys() == state.keys()
    for name in ("none", "flag", "count", "rate", "name", "text"):
        assert found[name] == state[name]
        assert type(found[name]) is type(state[name])
    assert found["list"][:2] == [1, "a"]
    assert found["list"][2][0].tolist() == [0, 1, 2]
    torch.testing.assert_close(found["nested"], state["nested"])


def test_tensors_of_one_storage_and_views_are_written_apart(tmp_path: Path) -> None:
    whole = torch.arange(6.0).view(2, 3)
    save_state(tmp_path / "state", {"a": whole, "b": whole, "c": whole.T, "d": whole[:, :0]})
    found = load_state(tmp_path / "state")
    for name, expected in (("a", whole), ("b", whole), ("c", whole.T), ("d", whole[:, :0])):
        assert torch.equal(found[name], expected)


def test_anything_else_is_refused_before_a_file_appears(tmp_path: Path) -> None:
    for state in ({"a": object()}, {1: 2}, {"a": {"b": {3}}}):
        with pytest.raises(TypeError):
            save_state(tmp_path / "state", state)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with pytest.raises(OSError, match="state"):
        load_state(path)
    path.write_bytes(b"not at all")
    with pytest.raises(CorruptFileError, match="no state"):
        load_state(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CorruptFileError, match="no state"):
        load_state(path)
    for text in ("{", json.dumps({"a": "tensor:7"}), json.dumps([1])):
        save_file({"0": torch.zeros(2)}, path, metadata={"prunesampler": text})
        with pytest.raises(CorruptFileError, match="no state"):
            load_state(path)
    save_state(path, {"a": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CorruptFileError, match="no state"):
        load_state(path)


def test_others_can_read_the_tensors(tmp_path: Path) -> None:
    save_state(tmp_path / "state", {"a": torch.ones(3)})
    assert [tensor.tolist() for tensor in load_file(tmp_path / "state").values()] == [[1.0, 1.0, 1.0]]
