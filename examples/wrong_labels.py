"""Look for wrong labels: 5 % are made wrong on purpose, and the scores are asked which ones."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import prunesampler as ps

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
wrong = torch.randperm(len(labels))[: len(labels) // 20]
labels[wrong] = (labels[wrong] + torch.randint(1, 10, wrong.shape)) % 10

model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
loader = DataLoader(TensorDataset(images, labels), batch_size=64, shuffle=True)
loader = ps.attach(loader, model, keep=None, score_epochs=8)  # keep=None: score only
for _ in range(8):  # few epochs: later on, the network learns the wrong labels too
    for x, y in loader:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
loader.pruning.finish()

table = loader.pruning.table
suspects = table.rows[(-table.scores["el2n"]).argsort()[: len(wrong)]]
found = len(set(suspects.tolist()) & set(wrong.tolist()))
print(f"{found} of the {len(wrong)} wrong labels are among the {len(wrong)} rows with the highest EL2N")
print("look at these first:", suspects[:10].tolist())
