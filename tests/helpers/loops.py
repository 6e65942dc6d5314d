"""An ordinary training loop and what torch.distributed and Accelerate make of it; what each of them writes down.

A run trains to its end and leaves checkpoints on the way; another goes on from one of them. What each was given and
what the model answered is written down in plain Python, by nobody that is tested.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

import prunesampler as ps
from tests.helpers.training import Journal, Leaky, Net

N, BATCH, SCORED, EPOCHS = 41, 4, 2, 4
OPTIONS = {"keep": 0.5, "score_epochs": SCORED, "method": "top"}
ATTACH = "ps.attach(loader, model, **options)"


@dataclass
class Plan:
    """What one process of a run is to do.

    Attributes:
        data: a folder with shards, for those who read them.
        folder: where checkpoints lie, of all processes.
        saves: steps after which to leave one.
        resume: the step to go on from; None begins.
    """

    data: Path
    folder: Path
    saves: tuple[int, ...] = ()
    resume: int | None = None
    rank: int = 0
    world: int = 1

    def checkpoint(self, step: int) -> Path:
        return self.folder / f"step-{step}"


@dataclass
class Record:
    """Epochs of steps of [row, EL2N, right] of one process."""

    epochs: list[list[list[list[float]]]] = field(default_factory=lambda: [[]])
    steps: int = 0

    def write(self, rows: Tensor, logits: Tensor, y: Tensor) -> None:
        journal = Journal()
        journal.write(rows[:, None], logits, y)
        seen = [[row, *map(float, journal.seen[row].pop(0))] for row in journal.epochs[-1]]
        self.epochs[-1].append(seen)
        self.steps += 1

    def end_epoch(self) -> None:
        self.epochs.append([])

    def report(self, pruning: Any) -> dict[str, Any]:
        table = pruning.table
        return {
            "epochs": self.epochs[:EPOCHS],
            "coreset": pruning.coreset.rows.tolist(),
            "el2n": None if table is None else table.scores["el2n"].tolist(),
            "forgetting": None if table is None else table.forgetting_events.tolist(),
        }


class PyTorch:
    """An ordinary loop."""

    name = "PyTorch"
    packages: tuple[str, ...] = ("torch",)
    line = ATTACH
    rows = N
    resumes = "the unread rest of a pruned epoch; a scoring epoch starts again"
    continues = False  # whether a scoring epoch that was cut off goes on
    rest = True  # whether a pruned one does
    full = False  # whether pruned epochs stay as long
    several: str | None = None  # how it fares in several processes; None: see refusals

    def __init__(self, plan: Plan) -> None:
        self.plan, self.record = plan, Record()
        self.model: nn.Module = Net()
        self.optimizer: Any = torch.optim.SGD(self.model.parameters(), lr=0.4)
        self.loader: Any = self.make_loader()
        self.prepare()
        names = {"ps": ps, "loader": self.loader, "model": self.model, "options": OPTIONS}
        self.loader = eval(self.line, names)

    def make_loader(self) -> Any:
        return DataLoader(Leaky(self.rows), batch_size=BATCH, shuffle=True)

    def prepare(self) -> None:
        if self.plan.world > 1:
            self.model = DistributedDataParallel(self.model)

    def read(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs, targets, rows."""
        x, y = batch
        return x, y, x[:, 0].long()

    def set_epoch(self, epoch: int) -> None:
        pass

    def step(self, batch: Any) -> None:
        x, y, rows = self.read(batch)
        logits = self.model(x)
        self.record.write(rows, logits, y)
        self.optimizer.zero_grad()
        cross_entropy(logits, y).backward()
        self.optimizer.step()

    def save(self, path: Path, epoch: int) -> None:
        state = {"model": self.model.state_dict(), "pruning": self.loader.pruning.state_dict(), "epoch": epoch}
        torch.save(state, f"{path}-{self.plan.rank}.pt")

    def load(self, path: Path) -> int:
        state = torch.load(f"{path}-{self.plan.rank}.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.loader.pruning.load_state_dict(state["pruning"])
        return int(state["epoch"])

    def run(self) -> dict[str, Any]:
        first = 0 if self.plan.resume is None else self.load(self.plan.checkpoint(self.plan.resume))
        self.record.epochs = [[] for _ in range(first + 1)]
        for epoch in range(first, EPOCHS):
            self.set_epoch(epoch)
            for batch in self.loader:
                self.step(batch)
                if self.record.steps in self.plan.saves:
                    self.save(self.plan.checkpoint(self.record.steps), epoch)
            self.record.end_epoch()
        return self.record.report(self.loader.pruning)


class Distributed(PyTorch):
    name = "torch.distributed, DDP"
    several = "yes"

    def make_loader(self) -> Any:
        self.sampler = DistributedSampler(range(self.rows), num_replicas=self.plan.world, rank=self.plan.rank)
        return DataLoader(Leaky(self.rows), batch_size=BATCH, sampler=self.sampler)

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)


class Accelerate(PyTorch):
    name = "Accelerate"
    packages = ("accelerate",)
    several = "yes"
    settings: ClassVar[dict[str, Any]] = {}
    accumulation = 1
    batch_size = BATCH

    def make_loader(self) -> Any:
        return DataLoader(Leaky(self.rows), batch_size=self.batch_size, shuffle=True)

    def prepare(self) -> None:
        import accelerate
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        self.accelerator = accelerate.Accelerator(
            cpu=True,
            gradient_accumulation_steps=self.accumulation,
            dataloader_config=accelerate.DataLoaderConfiguration(**self.settings),
        )
        found = self.accelerator.prepare(self.model, self.optimizer, self.loader)
        self.model, self.optimizer, self.loader = found

    def step(self, batch: Any) -> None:
        x, y, rows = self.read(batch)
        with self.accelerator.accumulate(self.model):
            logits = self.model(x)
            self.record.write(rows, logits, y)
            self.accelerator.backward(cross_entropy(logits, y))
            self.optimizer.step()
            self.optimizer.zero_grad()

    def save(self, path: Path, epoch: int) -> None:
        (path.parent / f"{path.name}.epoch").write_text(str(epoch))
        self.accelerator.save_state(str(path))

    def load(self, path: Path) -> int:
        self.accelerator.load_state(str(path))
        return int((path.parent / f"{path.name}.epoch").read_text())

    def run(self) -> dict[str, Any]:
        self.accelerator.register_for_checkpointing(self.loader.pruning)
        return super().run()


class Accumulated(Accelerate):
    name = "Accelerate, gradient accumulation"
    accumulation = 3


class SplitBatches(Accelerate):
    name = "Accelerate, `split_batches`"
    settings: ClassVar[dict[str, Any]] = {"split_batches": True}

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        return BATCH * self.plan.world


class Seedable(Accelerate):
    name = "Accelerate, `use_seedable_sampler`"
    settings: ClassVar[dict[str, Any]] = {"use_seedable_sampler": True}


class Dispatched(Accelerate):
    name = "Accelerate, `dispatch_batches`"
    settings: ClassVar[dict[str, Any]] = {"dispatch_batches": True}
    several = None


class RayTrain(Distributed):
    name = "Ray Train"
    packages = ("ray",)

    def make_loader(self) -> Any:
        return DataLoader(Leaky(self.rows), batch_size=BATCH, shuffle=True)

    def prepare(self) -> None:
        from ray.train.torch import prepare_data_loader, prepare_model

        self.model, self.loader = prepare_model(self.model), prepare_data_loader(self.loader)
        self.sampler = self.loader.sampler

    def set_epoch(self, epoch: int) -> None:
        if self.plan.world > 1:
            super().set_epoch(epoch)
