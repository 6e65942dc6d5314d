"""Whether memory, file handles, threads and objects stay flat while one process attaches, prunes and detaches for ever.

    python benchmarks/soak.py --out benchmarks/results/soak.json

One life of a run: attach, a scoring epoch that breaks off and a whole one, a state that goes through a file into a new
attach, a scoring epoch, the switch, a pruned epoch that breaks off and a whole one, detach, a plain epoch. Every other
time the second attach is to a loader of its own, which is dropped as it is. The model and the dataset live as long as
the process. After a warm-up of a tenth of the epochs a straight line is fitted to each figure, each taken after a
garbage collection; it is flat where the line rises by less than 0.1 % over all epochs, or by less than two of its
standard errors.
"""

from __future__ import annotations

import gc
import io
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import circumstances, make_parser, save_report
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import prunesampler as ps

ROWS, BATCH = 32, 8
OPTIONS: dict[str, Any] = {"keep": 0.5, "score_epochs": 3, "method": "top"}


class Lives:
    """Runs that follow each other in one process; each item of an iteration is one epoch that is over."""

    def __init__(self, **loader_options: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(ROWS, 4, generator=generator)
        self.dataset = TensorDataset(inputs, (inputs.argmax(1)))
        self.loader_options = loader_options
        self.loader = self.new_loader()

    def new_loader(self) -> DataLoader[Any]:
        return DataLoader(self.dataset, batch_size=BATCH, shuffle=True, **self.loader_options)

    def epoch(self, loader: Any, batches: int | None = None) -> None:
        """So many batches, or all; their number is checked."""
        done, expected = 0, len(loader) if batches is None else batches
        for x, y in loader:
            loss = nn.functional.cross_entropy(self.model(x), y)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            done += 1
            if done == batches:
                break
        assert done == expected

    def __iter__(self) -> Iterator[None]:
        number = 0
        while True:
            with tempfile.TemporaryDirectory() as folder:
                save_dir = folder if number % 4 == 0 else None
                number += 1
                yield from self.life(save_dir, same=bool(number % 2))

    def life(self, save_dir: str | None, *, same: bool) -> Iterator[None]:
        if self.loader_options.get("persistent_workers"):  # which cannot be reached once they run
            self.loader, same = self.new_loader(), False
        self.model = nn.Linear(4, 4)  # on the same model the run of the life before would go on
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        loader: Any = ps.attach(self.loader, self.model, save_dir=save_dir, **OPTIONS)
        self.epoch(loader, 3)
        yield
        self.epoch(loader)
        yield
        file = io.BytesIO()
        torch.save(loader.pruning.state_dict(), file)
        loader.pruning.detach()
        file.seek(0)
        loader = ps.attach(self.loader if same else self.new_loader(), self.model, save_dir=save_dir, **OPTIONS)
        loader.pruning.load_state_dict(torch.load(file, weights_only=True))
        self.epoch(loader)
        yield
        self.epoch(loader, 1)
        assert loader.pruning.phase == "pruned"
        yield
        self.epoch(loader)
        assert len(loader) == ROWS // 2 // BATCH
        yield
        if same:
            loader.pruning.detach()
        del loader
        self.epoch(self.loader)
        assert len(self.loader) == ROWS // BATCH
        yield


def figures() -> dict[str, float]:
    gc.collect()
    objects = gc.get_objects()
    return {
        "rss_megabytes": int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6,
        "file_handles": len(os.listdir("/proc/self/fd")) - 1,  # less that of the listing
        "threads": len(os.listdir("/proc/self/task")),
        "objects": len(objects),
        "objects_of_ours": sum(str(type(each).__module__).startswith("prunesampler") for each in objects),
    }


def soak(lives: Lives, epochs: int, every: int) -> dict[str, Any]:
    """The figures after every so many epochs, and a line through each of them."""
    taken: list[dict[str, float]] = []
    start = time.perf_counter()
    for number, _ in enumerate(lives, 1):
        if number % every == 0:
            taken.append({"epochs": number, **figures()})
        if number == epochs:
            break
    series = {name: [round(each[name], 3) for each in taken] for name in taken[0]}
    return {
        "epochs": epochs,
        "seconds": round(time.perf_counter() - start, 1),
        "lines": {name: line(series["epochs"], values) for name, values in series.items() if name != "epochs"},
        "series": series,
    }


def line(epochs: list[float], values: list[float]) -> dict[str, Any]:
    """Least squares after the warm-up: the rise over 1,000 epochs, its standard error, and whether that is flat."""
    x, y = np.array(epochs), np.array(values)
    x, y = x[x > epochs[-1] / 10], y[x > epochs[-1] / 10]
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    residual = y - y.mean() - slope * centred
    error = float(np.sqrt(residual @ residual / max(1, len(x) - 2) / (centred @ centred)))
    rise = slope * epochs[-1]
    return {
        "first": values[0],
        "last": values[-1],
        "rise_per_1000_epochs": round(slope * 1000, 4),
        "standard_error": round(error * 1000, 4),
        "flat": bool(rise < 0.001 * y.mean() or slope < 2 * error),
    }


def verdict(name: str, found: dict[str, Any]) -> str:
    lines = found["lines"]
    told = ", ".join(
        f"{figure} {each['rise_per_1000_epochs']:+.3g} ± {each['standard_error']:.2g}" for figure, each in lines.items()
    )
    flat = all(each["flat"] for each in lines.values())
    return f"{name}: {'flat' if flat else 'NOT FLAT'} over {found['epochs']} epochs; per 1,000 epochs {told}"


def main() -> None:
    parser = make_parser(__doc__, smoke="a few epochs, to see that it runs")
    parser.add_argument("--epochs", type=int, default=10_000, help="without workers")
    parser.add_argument("--worker-epochs", type=int, default=600, help="with a worker, half of them a persistent one")
    given = parser.parse_args()
    if given.smoke:
        given.epochs, given.worker_epochs = 36, 24
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ps.PruneSamplerWarning)
    # Figures are taken where lives end, and each fourth time at the same kind of life.
    found = {"no workers": soak(Lives(), given.epochs, 6 if given.smoke else 96)}
    half = given.worker_epochs // 2
    for name, persistent in (("a worker", False), ("a persistent worker", True)):
        lives = Lives(num_workers=1, persistent_workers=persistent, multiprocessing_context="fork")
        found[name] = soak(lives, half, 6 if given.smoke else 24)
        del lives
    report = {
        **circumstances("prunesampler"),
        "verdicts": [verdict(name, each) for name, each in found.items()],
        **found,
    }
    print("\n".join(report["verdicts"]))
    save_report(report, given.out)


if __name__ == "__main__":
    main()
