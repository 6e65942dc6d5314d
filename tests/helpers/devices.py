"""An ordinary run on a device, and the same as a script for torchrun: python -m tests.helpers.devices DEVICE FOLDER."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import prunesampler as ps
from tests.helpers.rankruns import Diary, Presentations
from tests.helpers.training import Leaky, Net, Trainer

N, BATCH, EPOCHS, PRUNED = 64, 8, 3, 2
OPTIONS: dict[str, Any] = {"keep": 0.5, "score_epochs": EPOCHS, "method": "top"}
SETTLED = 10  # steps after which none inside an epoch may wait for the device


class OnDevice(Trainer):
    """Moves batches as tuned loops do, and checks that a step that has settled waits for nothing."""

    def __init__(self, model: nn.Module, device: str) -> None:
        super().__init__(model, Diary())
        self.device, self.steps = device, 0
        self.calls: Any = model

    def forward(self, batch: Any) -> Tensor:
        x, y = (each.to(self.device, non_blocking=True) for each in batch)
        self.steps += 1
        if self.device == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        settled = self.device == "cuda" and self.steps > SETTLED and self.steps % (N // BATCH) > 1
        if settled:
            torch.cuda.set_sync_debug_mode("error")
        try:
            logits = self.calls(x)
        finally:
            if settled:
                torch.cuda.set_sync_debug_mode("default")
        self.journal.write(x.cpu(), logits.cpu(), y.cpu())
        return nn.functional.cross_entropy(logits, y)


def loader_of(device: str, sampler: Any = None) -> DataLoader[Any]:
    options: dict[str, Any] = {"sampler": sampler, "pin_memory": device == "cuda"}
    return DataLoader(Leaky(N), batch_size=BATCH, shuffle=sampler is None, **options)


def run(device: str, how: str) -> tuple[Any, list[Presentations]]:
    """A run whose model is called ``how``: as it is, compiled, or captured."""
    torch.manual_seed(3)
    model: Any = Net().to(device)
    if how == "graphed callable":
        model = torch.cuda.make_graphed_callables(model, (torch.zeros(BATCH, 4, device=device),))
    loader = ps.attach(loader_of(device), model, **OPTIONS)
    trainer = OnDevice(model, device)
    if how in ("default", "reduce-overhead"):
        trainer.calls = torch.compile(model, mode=how)
    return loader, log_of(loader, trainer)


def log_of(loader: Any, trainer: OnDevice, sampler: Any = None) -> list[Presentations]:
    """What each epoch presented."""
    for epoch in range(EPOCHS + PRUNED):
        if sampler is not None:
            sampler.set_epoch(epoch)
        trainer.epoch(loader)
    assert isinstance(trainer.journal, Diary)
    return trainer.journal.log[:-1]


def main(device: str, folder: str) -> None:
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(Net().to(device))
    sampler: Any = DistributedSampler(range(N), num_replicas=world, rank=rank)
    loader = ps.attach(loader_of(device, sampler), model, **OPTIONS, save_dir=Path(folder, str(rank)))
    log = log_of(loader, OnDevice(model, device), sampler)
    torch.save({"log": log, "coreset": loader.pruning.coreset.rows.tolist()}, Path(folder, f"{rank}.pt"))
    dist.barrier()
    os._exit(0)  # destroy_process_group() of torch 2.6 hangs now and then


if __name__ == "__main__":
    main(*sys.argv[1:])
