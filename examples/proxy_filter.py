"""A tiny network says which digits a larger one trains on: beside it in the loader, and recorded once for two runs.

All arms train the larger network for as many steps of as many rows. The cost is in its operations, forward and
backward, with the tiny network's added. On digits this small expect no gain; it shows how the filter is used.
"""

from __future__ import annotations

import itertools
import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import prunesampler as ps

STEPS, BATCH, KEEP = 120, 32, 0.75
FETCHED = round(BATCH / KEEP)

images, labels = load_digits(return_X_y=True)
images = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
labels = torch.tensor(labels)
train, test = TensorDataset(images[:1300], labels[:1300]), (images[1300:], labels[1300:])


def network() -> nn.Module:
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU())
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))


def fit(model: nn.Module, loader: DataLoader, steps: int) -> float:
    """Train for so many steps; the accuracy on the test rows."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)
    done = 0
    while done < steps:
        for x, y in itertools.islice(loader, steps - done):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
            done += 1
    with torch.no_grad():
        return float((model.eval()(test[0]).argmax(1) == test[1]).float().mean())


def operations(model: nn.Module) -> int:
    """Of the forward of one row."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(images[:1])
    model.train()
    return counter.get_total_flops()


def report(arm: str, accuracy: float, proxies: float) -> None:
    """``proxies`` is how often the tiny network trained on as many rows as it fetched here."""
    extra = proxies * operations(proxy) / KEEP / operations(network())
    print(f"{arm:<46} accuracy {accuracy:.3f}  cost {1 + extra:.3f}")


proxy = ps.tiny_proxy(images[0], classes=10, width=8)
report("all rows", fit(network(), DataLoader(train, BATCH, shuffle=True), STEPS), 0)

model, loader = network(), DataLoader(train, BATCH, shuffle=True)
loader = ps.attach(loader, model, policy=ps.ProxyFilter(proxy, keep=KEEP))
report("the hardest three quarters of each batch", fit(model, loader, STEPS), 1)

with tempfile.TemporaryDirectory() as folder:
    proxy, loader = ps.tiny_proxy(images[0], classes=10, width=8), DataLoader(train, FETCHED, shuffle=True)
    loader = ps.attach(loader, proxy, policy=ps.RecordHardest(KEEP), save_dir=folder)
    fit(proxy, loader, STEPS)
    loader.pruning.finish()
    schedule = ps.Schedule.load(f"{folder}/schedule.parquet")
    print(f"recorded {len(schedule.epochs)} epochs of about {len(schedule.epochs[0])} rows of {schedule.num_rows}")
    for run in (1, 2):
        model, loader = network(), DataLoader(train, BATCH)
        loader = ps.attach(loader, model, policy=ps.Scheduled(f"{folder}/schedule.parquet"))
        report(f"run {run} on what was recorded, for two runs", fit(model, loader, STEPS), 0.5)
