"""A training run on several ranks, and the oracle of what all of them saw together."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import prunesampler as ps
from tests.helpers.training import Journal, Leaky, Net, Trainer, lookahead

Presentations = list[tuple[int, float, bool]]


class Diary(Journal):
    """A journal that keeps each epoch's presentations apart: (row, EL2N, correct)."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Presentations] = [[]]

    def write(self, x: Tensor, logits: Tensor, y: Tensor) -> None:
        super().write(x, logits, y)
        self.log[-1] += [(row, *self.seen[row][-1]) for row in x[:, 0].long().tolist()]

    def end_epoch(self) -> None:
        super().end_epoch()
        self.log.append([])


def together(epochs: Sequence[Sequence[Presentations]]) -> Journal:
    """What all ranks saw, by epoch and rank: of a row that several saw in one epoch, the lowest rank's counts."""
    journal = Journal()
    for ranks in epochs:
        owner: dict[int, int] = {}
        for rank, presentations in enumerate(ranks):
            for row, error, right in presentations:
                if owner.setdefault(row, rank) == rank:
                    journal.seen[row].append((error, right))
    return journal


class Run:
    """One rank of a run whose epochs are numbered by ``set_epoch``.

    ``wrap`` is "ddp", "fsdp" or "" for ranks that never meet in a step; ``own`` gives the loader a PrunedSampler
    instead of a DistributedSampler.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        *,
        rows: int,
        batch: int,
        wrap: str = "ddp",
        own: bool = False,
        ahead: bool = False,
        shuffle: bool = True,
        split_drops: bool = False,
        loader_drops: bool = False,
        **options: Any,
    ) -> None:
        warnings.simplefilter("ignore", ps.PruneSamplerWarning)
        self.net = Net()
        self.model: nn.Module = self.net
        if wrap == "ddp":
            self.model = DistributedDataParallel(self.net)
        elif wrap == "fsdp":
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh("cpu", (world_size,))
            for module in (self.net.body, self.net):
                fully_shard(module, mesh=mesh)
        split: dict[str, Any] = {"num_replicas": world_size, "rank": rank, "drop_last": split_drops}
        self.sampler: Any
        if own:
            self.sampler = ps.PrunedSampler(rows, num_replicas="auto", seed=2, drop_last=split_drops, shuffle=shuffle)
        else:
            self.sampler = DistributedSampler(range(rows), seed=2, shuffle=shuffle, **split)
        plain = DataLoader(Leaky(rows), batch_size=batch, sampler=self.sampler, drop_last=loader_drops)
        self.loader: Any = ps.attach(plain, self.model, **options)
        self.diary = Diary()
        self.trainer = Trainer(self.model, self.diary)
        self.ahead = ahead

    def epoch(self, number: int, skip: int = 0, after: Callable[[int], None] | None = None) -> None:
        """One epoch but for its first ``skip`` batches; ``after(done)`` is called after each of the others."""
        self.sampler.set_epoch(number)
        self.model.train()
        for at, batch in enumerate(lookahead(self.loader) if self.ahead else self.loader):
            if at >= skip:
                self.trainer.step(batch)
                if after is not None:
                    after(at + 1)
        self.diary.end_epoch()

    def found(self) -> dict[str, Any]:
        coreset, table = self.loader.pruning.coreset, self.loader.pruning.table
        columns: dict[str, Any] = {}
        if table is not None:
            columns = {name: torch.from_numpy(values.copy()) for name, values in table.scores.items()}
            for name in ("forgetting_events", "presentations", "learned"):
                if getattr(table, name) is not None:
                    columns[name] = torch.from_numpy(getattr(table, name).copy())
        return {
            "phase": self.loader.pruning.phase,
            "log": [[list(seen) for seen in epoch] for epoch in self.diary.log if epoch],
            "batches": len(self.loader),
            "coreset": None if coreset is None else torch.from_numpy(coreset.rows.copy()),
            "table": columns or None,
        }


def rows_of_epochs(
    rank: int, world_size: int, rows: int, batch: int, epochs: int, options: dict[str, Any]
) -> list[list[int]]:
    """What one rank of several reads in each epoch.

    The model is the same on every rank: a function of the epoch, so that rows are learned and forgotten.
    """
    model, sampler = Net(), DistributedSampler(range(rows))  # type: ignore[arg-type]
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.PruneSamplerWarning)
        loader = ps.attach(DataLoader(Leaky(rows), batch_size=batch, sampler=sampler), model, **options)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        model.head.bias.data = torch.tensor([0.0, epoch % 2, epoch % 3])
        found.append([])
        for x, y in loader:
            found[-1] += x[:, 0].long().tolist()
            nn.functional.cross_entropy(model(x), y).backward()
    return found
