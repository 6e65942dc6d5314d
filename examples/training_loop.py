"""An ordinary PyTorch loop that scores its rows for five epochs and then trains on half of them.

Stop it with Ctrl-C and start it again: it goes on where its last checkpoint was written.
"""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import prunesampler as ps

EPOCHS, SCORED = 15, 5
FOLDER, CHECKPOINT = Path("runs/training_loop"), Path("runs/training_loop.pt")

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
images, labels = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
train, test = TensorDataset(images[:1300], labels[:1300]), (images[1300:], labels[1300:])
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

loader = DataLoader(train, batch_size=64, shuffle=True)
loader = ps.attach(loader, model, keep=0.5, score_epochs=SCORED, save_dir=FOLDER, resume=CHECKPOINT.exists())
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, loader.pruning.total_steps(EPOCHS))

first = 0
if CHECKPOINT.exists():
    state = torch.load(CHECKPOINT, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    loader.pruning.load_state_dict(state["pruning"])
    first = state["epoch"]

for epoch in range(first, EPOCHS):
    rows = 0
    for x, y in loader:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        rows += len(x)
    print(f"epoch {epoch + 1}: {rows} rows")
    state = {"model": model, "optimizer": optimizer, "schedule": schedule, "pruning": loader.pruning}
    torch.save({name: part.state_dict() for name, part in state.items()} | {"epoch": epoch + 1}, CHECKPOINT)

accuracy = (model(test[0]).argmax(1) == test[1]).float().mean()
print(f"test accuracy {accuracy:.3f}; scores and kept rows are in {FOLDER}")
