"""A timm model under a dynamic policy: InfoBatch drops easy rows anew each epoch, and weights those that it keeps."""

from __future__ import annotations

import timm
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import prunesampler as ps

EPOCHS = 4  # InfoBatch trains on all rows in the last eighth of them

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8)[:300] / 16
images = nn.functional.interpolate(images, size=32)  # the smallest that this network takes
dataset = TensorDataset(images, torch.tensor(labels[:300]))
model = timm.create_model("resnet10t", in_chans=1, num_classes=10)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

loader = DataLoader(dataset, batch_size=50, shuffle=True)
loader = ps.attach(loader, model, policy=ps.InfoBatch(ratio=0.5, epochs=EPOCHS))  # weighted
for epoch in range(EPOCHS):
    for x, y in loader:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: cost so far {loader.pruning.metrics()['cost']:.2f} passes over all rows")
