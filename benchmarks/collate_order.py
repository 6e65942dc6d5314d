"""What it costs a loader that a custom collate function's batches are compared with their samples.

    python benchmarks/collate_order.py --out benchmarks/results/collate.json

Reads one pass of each loader with and without the comparison, turn by turn, and gives the medians of milliseconds a
batch. Everything runs in this process (no workers), where the comparison costs the loop most.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from typing import Any
from unittest import mock

import torch
from common import circumstances, make_parser, save_report
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, default_collate

from prunesampler import with_rows
from prunesampler.capture.collate_order import CollateOrder

BATCHES, SIZE = 64, 128


class Images(Dataset[Any]):
    """32 × 32 images with a crop and a flip, as CIFAR's are trained on."""

    def __init__(self) -> None:
        self.images = torch.randn(len(self), 3, 40, 40)

    def __len__(self) -> int:
        return BATCHES * SIZE

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        top, left = row % 8, row // 8 % 8
        image = self.images[row, :, top : top + 32, left : left + 32]
        return image.flip(2) if row % 2 else image.clone(), row % 10


class Sequences(Dataset[Any]):
    """Token sequences of 8 to 128."""

    def __len__(self) -> int:
        return BATCHES * SIZE

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return torch.randint(1000, (8 + row * 7 % 121,), generator=torch.Generator().manual_seed(row)), row % 10


def stacked(samples: list[Any]) -> Any:
    return torch.stack([x for x, _ in samples]), torch.tensor([y for _, y in samples])


def padded(samples: list[Any]) -> Any:
    return pad_sequence([x for x, _ in samples], batch_first=True), torch.tensor([y for _, y in samples])


def longest_first(samples: list[Any]) -> Any:
    return padded(sorted(samples, key=lambda sample: -len(sample[0])))


ARMS = {
    "images, default_collate": (Images, default_collate),
    "images, stacked": (Images, stacked),
    "sequences, padded": (Sequences, padded),
    "sequences, padded, longest first": (Sequences, longest_first),
}


def milliseconds(loader: DataLoader[Any], compare: bool) -> float:
    """For one batch of a pass."""
    trusting = mock.patch.object(CollateOrder, "collate", lambda self, fn, samples: (fn(samples), None, None))
    with contextlib.nullcontext() if compare else trusting:
        start = time.perf_counter()
        batches = sum(1 for _ in with_rows(loader))
        return (time.perf_counter() - start) * 1000 / batches


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    report: dict[str, Any] = {**circumstances(), "arms": {}}
    for name, (dataset, collate) in ARMS.items():
        loader: DataLoader[Any] = DataLoader(dataset(), batch_size=SIZE, shuffle=True, collate_fn=collate)
        times: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(1 if options.smoke else options.repetitions):
            for compare in times:
                times[compare].append(milliseconds(loader, compare))
        without, compared = (statistics.median(times[compare]) for compare in (False, True))
        report["arms"][name] = {"without": times[False], "compared": times[True]}
        print(f"{name:34} {without:7.2f} ms a batch, {compared:7.2f} compared: {compared / without - 1:+.1%}")
    save_report(report, options.out)


if __name__ == "__main__":
    main()
