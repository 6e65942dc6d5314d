"""Whether pruning pays: the kept rows beside random ones and a shorter run, on clean digits and with wrong labels."""

from __future__ import annotations

import functools
import logging

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import prunesampler as ps

EPOCHS, SCORED, BATCH = 20, 4, 32

images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
fit, validation = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).split([1200, 597])
rng = np.random.default_rng(0)
wrong = rng.permutation(len(fit))[:240]  # a fifth of the labels, made wrong on purpose
noisy = labels[fit].clone()
noisy[wrong] = (noisy[wrong] + torch.from_numpy(rng.integers(1, 10, len(wrong)))) % 10


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def train_on(given: torch.Tensor, rows: np.ndarray | None, *, seed: int, share: float) -> float:
    """Train a new model on some rows (None: on all) for a share of the full training; return validation accuracy."""
    model, steps = network(seed), round(share * EPOCHS * len(fit) / BATCH)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)  # ends where this run does
    of = torch.arange(len(fit)) if rows is None else torch.from_numpy(rows)
    order = torch.cat([of[torch.randperm(len(of))] for _ in range(steps * BATCH // len(of) + 1)])
    for batch in order[: steps * BATCH].split(BATCH):
        loss = nn.functional.cross_entropy(model(images[fit[batch]]), given[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return (model(images[validation]).argmax(1) == labels[validation]).float().mean().item()


train = functools.partial(train_on, labels[fit])
train_noisy = functools.partial(train_on, noisy)


def score(given: torch.Tensor) -> ps.ScoreTable:
    """Scores of a few epochs."""
    model = network(100)
    loader = DataLoader(TensorDataset(images[fit], given), BATCH, shuffle=True)
    loader = ps.attach(loader, model, keep=None, score_epochs=SCORED)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(SCORED):
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    loader.pruning.finish()
    return loader.pruning.table


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    cost = SCORED / EPOCHS
    print("clean labels, half of the rows:")
    print(ps.compare(train, score(labels[fit]), keep=0.5, scoring=cost, seeds=3))
    print("\na fifth of the labels wrong, the easiest 80 % of the rows:")
    print(ps.compare(train_noisy, score(noisy), keep=0.8, method="bottom", scoring=cost, seeds=3))
