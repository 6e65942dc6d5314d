"""Pictures of noise, and the folder of Parquet files that they make."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    """(count, 3, 32, 32) uint8."""
    return torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def png(picture: torch.Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy())).save(file, "png")
    return file.getvalue()


def write_parquet(folder: Path, train: int = 300, test: int = 120, **columns: Any) -> None:
    """Pictures of the seeds ``train`` and ``test``; ``columns`` replace some."""
    for part, count in (("train", train), ("test", test)):
        table = {
            "label": pa.array([i % 10 for i in range(count)], pa.int8()),
            "image": pa.array([png(picture) for picture in pictures(count, count)], pa.binary()),
        }
        pq.write_table(pa.table({**table, **columns}), folder / f"cifar10-{part}.parquet")
