"""One set of scores, many trainings: which method, and how much to keep?"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import prunesampler as ps

EPOCHS = 10

images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
train, test = TensorDataset(images[:1300], labels[:1300]), (images[1300:], labels[1300:])


def trained(loader: DataLoader, model: nn.Module, epochs: int) -> float:
    """Test accuracy after so many passes."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return (model(test[0]).argmax(1) == test[1]).float().mean().item()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


model = network()
loader = ps.attach(DataLoader(train, batch_size=64, shuffle=True), model, keep=None, score_epochs=5)
trained(loader, model, 5)  # scored once
table = loader.pruning.table

print(f"{'method':>10} {'keep':>5} {'accuracy':>9}")
for method in ("stratified", "bottom", "random"):
    for keep in (0.6, 0.3):
        coreset = ps.select(table, keep=keep, method=method)
        pruned = DataLoader(train, batch_size=64, sampler=ps.PrunedSampler(train, coreset=coreset, seed=0))
        print(f"{method:>10} {keep:>5} {trained(pruned, network(), round(EPOCHS / keep)):>9.3f}")  # equal steps
