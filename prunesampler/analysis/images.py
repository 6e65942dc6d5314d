"""Images of a folder or a dataset: CIFAR-10, and pictures of some rows for the report."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm import tqdm

from prunesampler.errors import ArgumentError, MismatchError, UnsupportedError
from prunesampler.tables.dataset_names import class_names, named_classes
from prunesampler.tables.score_table import ScoreTable

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_TORCHVISION, _BINARY = "cifar-10-batches-py", "cifar-10-batches-bin"
_SIDE = 96
_IMAGES = ("image", "img", "pixel_values", "png", "jpg", "jpeg", "webp")  # in a sample that is a dict
_LABELS = ("label", "labels", "target", "targets", "cls")


def holds_cifar10(root: Path) -> bool:
    """Whether the folder looks like one that :func:`read_cifar10` can read."""
    return (root / _TORCHVISION).is_dir() or (root / _BINARY).is_dir() or any(root.glob("*train*.parquet"))


def read_cifar10(
    root: Path, part: Literal["train", "test"], *, download: bool = False, rows: int | None = None, quiet: bool = False
) -> tuple[Tensor, Tensor]:
    """One part of CIFAR-10, its first ``rows``: (N, 3, 32, 32) uint8 images and (N,) int64 labels.

    ``root`` holds ``*train*.parquet`` and ``*test*.parquet`` with the columns ``image`` (encoded bytes) and ``label``,
    its authors' binary version ``cifar-10-batches-bin``, or torchvision's ``cifar-10-batches-py``, which ``download``
    fetches (170 MB) where none is there.
    """
    if files := sorted(root.glob(f"*{part}*.parquet")):
        return _read_parquet(files[0], rows, quiet)
    if (root / _BINARY).is_dir():
        return _read_binary(root / _BINARY, part, rows)
    if not download and not (root / _TORCHVISION).is_dir():
        rule = f"must hold *train*.parquet and *test*.parquet, {_BINARY}, or {_TORCHVISION} (--download fetches it)"
        raise ArgumentError("root", rule, str(root))
    try:
        from torchvision import datasets
    except ModuleNotFoundError as error:
        raise UnsupportedError(f"CIFAR-10 needs torchvision ({error}): pip install 'prunesampler[demo]'") from error
    try:
        found = datasets.CIFAR10(str(root), train=part == "train", download=download)
    except RuntimeError as error:
        raise ArgumentError("root", f"must hold an intact CIFAR-10 ({error})", str(root)) from error
    return torch.from_numpy(found.data[:rows]).permute(0, 3, 1, 2), torch.tensor(found.targets[:rows])


def _read_binary(folder: Path, part: str, rows: int | None) -> tuple[Tensor, Tensor]:
    """Records of a label and 3 × 32 × 32 bytes."""
    files = sorted(folder.glob("data_batch_*.bin" if part == "train" else "test_batch.bin"))
    data = np.concatenate([np.empty(0, np.uint8), *(np.fromfile(file, np.uint8) for file in files)])
    if not len(data) or len(data) % 3073 or data[::3073].max() > 9:
        rule = "must hold an intact CIFAR-10: data_batch_*.bin and test_batch.bin of 3,073 bytes an image, label first"
        raise ArgumentError("root", rule, str(folder))
    records = torch.from_numpy(data).view(-1, 3073)[:rows]
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long()


def _read_parquet(file: Path, rows: int | None, quiet: bool) -> tuple[Tensor, Tensor]:
    try:
        from PIL import Image  # comes with torchvision, whose own decoders are being retired
    except ModuleNotFoundError as error:
        raise UnsupportedError(f"images need Pillow ({error}): pip install 'prunesampler[demo]'") from error
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


@dataclass(frozen=True)
class Pictures:
    """Class names by label, and the images' ``data:`` URIs by row."""

    names: dict[int, str]
    uris: dict[int, str]


def load_pictures(source: Any, table: ScoreTable, rows: Sequence[int]) -> Pictures:
    """The images of some rows of the scored dataset, refused where their number or labels are not those of the table.

    ``source`` is a folder: CIFAR-10 as :func:`read_cifar10` takes it (its training part), one folder of images for each
    class, in the order of torchvision's ``ImageFolder``, or a file for each of the table's keys. Or it is the dataset
    itself, whose samples are images, or tuples or dicts with one: of PIL, encoded, or (C, H, W), (H, W, C) or (H, W)
    tensors or arrays. Floats outside of [0, 1] were normalised, and are stretched to what can be shown.
    """
    if not isinstance(source, str | os.PathLike):
        return _of_dataset(source, table, rows)
    folder = Path(source)
    if (files := _keyed(folder, table, rows)) is not None:
        return Pictures(named_classes(table), {row: _uri_of_file(folder, file) for row, file in files.items()})
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


def _of_dataset(dataset: Any, table: ScoreTable, rows: Sequence[int]) -> Pictures:
    try:
        length = len(dataset)
    except TypeError as error:
        raise ArgumentError(
            "dataset", f"must be a folder, or a dataset with len() and rows ({error})", dataset
        ) from None
    if length != table.num_rows:
        raise MismatchError(f"the dataset has {length:,} rows, and the scores are of {table.num_rows:,}")
    uris = {}
    for row in rows:
        image, label = _image_and_label(dataset[row])
        place = np.searchsorted(table.rows, row)
        if table.labels is not None and label is not None and table.labels[place] not in (-1, label):
            raise MismatchError(_other_label("the dataset", row, int(table.labels[place]), label))
        uris[row] = _uri(image)
    return Pictures(dict(enumerate(class_names(dataset) or [])) or named_classes(table), uris)


def _image_and_label(sample: Any) -> tuple[Any, int | None]:
    """A sample's image for PIL, and its class where it is a number."""
    if isinstance(sample, Mapping):
        parts = [*(sample[name] for name in _IMAGES if name in sample), *sample.values()]
        labels = [sample[name] for name in _LABELS if name in sample]
    else:
        parts = [*sample] if isinstance(sample, list | tuple) else [sample]
        labels = parts[1:2]
    label = labels[0] if labels else None
    label = label.decode() if isinstance(label, bytes) and label.isdigit() else label
    try:
        number = None if label is None else int(label)
    except (TypeError, ValueError, RuntimeError):  # soft, or a box
        number = None
    for part in parts:
        if (image := _as_image(part)) is not None:
            return image, number
    rule = "must give images, alone, first in a tuple or in a dict: of PIL, encoded, or (C, H, W) or (H, W) arrays"
    raise ArgumentError("dataset", rule, type(sample))


def _as_image(part: Any) -> Any:
    from PIL import Image

    if isinstance(part, Image.Image):
        return part
    if isinstance(part, bytes):
        try:
            return Image.open(io.BytesIO(part))
        except OSError:
            return None
    if not hasattr(part, "shape") or len(part.shape) not in (2, 3):
        return None
    pixels = np.asarray(part.detach().cpu() if isinstance(part, Tensor) else part)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3 and pixels.shape[-1] not in (1, 3):
        return None
    if pixels.dtype != np.uint8:
        pixels = pixels.astype(np.float32)
        low, high = float(pixels.min()), float(pixels.max())
        if low < 0 or high > 1:
            pixels = (pixels - low) / max(high - low, 1e-12)
        pixels = np.rint(pixels * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.squeeze(-1) if pixels.shape[-1:] == (1,) else pixels))


def _keyed(folder: Path, table: ScoreTable, rows: Sequence[int]) -> dict[int, Path] | None:
    """The files that the keys of these rows name; None where one of them is no file inside of the folder."""
    if not isinstance(table.key_column, pa.Array) or not len(rows):
        return None
    keys = table.key_column.take(pa.array(np.searchsorted(table.rows, rows))).to_pylist()
    root = folder.resolve()
    try:
        files = [(root / key).resolve() for key in keys]  # a key of a strange file may lead elsewhere
        inside = all(file.is_relative_to(root) and file.is_file() for file in files)
    except (OSError, ValueError):
        return None
    return dict(zip(rows, files, strict=True)) if inside else None


def _uri_of_file(folder: Path, file: Path) -> str:
    try:
        from PIL import Image

        with Image.open(file) as image:
            return _uri(image)
    except ModuleNotFoundError as error:
        raise UnsupportedError(f"images need Pillow ({error}): pip install 'prunesampler[report]'") from error
    except (OSError, ValueError) as error:
        raise ArgumentError("images", f"must be readable ({error})", str(folder)) from error


def _check(folder: Path, table: ScoreTable, targets: npt.NDArray[Any]) -> None:
    if len(targets) != table.num_rows:
        raise MismatchError(f"{folder} holds {len(targets):,} images, and the scores are of {table.num_rows:,} rows")
    if table.labels is None:
        return
    differ = np.flatnonzero((table.labels >= 0) & (table.labels != targets[table.rows]))
    if len(differ):
        row, label = int(table.rows[differ[0]]), int(table.labels[differ[0]])
        raise MismatchError(_other_label(str(folder), row, label, int(targets[row])))


def _other_label(what: str, row: int, label: int, found: int) -> str:
    start = f"{what} is not what was scored, or in another order"
    return f"{start}: row {row} was of class {label}, and its image is of class {found}"


def _uri(image: Any) -> str:
    """PNG where it is small, so without loss; else a JPEG of at most 96 pixels a side."""
    kind = "png" if max(image.size) <= _SIDE else "jpeg"
    image = image.convert("RGB")
    if kind == "jpeg":
        image.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 85} if kind == "jpeg" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
