"""The images of some rows, small enough to be part of the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from prunesampler.analysis.images import CIFAR10_CLASSES, holds_cifar10, read_cifar10
from prunesampler.errors import ArgumentError, MismatchError, UnsupportedError
from prunesampler.tables.score_table import ScoreTable

_SIDE = 96


@dataclass(frozen=True)
class Pictures:
    """Class names by label, and the images' ``data:`` URIs by row."""

    names: dict[int, str]
    uris: dict[int, str]


def load_pictures(folder: Path, table: ScoreTable, rows: Sequence[int]) -> Pictures:
    """The images of some rows of the scored dataset, refused where their number or labels are not those of the table.

    ``folder`` holds CIFAR-10 as :func:`~prunesampler.analysis.images.read_cifar10` takes it (its training part), or one
    folder of images for each class, in the order of torchvision's ``ImageFolder``.
    """
    try:
        from torchvision import datasets
        from torchvision.transforms.functional import to_pil_image
    except ModuleNotFoundError as error:
        raise UnsupportedError(f"images need torchvision ({error}): pip install 'prunesampler[report]'") from error
    image: Callable[[int], Any]
    if holds_cifar10(folder):
        images, labels = read_cifar10(folder, "train", rows=table.num_rows, quiet=True)
        names, targets = CIFAR10_CLASSES, labels.numpy()

        def image(row: int) -> Any:
            return to_pil_image(images[row])
    else:
        try:
            found = datasets.ImageFolder(str(folder))
        except OSError as error:
            rule = "must hold CIFAR-10, or a folder of images for each class"
            raise ArgumentError("images", f"{rule} ({error})", str(folder)) from error
        names, targets = tuple(found.classes), np.asarray(found.targets)

        def image(row: int) -> Any:
            return found[row][0]

    _check(folder, table, targets)
    try:
        uris = {row: _uri(image(row)) for row in rows}
    except (OSError, ValueError) as error:
        raise ArgumentError("images", f"must be readable ({error})", str(folder)) from error
    return Pictures(dict(enumerate(names)), uris)


def _check(folder: Path, table: ScoreTable, targets: npt.NDArray[Any]) -> None:
    if len(targets) != table.num_rows:
        raise MismatchError(f"{folder} holds {len(targets):,} images, and the scores are of {table.num_rows:,} rows")
    if table.labels is None:
        return
    differ = np.flatnonzero((table.labels >= 0) & (table.labels != targets[table.rows]))
    if len(differ):
        row, label = int(table.rows[differ[0]]), int(table.labels[differ[0]])
        raise MismatchError(
            f"{folder} is not what was scored, or in another order: row {row} was of class {label}, and its image is "
            f"of class {int(targets[row])}"
        )


def _uri(image: Any) -> str:
    """PNG where it is small, so without loss; else a JPEG of at most 96 pixels a side."""
    kind = "png" if max(image.size) <= _SIDE else "jpeg"
    image = image.convert("RGB")
    if kind == "jpeg":
        image.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 85} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
