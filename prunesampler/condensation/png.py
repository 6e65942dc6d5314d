"""PNG files of 8 bits, grey or RGB, written and read back without a further package."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt
from torch import Tensor

from prunesampler.errors import ArgumentError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SMALLEST = 32  # pixels of an image's shorter side in a grid
Pixels = npt.NDArray[np.uint8]


def encode_png(pixels: Pixels) -> bytes:
    """(H, W) or (H, W, 3) uint8 as a PNG file, its lines unfiltered.

    >>> decode_png(encode_png(np.array([[0, 7]], np.uint8)))
    array([[0, 7]], dtype=uint8)
    """
    height, width = pixels.shape[:2]
    lines = np.hstack([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)]).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if pixels.ndim == 2 else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return _SIGNATURE + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def decode_png(file: bytes) -> Pixels:
    """What :func:`encode_png` was given; ValueError for any other file."""
    width, height, depth, colour = struct.unpack(">IIBB", file[16:26])
    (size,) = struct.unpack(">I", file[33:37])
    if not file.startswith(_SIGNATURE) or depth != 8 or colour not in (0, 2) or file[37:41] != b"IDAT":
        raise ValueError("not a PNG file of ours")
    lines = np.frombuffer(zlib.decompress(file[41 : 41 + size]), np.uint8).reshape(height, -1)
    if lines[:, 0].any():
        raise ValueError("not a PNG file of ours")
    return lines[:, 1:].reshape((height, width) if colour == 0 else (height, width, 3))


def to_pixels(images: Tensor, low: float, high: float) -> Pixels:
    """(N, 1 or 3, H, W) numbers as (N, H, W) or (N, H, W, 3), ``low`` being 0 and ``high`` 255, others clipped."""
    if images.shape[1] not in (1, 3):
        raise ArgumentError("images", "must have 1 or 3 channels to be shown", images.shape[1])
    scaled = ((images.detach().cpu() - low) / max(high - low, 1e-12)).clamp(0, 1) * 255
    pixels: Pixels = scaled.round().byte().permute(0, 2, 3, 1).numpy()
    return pixels[..., 0] if images.shape[1] == 1 else pixels


def grid(images: Tensor, columns: int, low: float, high: float) -> bytes:
    """A PNG file of (N, 1 or 3, H, W) images, ``columns`` beside each other, small ones enlarged."""
    pixels = to_pixels(images, low, high)
    times = max(1, -(-_SMALLEST // min(pixels.shape[1:3])))
    pixels = pixels.repeat(times, 1).repeat(times, 2)
    rows = -(-len(pixels) // columns)
    height, width = pixels.shape[1] + 2, pixels.shape[2] + 2
    sheet = np.full((rows * height + 2, columns * width + 2, *pixels.shape[3:]), 255, np.uint8)
    for place, image in enumerate(pixels):
        top, left = place // columns * height + 2, place % columns * width + 2
        sheet[top : top + height - 2, left : left + width - 2] = image
    return encode_png(sheet)
