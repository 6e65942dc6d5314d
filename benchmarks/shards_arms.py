"""What is timed by ``shards.py``: loaders over the same images, and what each must deliver."""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader, Dataset, Subset, SubsetRandomSampler

import prunesampler
from prunesampler import Coreset, PrunedSampler, shards

BATCH, WORKERS, SHUFFLE = 64, 2, 500
DECODE = "torchrgb8"
LOADER: dict[str, Any] = {"batch_size": BATCH, "num_workers": WORKERS, "persistent_workers": True}
KEEPS = (0.5, 0.3, 0.1)


@dataclass
class Arm:
    """A loader whose batches are images, classes and keys; and the rows that one epoch of it must deliver."""

    name: str
    keep: float
    make: Callable[[], Iterable[Any]]
    rows: np.ndarray[Any, np.dtype[np.int64]] | int  # a number where the peer chooses the rows itself
    reach: float | None = None
    full: str = "webdataset, all"
    key: Callable[[int], str] = "{:08d}".format
    loader: Any = field(default=None, repr=False)
    error: str | None = None


def _tuple(sample: dict[str, Any]) -> tuple[Any, ...]:
    return sample["jpg"], sample["cls"], sample["__key__"]


def _loader(stream: Any) -> Any:
    return wds.WebLoader(stream.decode(DECODE).to_tuple("jpg", "cls", "__key__"), **LOADER)


def _web(urls: Sequence[str], **options: Any) -> Any:
    return wds.WebDataset(list(urls), shardshuffle=100, **options).shuffle(SHUFFLE)


def _after_all(urls: Sequence[str], select: Callable[[Any], bool], *, decoded: bool) -> Any:
    stream = wds.WebDataset(list(urls), shardshuffle=100)
    stream = stream.decode(DECODE).select(select) if decoded else stream.select(select).decode(DECODE)
    return wds.WebLoader(stream.shuffle(SHUFFLE).to_tuple("jpg", "cls", "__key__"), **LOADER)


def _none(sample: Any) -> bool:
    return False


class _Kept:
    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = frozenset(keys)

    def __call__(self, sample: dict[str, Any]) -> bool:
        return sample["__key__"] in self.keys


class _Rows:
    """Batches of a tracked pipeline, whose rows must be those of the keys."""

    def __init__(self, loader: Any, index: shards.ShardIndex) -> None:
        self.loader = loader
        self.numbers = {key: row for shard in index.shards for key, row in index.lookup(shard).items()}

    def __iter__(self) -> Iterator[Any]:
        for rows, batch in prunesampler.with_rows(self.loader):
            assert [self.numbers[key] for key in batch[2]] == rows.tolist()
            yield batch


def _fluid(coreset: Coreset, index: shards.ShardIndex, urls: Sequence[str]) -> Any:
    kept = shards.keep(coreset, index)
    stream = wds.WebDataset(
        list(urls), shardshuffle=100, nodesplitter=kept.shards, workersplitter=None, empty_check=False
    )
    return _loader(stream.compose(kept).shuffle(SHUFFLE))


class Fluid(wds.DataPipeline, wds.FluidInterface):
    """Stages of one's own, and webdataset's methods after them."""


def _seeking(coreset: Coreset, index: shards.ShardIndex, urls: Sequence[str]) -> Any:
    kept = shards.keep(coreset, index)
    stages = [wds.SimpleShardList(list(urls)), kept.shards, wds.shuffle(100), kept.samples]
    return _loader(Fluid(*stages).shuffle(SHUFFLE))


def _indexed(coreset: Coreset, index: shards.ShardIndex) -> Any:
    dataset = shards.IndexedShards(index, coreset, DECODE, transform=_tuple)
    return DataLoader(dataset, sampler=PrunedSampler(dataset, coreset=coreset), **LOADER)


def of_shards(folder: Path, index: shards.ShardIndex, coresets: dict[float, Coreset]) -> list[Arm]:
    """The arms over local shards, the full stream first; ``folder`` holds what was repacked too."""
    urls, count = index.shards, len(index)
    half = coresets[0.5]
    kept = _Kept(f"{row:08d}" for row in half.rows)
    everything = np.arange(count)
    arms = [
        Arm("webdataset, all", 1, lambda: _loader(_web(urls)), everything),
        Arm(
            "webdataset, all, tracked",
            1,
            lambda: _Rows(shards.track(_loader(_web(urls)), index), index),
            everything,
            reach=1.02,
        ),
    ]
    for keep, seek, stage in zip(KEEPS, (0.50, 0.30, 0.10), (0.56, 0.38, 0.20), strict=True):
        coreset = coresets[keep]
        rows = coreset.rows
        repacked = sorted(str(path) for path in (folder / f"repacked-{keep}").glob("*.tar"))
        arms += [
            Arm("IndexedShards", keep, lambda coreset=coreset: _indexed(coreset, index), rows, seek),
            Arm("keep, seeking", keep, lambda coreset=coreset: _seeking(coreset, index, urls), rows, stage),
            Arm(
                "keep, behind webdataset's reader",
                keep,
                lambda coreset=coreset: _fluid(coreset, index, urls),
                rows,
                stage,
            ),
            Arm("webdataset, repacked", keep, lambda repacked=repacked: _loader(_web(repacked)), rows, 1.02 * keep),
        ]
    return [
        *arms,
        Arm(
            "webdataset's reader alone, nothing kept", 0, lambda: _after_all(urls, _none, decoded=False), everything[:0]
        ),
        Arm("webdataset, select before decode", 0.5, lambda: _after_all(urls, kept, decoded=False), half.rows),
        Arm("webdataset, select after decode", 0.5, lambda: _after_all(urls, kept, decoded=True), half.rows),
    ]


class Bytes:
    """A sample's files, decoded as everywhere else."""

    def __init__(self) -> None:
        self.decoder = wds.autodecode.Decoder([wds.imagehandler(DECODE)])

    def __call__(self, key: str, jpg: bytes, cls: bytes) -> tuple[Any, ...]:
        return _tuple(self.decoder({"__key__": key, "jpg": jpg, "cls": cls}))


class _OfWids:
    def __init__(self) -> None:
        self.decode = Bytes()

    def __call__(self, sample: dict[str, Any]) -> tuple[Any, ...]:
        return self.decode(sample["__key__"], sample[".jpg"].read(), sample[".cls"].read())


class _OfDict:
    def __init__(self) -> None:
        self.decode = Bytes()

    def __call__(self, sample: dict[str, Any]) -> tuple[Any, ...]:
        return self.decode(sample["key"], sample["jpg"], sample["cls"])


class _Mapped(Dataset[Any]):
    def __init__(self, dataset: Any, function: Callable[[Any], Any]) -> None:
        self.dataset, self.function = dataset, function

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> Any:
        return self.function(self.dataset[row])


def _files(index: shards.ShardIndex) -> Iterator[dict[str, Any]]:
    for sample in wds.WebDataset(list(index.shards), shardshuffle=False):
        yield {"key": sample["__key__"], "jpg": sample["jpg"], "cls": sample["cls"]}


def _wids(folder: Path, index: shards.ShardIndex, coreset: Coreset) -> Any:
    import wids

    listed = [{"url": url, "nsamples": len(index.rows_of(url))} for url in index.shards]
    with contextlib.redirect_stdout(sys.stderr):  # it prints what it is
        dataset = wids.ShardListDataset(
            listed, cache_dir=str(folder / "wids"), transformations=[_OfWids()], keep=True, lru_size=len(listed)
        )
    return DataLoader(dataset, sampler=SubsetRandomSampler(coreset.rows.tolist()), **LOADER)


def _litdata(folder: Path, index: shards.ShardIndex, coreset: Coreset) -> Any:
    import litdata
    from litdata.streaming.writer import BinaryWriter

    if not (folder / "litdata").exists():
        writer = BinaryWriter(str(folder / "litdata"), chunk_bytes="8MB")
        for number, sample in enumerate(_files(index)):
            writer.add_item(number, sample)
        writer.done()
        writer.merge()
    dataset = litdata.StreamingDataset(
        str(folder / "litdata"), shuffle=True, subsample=len(coreset) / len(index), transform=_OfDict()
    )
    return litdata.StreamingDataLoader(dataset, **LOADER)


def _mosaic(folder: Path, index: shards.ShardIndex, coreset: Coreset) -> Any:
    import streaming

    if not (folder / "mds").exists():
        columns = {"key": "str", "jpg": "bytes", "cls": "bytes"}
        with streaming.MDSWriter(out=str(folder / "mds"), columns=columns, size_limit=8 << 20) as writer:
            for sample in _files(index):
                writer.write(sample)
    dataset = streaming.StreamingDataset(local=str(folder / "mds"), batch_size=BATCH, shuffle=True)
    subset = Subset(_Mapped(dataset, _OfDict()), coreset.rows.tolist())
    return DataLoader(subset, shuffle=True, **LOADER)


def of_peers(folder: Path, index: shards.ShardIndex, coreset: Coreset, none: bool) -> list[Arm]:
    """Other libraries, or none, with half of the samples, each from shards of its own format but for wids."""
    rows = coreset.rows
    arms = [
        Arm("wids, SubsetRandomSampler", 0.5, lambda: _wids(folder, index, coreset), rows),
        Arm("LitData, subsample (its own choice)", 0.5, lambda: _litdata(folder, index, coreset), len(rows)),
        Arm("MosaicML Streaming, Subset", 0.5, lambda: _mosaic(folder, index, coreset), rows),
    ]
    return [
        Arm("webdataset, all", 1, lambda: _loader(_web(index.shards)), np.arange(len(index))),
        *arms[: 3 * (not none)],
    ]


def of_server(address: str, folder: Path, index: shards.ShardIndex, coreset: Coreset) -> list[Arm]:
    """The same shards behind HTTP."""
    full = "HTTP: webdataset, all"
    urls = [f"{address}/{Path(url).name}" for url in index.shards]
    remote = shards.build_index(urls, progress=False, workers=1)
    moved = Coreset(coreset.rows, num_rows=len(remote))
    repacked = sorted(f"{address}/repacked-0.5/{path.name}" for path in (folder / "repacked-0.5").glob("*.tar"))
    rows = coreset.rows
    return [
        Arm(full, 1, lambda: _loader(_web(urls)), np.arange(len(remote)), full=full),
        Arm("HTTP: webdataset, repacked", 0.5, lambda: _loader(_web(repacked)), rows, full=full),
        Arm("HTTP: keep", 0.5, lambda: _seeking(moved, remote, urls), rows, full=full),
        Arm("HTTP: IndexedShards", 0.5, lambda: _indexed(moved, remote), rows, full=full),
    ]


def delivered(loader: Iterable[Any]) -> tuple[int, list[str]]:
    """One epoch: bytes of images, and the keys."""
    size, keys = 0, []
    for images, _, batch in loader:
        assert isinstance(images, torch.Tensor)
        assert images.dtype == torch.uint8
        size += images.nbytes
        keys.append(batch)
    return size, list(itertools.chain.from_iterable(keys))


def jpeg(picture: Any, pixels: int) -> bytes:
    """An image, enlarged."""
    from PIL import Image

    file = io.BytesIO()
    picture.convert("RGB").resize((pixels, pixels), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
    return file.getvalue()
