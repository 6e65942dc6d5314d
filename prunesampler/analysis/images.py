"""CIFAR-10, read from a folder."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm import tqdm

from prunesampler.errors import ArgumentError, UnsupportedError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_TORCHVISION = "cifar-10-batches-py"


def holds_cifar10(root: Path) -> bool:
    """Whether the folder looks like one that :func:`read_cifar10` can read."""
    return (root / _TORCHVISION).is_dir() or any(root.glob("*train*.parquet"))


def read_cifar10(
    root: Path, part: Literal["train", "test"], *, download: bool = False, rows: int | None = None, quiet: bool = False
) -> tuple[Tensor, Tensor]:
    """One part of CIFAR-10, its first ``rows``: (N, 3, 32, 32) uint8 images and (N,) int64 labels.

    ``root`` holds ``*train*.parquet`` and ``*test*.parquet`` with the columns ``image`` (encoded bytes) and ``label``,
    or torchvision's ``cifar-10-batches-py``, which ``download`` fetches (170 MB) where neither is there.
    """
    try:
        from torchvision import datasets
    except ModuleNotFoundError as error:
        raise UnsupportedError(f"CIFAR-10 needs torchvision ({error}): pip install 'prunesampler[demo]'") from error
    files = sorted(root.glob(f"*{part}*.parquet"))
    if files:
        return _read_parquet(files[0], rows, quiet)
    if not download and not (root / _TORCHVISION).is_dir():
        rule = f"must hold *train*.parquet and *test*.parquet, or {_TORCHVISION} (--download fetches it)"
        raise ArgumentError("root", rule, str(root))
    try:
        found = datasets.CIFAR10(str(root), train=part == "train", download=download)
    except RuntimeError as error:
        raise ArgumentError("root", f"must hold an intact CIFAR-10 ({error})", str(root)) from error
    return torch.from_numpy(found.data[:rows]).permute(0, 3, 1, 2), torch.tensor(found.targets[:rows])


def _read_parquet(file: Path, rows: int | None, quiet: bool) -> tuple[Tensor, Tensor]:
    from PIL import Image  # comes with torchvision, whose own decoders are being retired

    try:
        schema = pq.read_schema(file)
        if not {"image", "label"} <= set(schema.names) or not pa.types.is_binary(schema.field("image").type):
            raise ArgumentError("root", "must hold files with the columns image (encoded bytes) and label", str(file))
        table = pq.read_table(file, columns=["image", "label"]).slice(0, rows)
    except (pa.ArrowException, OSError) as error:
        raise ArgumentError("root", f"must hold intact Parquet files ({error})", str(file)) from error
    images = np.empty((len(table), 32, 32, 3), np.uint8)
    encoded = tqdm(table["image"], desc=f"decoding {file.name}", unit="image", disable=quiet or None, leave=False)
    for row, value in enumerate(encoded):
        try:
            image = Image.open(io.BytesIO(value.as_py())).convert("RGB")
        except (OSError, ValueError, TypeError) as error:
            raise ArgumentError("root", f"must hold images (row {row}: {error})", str(file)) from error
        if image.size != (32, 32):
            raise ArgumentError("root", f"must hold images of 32 x 32 pixels (row {row})", str(file))
        images[row] = np.asarray(image)
    labels = table["label"].to_numpy().astype(np.int64)
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
