"""The README's picture: the CIFAR-10 images with the highest and the lowest EL2N.

python docs/hard_and_easy.py SCORES DATA OUT, after `prunesampler demo --data cifar10 --root DATA`. DATA holds
Parquet files with image and label, or torchvision's cifar-10-batches-py.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

import prunesampler as ps

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
COLUMNS, LINES, SIDE, TEXT, GAP = 6, 3, 64, 16, 24


def load(folder: Path, rows: list[int]) -> list[Any]:
    """The training images of some rows."""
    files = sorted(folder.glob("*train*.parquet"))
    if files:
        encoded = pq.read_table(files[0], columns=["image"])["image"]
        return [Image.open(io.BytesIO(encoded[row].as_py())).convert("RGB") for row in rows]
    from torchvision.datasets import CIFAR10

    data = CIFAR10(str(folder))
    return [data[row][0] for row in rows]


def main(scores: str, data: str, out: str) -> None:
    table = ps.ScoreTable.load(scores)
    order = table.scores["el2n"].argsort()
    count, font = COLUMNS * LINES, ImageFont.load_default(size=12)
    title = ImageFont.load_default(size=15)
    half = COLUMNS * (SIDE + 4) - 4
    picture = Image.new("RGB", (2 * half + GAP, 26 + LINES * (SIDE + TEXT)), "white")
    draw = ImageDraw.Draw(picture)
    for left, kind, chosen in ((0, "hardest", order[::-1][:count]), (half + GAP, "easiest", order[:count])):
        values = table.scores["el2n"][chosen]
        draw.text((left, 3), f"{kind}: EL2N {values.min():.3f} to {values.max():.3f}", "black", font=title)
        for place, (at, image) in enumerate(zip(chosen, load(Path(data), table.rows[chosen].tolist()), strict=True)):
            x, y = left + place % COLUMNS * (SIDE + 4), 26 + place // COLUMNS * (SIDE + TEXT)
            picture.paste(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), (x, y))
            draw.text((x, y + SIDE), NAMES[table.labels[at]], "black", font=font)
    picture.save(out, quality=88, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
