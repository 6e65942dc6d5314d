"""Several processes: torchrun --nproc-per-node 2 examples/ddp.py"""

from __future__ import annotations

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import prunesampler as ps

dist.init_process_group("gloo")  # "nccl" on GPUs
torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
dataset = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

sampler = DistributedSampler(dataset)
loader = DataLoader(dataset, batch_size=32, sampler=sampler)
loader = ps.attach(loader, model, keep=0.5, score_epochs=3, save_dir="runs/ddp/{n}")  # the model that the loop calls
for epoch in range(6):
    sampler.set_epoch(epoch)
    rows = 0
    for x, y in loader:
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rows += len(x)
    print(f"rank {dist.get_rank()}, epoch {epoch + 1}: {rows} rows", flush=True)
dist.destroy_process_group()
