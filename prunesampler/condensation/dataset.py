"""Condensed images as a dataset, and as a Parquet file that anything can read."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import Dataset

from prunesampler._format import Shown
from prunesampler.condensation import augment as augmentation
from prunesampler.condensation.objective import expand, seeded
from prunesampler.condensation.png import decode_png, encode_png, to_pixels
from prunesampler.condensation.source import Normalization
from prunesampler.errors import ArgumentError, CorruptFileError, check_choice, check_int
from prunesampler.tables.atomic import atomic_write
from prunesampler.tables.columns import json_object
from prunesampler.tables.parquet import content_digest, file_in, open_parquet, reading, seal, unseal

_KIND = "condensed"


class CondensedDataset(Shown, Dataset[tuple[Tensor, int]]):
    """Condensed images with their labels; ``dataset[i]`` is an (image, label), as any loader wants it.

    Images are in the units of the real ones that they were made of, of uint8 images in [0, 1]; single pixels may lie
    outside of these.

    Args:
        images: (N, C, H, W) finite floats, as they are stored.
        labels: (N,) class indices.
        mean: (C,) of the real images, and ``std``, by which networks were given them normalized.
        std: as ``mean``.
        augment: the kinds of augmentation that they were made with.
        parts: each stored image holds parts × parts of the dataset's, see :func:`~prunesampler.condensation.condense`.
        provenance: JSON: how they were made.

    Raises:
        ArgumentError: an argument breaks its rule.

    >>> import tempfile
    >>> dataset = CondensedDataset(torch.zeros(2, 1, 8, 8), [0, 1], mean=[0.5], std=[0.2])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dataset.save(f"{folder}/condensed.parquet")
    ...     CondensedDataset.load(folder)
    CondensedDataset(images=2, classes=2, shape=(1, 8, 8))
    """

    def __init__(
        self,
        images: Tensor,
        labels: Any,
        *,
        mean: Any,
        std: Any,
        augment: Any = None,
        parts: int = 1,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        stored, given = torch.as_tensor(images).detach().float().cpu(), torch.as_tensor(labels).long().cpu()
        if stored.ndim != 4 or not stored.numel() or not bool(stored.isfinite().all()):
            raise ArgumentError("images", "must be (N, C, H, W) finite floats", f"shape {tuple(stored.shape)}")
        if given.shape != stored.shape[:1] or int(given.min()) < 0:
            raise ArgumentError("labels", f"must be {len(stored)} class indices", f"shape {tuple(given.shape)}")
        self.stored, self.stored_labels = stored, given
        self.normalization = Normalization(mean, std)
        for name, each in (("mean", self.normalization.mean), ("std", self.normalization.std)):
            if len(each) != stored.shape[1] or not bool(each.isfinite().all()):
                raise ArgumentError(name, f"must be {stored.shape[1]} finite numbers, one a channel", each.tolist())
        self.kinds, self.parts = augmentation.kinds_of(augment), check_int("parts", parts, 1)
        self.provenance = json_object("provenance", provenance)
        self.images = expand(stored, self.parts)
        self.labels = given.repeat_interleave(self.parts**2)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.images[row], int(self.labels[row])

    def _facts(self) -> dict[str, Any]:
        return {"images": len(self), "classes": len(self.labels.unique()), "shape": tuple(self.images.shape[1:])}

    def augmented(self, images: Tensor, seed: int) -> Tensor:
        """A batch of images through one kind of the augmentation that they were made with, each drawn on its own.

        ``seed`` is best the number of the step.

        >>> dataset = CondensedDataset(torch.rand(2, 1, 8, 8), [0, 1], mean=[0.5], std=[0.2], augment="dsa")
        >>> dataset.augmented(dataset.images, seed=0).shape
        torch.Size([2, 1, 8, 8])
        """
        drawn = augmentation.draw(self.kinds, seeded(seed), len(images))
        return self.normalization.undo(augmentation.augment(self.normalization.apply(images), drawn))

    @functools.cached_property
    def digest(self) -> str:
        """``"sha256:…"`` of the stored images as float32, the labels and all provenance."""
        columns = {"image": self.stored.numpy().reshape(-1), "label": self.stored_labels.int().numpy()}
        return content_digest(self._metadata(), columns)

    def _metadata(self) -> dict[str, Any]:
        return {
            "kind": _KIND,
            "shape": list(self.stored.shape[1:]),
            "mean": self.normalization.mean.flatten().tolist(),
            "std": self.normalization.std.flatten().tolist(),
            "augment": list(self.kinds),
            "parts": self.parts,
            "provenance": self.provenance,
        }

    def save(self, path: str | os.PathLike[str], encoding: Literal["float16", "png"] = "float16") -> None:
        """Write a Parquet file, all of it or nothing: ``image`` bytes and ``label`` int32, an image a row.

        ``"float16"`` is (C, H, W) little-endian numbers, rounded to three digits. ``"png"`` is 8 bits between the
        lowest and the highest value of all images, which the file's metadata names as ``low`` and ``high``: smaller,
        to look at with anything, and coarser.

        Raises:
            ArgumentError: an image does not fit into the encoding.
            WriteError: an ``OSError``: the file cannot be written; an older one is then still intact.
        """
        metadata = {**self._metadata(), "encoding": check_choice("encoding", encoding, ("float16", "png"))}
        if encoding == "png":
            metadata |= {"low": float(self.stored.min()), "high": float(self.stored.max())}
            files = [encode_png(each) for each in to_pixels(self.stored, metadata["low"], metadata["high"])]
        else:
            if float(self.stored.abs().max()) > torch.finfo(torch.float16).max:
                raise ArgumentError("encoding", "must hold the images, which are too large for float16", encoding)
            files = [each.tobytes() for each in self.stored.numpy().astype("<f2")]
        labels = self.stored_labels.int().numpy()
        sealed = seal({**metadata, "digest": _digest(metadata, files, labels)})
        columns = {"image": pa.array(files, pa.binary()), "label": pa.array(labels)}
        with atomic_write(path) as file:
            pq.write_table(pa.table(columns).replace_schema_metadata(sealed), file, compression="zstd")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CondensedDataset:
        """Read what :meth:`save` wrote: a file, or the folder that holds ``condensed.parquet``.

        Raises:
            FileNotFoundError: no such file.
            CorruptFileError: damaged, cut short, edited, or not a file of ours.
            MismatchError: of another kind, or a newer format.
        """
        path = file_in(path, _KIND)
        with reading(path), open_parquet(path) as file:
            metadata = unseal(path, file.schema_arrow.metadata, _KIND)
            digest = metadata.pop("digest")
            for name in ("format", "library", "checksum"):
                del metadata[name]
            table = file.read()
            files, labels = table["image"].to_pylist(), table["label"].to_numpy()
            if digest != _digest(metadata, files, labels):
                raise CorruptFileError(f"{path} was damaged or edited: its content is not what was written")
            shape = metadata.pop("shape")
            if metadata.pop("encoding") == "png":
                low, high = metadata.pop("low"), metadata.pop("high")
                pixels = np.stack([decode_png(each) for each in files]).astype(np.float64)
                values = pixels.reshape(len(files), *shape[1:], shape[0]).transpose(0, 3, 1, 2) / 255
                images = low + values * (high - low)
            else:
                images = np.frombuffer(b"".join(files), "<f2").reshape(len(files), *shape)
            del metadata["kind"]
            return cls(torch.from_numpy(images.astype(np.float32)), labels.astype(np.int64), **metadata)


def _digest(metadata: Mapping[str, Any], files: list[bytes], labels: Any) -> str:
    sizes = np.array(list(map(len, files)), np.int32)
    columns = {"image": np.frombuffer(b"".join(files), np.uint8), "size": sizes, "label": labels}
    return content_digest(metadata, columns)
