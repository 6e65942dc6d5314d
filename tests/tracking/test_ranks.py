from __future__ import annotations

import functools
import threading
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch

import prunesampler.tracking.ranks as distributed
from prunesampler.errors import ArgumentError, RankError, StateError, UnsupportedError
from prunesampler.tracking.ranks import Group
from tests.helpers.ranks import run_ranks

N = 1000


def counts_of(rank: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(rank).integers(0, 3, N).astype(np.int32))


def everything(rank: int, world_size: int) -> dict[str, Any]:
    distributed._CHUNK = 64  # so that there are many chunks, the last one shorter
    group = Group.create()
    refusal = group.broadcast_object(StateError("no") if rank == 0 else None)
    summed = group.sum_(torch.arange(N, dtype=torch.float64) * (rank + 1))
    return {
        "place": [group.rank, group.world_size],
        "broadcast": group.broadcast_object({"rows": [1, rank], "keep": 0.5}),
        "refusal": [type(refusal).__name__, str(refusal)],
        "any": [group.any(False), group.any(rank == world_size - 1), group.any(True)],
        "exchange": group.exchange(f"of {rank}"),
        "max": group.max_(counts_of(rank)),
        "max int8": group.max_(torch.tensor([-1, rank], dtype=torch.int8)),
        "owners": group.owners(counts_of(rank)),
        "sum": summed if rank == 0 else None,
    }


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_agree(world_size: int) -> None:
    found = run_ranks(world_size, everything)
    counts = np.stack([counts_of(rank).numpy() for rank in range(world_size)])
    lowest = np.where((counts > 0).any(axis=0), (counts > 0).argmax(axis=0), -1)
    for rank, result in enumerate(found):
        assert result["place"] == [rank, world_size]
        assert result["broadcast"] == {"rows": [1, 0], "keep": 0.5}
        assert result["refusal"] == ["StateError", "no"]
        assert result["any"] == [False, True, True]
        assert result["exchange"] == [f"of {other}" for other in range(world_size)]
        assert result["max"].tolist() == counts.max(axis=0).tolist()
        assert result["max int8"].tolist() == [-1, world_size - 1]
        assert result["owners"].tolist() == (lowest == rank).tolist()
    factor = sum(range(1, world_size + 1))
    assert found[0]["sum"].tolist() == (np.arange(N) * factor).tolist()


class OnlyHere(Exception):
    """Pickles, and cannot be made again."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} of {second}")


def raising(error: Exception) -> Any:
    raise error


def said(group: Group, work: Any) -> str:
    try:
        return f"{group.on_rank_0(work)}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def failures(rank: int, world_size: int) -> list[str]:
    group = Group.create()
    errors = [
        StateError("as it is"),
        OSError(28, "full"),
        OnlyHere(1, 2),
        ArgumentError("policy", "must be other than", lambda: 0),
        KeyError(threading.Lock()),
    ]
    works = [*(functools.partial(raising, error) for error in errors), threading.Lock]
    return [said(group, work) for work in works]


def test_what_rank_0_raises_is_raised_everywhere_whatever_it_holds() -> None:
    first, second = run_ranks(2, failures)
    assert first == second
    assert first[:2] == ["StateError: as it is", "OSError: [Errno 28] full"]
    assert first[2] == "RankError: rank 0 has failed: OnlyHere: 1 of 2"
    assert first[3].startswith("RankError: rank 0 has failed: ArgumentError: policy must be other than, got <function")
    assert first[4].startswith("RankError: rank 0 has failed: KeyError: ")
    assert "cannot pickle '_thread.lock' object" in first[5]


def absent(rank: int, world_size: int) -> str:
    distributed._timeout = lambda: timedelta(seconds=1)
    try:
        if rank == 0:
            Group.create()
    except RankError as error:
        return str(error)
    return "did not come"


def test_a_rank_that_never_comes_is_spoken_of() -> None:
    first, second = run_ranks(2, absent)
    assert "a rank has not called prunesampler.attach or made its ScoreTracker: every rank must" in first
    assert second == "did not come"


def test_alone_every_collective_returns_at_once() -> None:
    group = Group.create()
    tensor = torch.tensor([0, 3, 1])
    assert (group.rank, group.world_size) == (0, 1)
    assert group.max_(tensor) is tensor
    assert group.sum_(tensor) is tensor
    assert group.owners(tensor).tolist() == [False, True, True]
    assert group.broadcast_object(tensor) is tensor
    assert group.any(True)
    assert not group.any(False)
    assert group.exchange("a") == ["a"]


def test_several_processes_without_a_process_group_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UnsupportedError, match="init_process_group"):
        Group.create()
    for harmless in ("1", "", "many"):
        monkeypatch.setenv("WORLD_SIZE", harmless)
        assert Group.create().world_size == 1


def test_one_rank_with_a_process_group_is_alone(tmp_path: Any) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        assert Group.create().world_size == 1
    finally:
        dist.destroy_process_group()


def gather(rank: int, world_size: int) -> list[Any]:
    return Group.create().gather_object({"rank": torch.tensor(rank)})


def test_objects_gather_on_rank_0() -> None:
    first, second = run_ranks(2, gather)
    assert [int(found["rank"]) for found in first] == [0, 1]
    assert second == []
