"""timm's prefetcher around a loader: it hands out the batches a step later and normalised."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, cast

from prunesampler.capture.row_loader import RowListener, RowLoader, row_loader_class
from prunesampler.capture.rows import Collated


def is_prefetcher(loader: Any) -> bool:
    """Whether this is ``timm.data.loader.PrefetchLoader``."""
    return any(
        (kind.__module__, kind.__name__) == ("timm.data.loader", "PrefetchLoader") for kind in type(loader).mro()
    )


class Prefetched:
    """Listens to the loader inside, and reports each batch when and as the prefetcher hands it out."""

    def __init__(self, listener: RowListener) -> None:
        self._listener = listener
        self._waiting: deque[Collated] = deque()
        self._pass: Any = None

    def before_pass(self) -> None:
        """As :class:`RowListener` says."""
        self._listener.before_pass()

    def started(self) -> Any:
        """As :class:`RowListener` says; rows of an earlier pass that were not handed out are forgotten."""
        self._waiting, self._pass = deque(), self._listener.started()
        return self._waiting

    def fetched(self, token: Any, item: Collated) -> Any:
        """The prefetcher has the next batch."""
        token.append(item._replace(batch=None))  # which is not to live longer for our sake
        return item.batch

    def exhausted(self, token: Any) -> None:
        """The prefetcher has the last batch, but has not handed it out yet."""

    def released(self, token: Any) -> None:
        """The prefetcher goes on without it."""

    def follow(self, batches: Iterator[Any]) -> Iterator[Any]:
        """One pass of the prefetcher."""
        waiting = of = None
        for batch in batches:
            if waiting is None:
                waiting, of = self._waiting, self._pass
            if waiting:
                batch = self._listener.fetched(of, waiting.popleft()._replace(batch=batch))
            yield batch
        if waiting is not None:
            self._listener.exhausted(of)


class _Follower:
    loader: Any

    def __iter__(self) -> Iterator[Any]:
        batches = super().__iter__()  # type: ignore[misc]
        listener = self.loader._row_listener if isinstance(self.loader, RowLoader) else None
        return listener.follow(batches) if isinstance(listener, Prefetched) else batches


def followed_prefetcher(plain: type) -> type:
    """The subclass of a prefetcher's class that follows its passes, while the loader inside is attached."""
    return plain if issubclass(plain, _Follower) else row_loader_class(_Follower, cast(Any, plain))
