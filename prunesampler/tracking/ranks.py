"""The collectives that ranks of a run need."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from prunesampler.errors import RankError, UnsupportedError

T = TypeVar("T")

_CHUNK = 1 << 20  # of larger parts gloo's reduce sends up to twice as much


class Group:
    """All ranks of a run, or this process alone; collectives of CPU tensors and plain data.

    Every method but the constructors is a collective: all ranks call it, in the same order. In a group of one each
    returns at once. The ranks talk over gloo in a process group of their own, so nothing of ours can fall between
    the collectives of the training loop, nor occupy its device. It waits for as long as the group of the loop does.

    Attributes:
        rank: of this process, from 0.
        world_size: number of ranks.
    """

    def __init__(self, process_group: Any = None) -> None:
        self._process_group = process_group
        self.rank: int = 0 if process_group is None else dist.get_rank(process_group)
        self.world_size: int = 1 if process_group is None else dist.get_world_size(process_group)

    @classmethod
    def create(cls) -> Group:
        """A new group over all ranks of ``torch.distributed``, which call it together, or of this process alone."""
        if dist.is_available() and dist.is_initialized():
            if dist.get_world_size() == 1:
                return cls()
            if not dist.is_gloo_available():
                raise UnsupportedError("several ranks need gloo, which this build of torch.distributed lacks")
            with _meeting("a rank has not called prunesampler.attach or made its ScoreTracker: every rank must"):
                return cls(dist.new_group(backend="gloo", timeout=_timeout()))
        started = os.environ.get("WORLD_SIZE", "1")
        if started.isdecimal() and int(started) > 1:
            raise UnsupportedError(
                f"WORLD_SIZE is {started} but torch.distributed is not initialised, so every rank would score and "
                "prune for itself: call torch.distributed.init_process_group first"
            )
        return cls()

    def broadcast_object(self, obj: Any) -> Any:
        """Rank 0's plain data or exception, on every rank; what the others give is ignored."""
        if self.world_size == 1:
            return obj
        box = [obj if self.rank == 0 else None]
        with _meeting():
            dist.broadcast_object_list(box, src=0, group=self._process_group)
        return box[0]

    def on_rank_0(self, work: Callable[[], T]) -> T:
        """What ``work()`` returns on rank 0, on every rank; what it raises there is raised on every rank.

        An error that cannot be sent is a RankError instead, on every rank.
        """
        answer: tuple[Any, Exception | None] = None, None
        if self.rank == 0:
            try:
                answer = work(), None
            except Exception as error:
                answer = None, error if self.world_size == 1 else _sendable(error)
        try:
            found, failure = self.broadcast_object(answer)
        except RankError:
            raise
        except Exception as error:  # what work() returned cannot be sent: nobody has heard of it yet
            found, failure = self.broadcast_object((None, _sendable(error)))
        if failure is not None:
            raise failure
        return cast(T, found)

    def gather_object(self, obj: Any) -> list[Any]:
        """Every rank's data or tensors in the order of ranks, **on rank 0**; an empty list on the others."""
        if self.world_size == 1:
            return [obj]
        gathered: list[Any] = [None] * self.world_size if self.rank == 0 else []
        with _meeting():
            dist.gather_object(obj, gathered or None, dst=0, group=self._process_group)
        return gathered

    def exchange(self, obj: Any) -> list[Any]:
        """Every rank's plain data (little of it) in the order of ranks, on every rank."""
        exchanged = [obj] * self.world_size
        if self.world_size > 1:
            with _meeting():
                dist.all_gather_object(exchanged, obj, group=self._process_group)
        return exchanged

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is set on any rank."""
        return bool(self.max_(torch.tensor([flag], dtype=torch.int32)).item())

    def max_(self, tensor: Tensor) -> Tensor:
        """The elementwise largest value of any rank, on every rank, in place; of contiguous CPU tensors."""
        return self._reduce_(tensor, "MAX")

    def owners(self, counts: Tensor) -> Tensor:
        """(N,) bool, rows that this rank and no lower one has seen, from how often it has seen each, on the CPU.

        Samplers give several ranks the same row so that all have equally many; one of these duplicates counts.
        """
        seen = counts > 0
        if self.world_size == 1:
            return seen
        kind = torch.int8 if self.world_size < 128 else torch.int32
        lowest = torch.full_like(counts, self.world_size, dtype=kind).masked_fill_(seen, self.rank)
        return self._reduce_(lowest, "MIN").eq(self.rank)

    def sum_(self, tensor: Tensor) -> Tensor:
        """The elementwise sum over ranks, in place, **on rank 0**; on others garbage. Of contiguous CPU tensors."""
        return self._reduce_(tensor, "SUM", dst=0)

    def _reduce_(self, tensor: Tensor, op: str, **to: int) -> Tensor:
        if self.world_size > 1:
            reduce: Any = dist.reduce if to else dist.all_reduce
            with _meeting():
                for part in tensor.view(-1).split(_CHUNK):  # gloo copies what it reduces
                    reduce(part, op=getattr(dist.ReduceOp, op), group=self._process_group, **to)
        return tensor


def _sendable(error: Exception) -> Exception:
    """The error, or where another process could not read it, one that says what it said."""
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):
            return error
    except Exception:  # whatever its own code raises
        pass
    stand_in = RankError(f"rank 0 has failed: {type(error).__name__}: {error}")
    stand_in.__cause__ = error  # does not travel
    return stand_in


@contextmanager
def _meeting(
    reason: str = "the ranks could not exchange their scores: another rank has died, or has left the training loop "
    "earlier",
) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankError(f"{reason}; or one did not come within the process group's timeout ({error})") from error


def _timeout() -> timedelta | None:
    # That of the group of the training loop; a new group would take torch's default.
    for device in ("cuda", "cpu"):
        with suppress(AttributeError, RuntimeError):  # it has no backend for such a device
            backend: Any = dist.group.WORLD._get_backend(torch.device(device))  # type: ignore[union-attr]
            return backend.options._timeout  # type: ignore[no-any-return]
    return None
