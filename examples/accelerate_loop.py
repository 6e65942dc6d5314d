"""Hugging Face Accelerate: prepare first, then attach to the loader that it returns."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import prunesampler as ps

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
dataset = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

accelerator = Accelerator()
loader = DataLoader(dataset, batch_size=64, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
loader = ps.attach(loader, model, keep=0.5, score_epochs=3, save_dir="runs/accelerate/{n}")

for epoch in range(6):
    for x, y in loader:
        accelerator.backward(nn.functional.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch + 1}: {loader.pruning.metrics()['kept']:.0%} of the rows next")
print(loader.pruning)
