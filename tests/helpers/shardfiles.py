"""Tar shards, as webdataset's own writer makes them, and as it would never."""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import tarfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import webdataset

from tests.helpers.pictures import pictures, png

LEFT_OPEN = [  # webdataset leaves the files that it read for the garbage collector to close
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def samples(count: int, first: int = 0, **files: Any) -> list[dict[str, Any]]:
    """Pictures of noise with a class, keys ``000000`` and on; ``files`` are added to each."""
    images = pictures(count, first + 1)
    return [
        {"__key__": f"{first + i:06d}", "png": png(images[i]), "cls": (first + i) % 10, **files} for i in range(count)
    ]


def write_shards(
    folder: Path, per_shard: Sequence[int], first_shard: int = 0, first_key: int = 0, **options: Any
) -> list[str]:
    """Shards ``000000.tar`` and on, with so many samples each. Returns their paths."""
    first_keys = itertools.accumulate(per_shard, initial=first_key)
    made = itertools.chain.from_iterable(map(samples, per_shard, first_keys))
    return write_split(folder, made, per_shard, first_shard, **options)


def write_split(
    folder: Path, samples: Iterable[dict[str, Any]], per_shard: Sequence[int], first_shard: int = 0, **options: Any
) -> list[str]:
    """Given samples, so many in each of the shards ``000000.tar`` and on. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    left, paths = iter(samples), []
    for number, count in enumerate(per_shard, first_shard):
        paths.append(str(folder / f"{number:06d}.tar"))
        with webdataset.TarWriter(paths[-1], **options) as writer:
            for sample in itertools.islice(left, count):
                writer.write(sample)
    return paths


def write_tar(
    path: Path, files: Iterable[tuple[str, bytes] | tarfile.TarInfo], format: int = tarfile.USTAR_FORMAT
) -> str:
    """A tar of files as given: name and content, or a header without content. Returns its path."""
    with tarfile.open(path, "w", format=format) as tar:
        for file in files:
            if isinstance(file, tarfile.TarInfo):
                tar.addfile(file)
            else:
                info = tarfile.TarInfo(file[0])
                info.size = len(file[1])
                tar.addfile(info, io.BytesIO(file[1]))
    return str(path)


def delivered(urls: str | Sequence[str]) -> list[dict[str, Any]]:
    """What webdataset itself makes of shards, raw, in order; without where it put them."""
    dataset = webdataset.WebDataset(
        urls if isinstance(urls, str) else list(urls), shardshuffle=False, empty_check=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files to the garbage collector
        samples = list(dataset)
        gc.collect()
    return [{name: value for name, value in sample.items() if name != "__local_path__"} for sample in samples]


def bytes_on_disk(folder: Path) -> int:
    """What the files of a folder take, while others write and remove them."""
    found = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += path.stat().st_blocks * 512
    return found
