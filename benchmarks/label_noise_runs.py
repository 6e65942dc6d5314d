"""Training runs on wrong labels whose logits are kept, epoch by epoch: what `label_noise.py` judges audits by.

    python benchmarks/label_noise_runs.py --data DIR --out runs/noise

One ordinary run of the small network at 16 × 16 pixels for each share of wrong labels, kind and seed: the logits of its
own training batches, (epochs, N, C) float16. With ``--folds`` also the probabilities that five more runs, each on four
fifths of the rows, give to the rows that they did not see: what confident learning wants.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from policies import BATCH, RATE, Setting, shrunk, wrong_labels
from torch import Tensor
from torch.utils.data import RandomSampler

import prunesampler as ps
from prunesampler.cli.training import Images, Recipe, fast_precision, load_cifar10, loader, new_model, small, train

EPOCHS, WIDTH, FOLDS = 12, 24, 5
RECIPE = Recipe(lambda sample: small(sample, WIDTH), BATCH, RATE, precision=fast_precision("cpu"))


class Recorded:
    """The batches of a loader, and the logits of each row, (epochs, N, C)."""

    def __init__(self, images: Images, model: torch.nn.Module, seed: int) -> None:
        shown = images.augmented(seed)
        sampler = RandomSampler(shown, generator=torch.Generator().manual_seed(seed))
        self.batches = loader(shown, sampler, BATCH, drop_last=False)
        self.logits = np.full((EPOCHS, len(images), 10), np.nan, np.float16)
        self.epoch, self.rows = -1, torch.empty(0, dtype=torch.int64)
        model.register_forward_hook(self.record)

    def record(self, model: torch.nn.Module, inputs: Any, logits: Tensor) -> None:
        if model.training:
            self.logits[self.epoch, self.rows.numpy()] = logits.detach().float().numpy()

    def __iter__(self) -> Iterator[Any]:
        self.epoch += 1
        for rows, batch in ps.with_rows(self.batches):
            self.rows = rows
            yield batch


@torch.no_grad()
def probabilities(model: torch.nn.Module, images: Images) -> np.ndarray:
    """In eval mode, without augmentation, (N, C) float32."""
    model.eval()
    found = []
    for rows in torch.arange(len(images)).split(1000):
        with RECIPE.autocast(torch.device("cpu")):
            found.append(model(images.__getitems__(rows.tolist())[0]).float().softmax(1))
    return torch.cat(found).numpy()


def save(file: Path, **arrays: Any) -> None:
    """All of it, or nothing."""
    scratch = file.with_suffix(".tmp.npz")
    np.savez(scratch, **arrays)
    os.replace(scratch, file)


def steps(images: Images) -> int:
    return EPOCHS * -(-len(images) // BATCH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("PRUNESAMPLER_DATA"), help="folder of CIFAR-10")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.2, 0.4, 0.1, 0.05, 0.0])
    parser.add_argument("--kinds", nargs="+", choices=["symmetric", "pairs"], default=["symmetric", "pairs"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", action="store_true", help="cross-validated probabilities, five trainings each")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    if given.data is None:
        parser.exit(0, "skipped: no --data, and PRUNESAMPLER_DATA names no folder of CIFAR-10\n")
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    clean, _ = map(shrunk, load_cifar10(Path(given.data), quiet=True))
    for seed, noise, kind in itertools.product(given.seeds, given.noise, given.kinds):
        if noise == 0 and kind == "pairs":
            continue
        file = given.out / f"{'folds' if given.folds else 'logits'}-{kind}-{noise:g}-{seed}.npz"
        if file.exists():
            continue
        targets = wrong_labels(clean.targets, Setting(EPOCHS, WIDTH, noise=noise, pairs=kind == "pairs"), seed)
        images, began = replace(clean, targets=targets), time.perf_counter()
        arrays = {"given": targets.numpy().astype(np.int8), "true": clean.targets.numpy().astype(np.int8)}
        if given.folds:
            fold = np.random.default_rng(seed).permutation(len(images)) % FOLDS
            part = file.with_suffix(".part.npz")  # what was broken off goes on with the next fold
            found = np.load(part)["probabilities"] if part.exists() else np.full((len(images), 10), np.nan, np.float32)
            for each in range(FOLDS):
                if np.isfinite(found[fold == each]).all():
                    continue
                fitted = images.subset(torch.from_numpy((fold != each).nonzero()[0]))
                model = new_model(RECIPE.network, seed, fitted)
                train(model, Recorded(fitted, model, seed), RECIPE, steps(fitted))
                held_out = torch.from_numpy((fold == each).nonzero()[0])
                found[held_out.numpy()] = probabilities(model, images.subset(held_out))
                save(part, probabilities=found)
            arrays["probabilities"] = found
        else:
            model = new_model(RECIPE.network, seed, images)
            recorded = Recorded(images, model, seed)
            train(model, recorded, RECIPE, steps(images))
            arrays["logits"] = recorded.logits
        arrays["seconds"] = np.float64(time.perf_counter() - began)
        save(file, **arrays)
        file.with_suffix(".part.npz").unlink(missing_ok=True)
        print(f"{file.name}: {arrays['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
