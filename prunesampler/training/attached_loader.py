"""The loader of an attached run: the one inside that makes the batches, and the class that makes it report them."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from torch.utils.data import DataLoader

from prunesampler.capture.accelerate import follow_rests
from prunesampler.capture.row_loader import RowLoader, RowPipeline, row_loader_class
from prunesampler.capture.rows import check_followed, row_stream
from prunesampler.capture.timm import Prefetched, followed_prefetcher, is_prefetcher
from prunesampler.errors import StateError, UnsupportedError
from prunesampler.training.attachment import Attachment
from prunesampler.training.handle import Pruning

T = TypeVar("T")


class AttachedLoader(RowLoader[T]):
    """The loader that was given to :func:`prunesampler.attach`: the same object, with a ``pruning`` handle."""

    pruning: Pruning


class AttachedPipeline(RowPipeline):
    """The same of a shard pipeline that :func:`prunesampler.shards.track` has made."""

    pruning: Pruning


def loader_inside(loader: Any, *, row_fn: bool) -> DataLoader[Any]:
    """The loader whose iterators make the batches, checked."""
    if type(loader).__name__ == "DataLoaderDispatcher" and loader.state.num_processes > 1:
        raise UnsupportedError(
            "with dispatch_batches=True one process reads the batches of all, and their rows would not reach the "
            "others: give Accelerator(dataloader_config=DataLoaderConfiguration(dispatch_batches=False))"
        )
    if is_prefetcher(loader):
        loader = loader.loader
    # Prepared loaders, of Accelerate and of Ray Train, hold the one that works.
    for held in ("base_dataloader", "_dataloader"):
        loader = vars(loader).get(held, loader) if hasattr(loader, "__dict__") else loader
    stages = getattr(loader, "pipeline", None)  # a WebLoader's, whose first is the DataLoader
    inner = row_stream(stages[0]) if isinstance(stages, list) and stages else None
    if inner is not None and row_stream(loader) is None:
        inner.adopt(loader)
    check_followed(loader, row_fn=row_fn)
    live = vars(loader).get("_iterator") if isinstance(loader, DataLoader) else None
    if live is not None and loader.persistent_workers and not (_was_attached(live) or _is_for_state(loader)):
        raise StateError(
            "loader has a live iterator whose workers cannot be reached any more: call attach before the first "
            "iter(loader)"
        )
    return cast("DataLoader[Any]", loader)


def become_attached(loader: Any, plain: Any, attachment: Attachment, pruning: Pruning) -> None:
    """Both stay the same objects; ``loader`` is ``plain``, or a framework's around it."""
    kind: Any = AttachedLoader if isinstance(plain, DataLoader) else AttachedPipeline
    plain.__class__ = row_loader_class(kind, cast(Any, type(plain)))
    plain._row_listener, plain.pruning = attachment, pruning
    if _is_for_state(plain):
        plain.load_state_dict(plain.state_dict() if plain._iterator._num_yielded else {})
        plain._made_before = True
    elif _was_attached(vars(plain).get("_iterator")):  # by persistent workers that go on
        plain._iterator = None
    if getattr(loader, "pruning", None) is not pruning:  # Ray Train's loaders look nothing up in the one they hold
        loader.pruning = pruning
    follow_rests()
    if is_prefetcher(loader):
        plain._row_listener = Prefetched(attachment)
        loader.__class__ = followed_prefetcher(cast(Any, type(loader)))


def _was_attached(iterator: Any) -> bool:
    return hasattr(iterator, "_row_listener")


def _is_for_state(loader: Any) -> bool:
    """Whether a StatefulDataLoader's iterator was made by ``state_dict()`` alone, as Accelerate's prepare does."""
    return bool(vars(loader).get("_initial_iter_for_state_dict", False))
