"""Other people's training loops, each with its one line, each run in the same way.

A class here is a row of docs/compatibility.md: a framework is added by adding its class to FRAMEWORKS. A run trains to
its end and leaves checkpoints on the way; another resumes from one of them. What each was given and what the model
answered is recorded in plain Python, by nothing that is tested.
"""

from __future__ import annotations

import gc
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import prunesampler as ps
from tests.helpers.training import CLASSES, Journal, Leaky, Net

N, BATCH, SCORED, EPOCHS = 41, 4, 2, 4
OPTIONS = {"keep": 0.5, "score_epochs": SCORED, "method": "top"}
POLICY = ps.ImportanceSampling(keep=0.5)  # what it draws, and how it weights that, follows from the last losses
ATTACH = "ps.attach(loader, model, **options)"
CALLBACK = "PruningCallback(**options)"


@dataclass
class Plan:
    """What one process of a run is to do.

    Attributes:
        data: a folder with shards, for those who read them.
        folder: where checkpoints lie, of all processes.
        saves: steps after which to leave one.
        resume: the step to go on from; None begins.
        policy: whether it draws every epoch, by POLICY.
    """

    data: Path
    folder: Path
    saves: tuple[int, ...] = ()
    resume: int | None = None
    rank: int = 0
    world: int = 1
    policy: bool = False

    @property
    def options(self) -> dict[str, Any]:
        return {"policy": POLICY} if self.policy else OPTIONS

    def checkpoint(self, step: int) -> Path:
        return self.folder / f"step-{step}"


@dataclass
class Record:
    """Epochs of steps of [row, EL2N, right] of one process; of a run under a policy [row, EL2N, loss, gradient].

    The gradient is the norm of that of the row's logits, which is its EL2N times what its loss is multiplied by.
    """

    policy: bool = False
    epochs: list[list[list[list[float]]]] = field(default_factory=lambda: [[]])
    steps: int = 0
    waiting: Tensor | None = None  # logits of the last step

    def write(self, rows: Tensor, logits: Tensor, y: Tensor) -> None:
        self.settle()
        if self.policy:
            logits.retain_grad()
            self.waiting = logits
            losses = cross_entropy(logits.detach().double(), y, reduction="none").tolist()
        journal = Journal()
        journal.write(rows[:, None], logits, y)
        seen = [[row, *map(float, journal.seen[row].pop(0))] for row in journal.epochs[-1]]
        if self.policy:
            seen = [[row, error, loss] for (row, error, _), loss in zip(seen, losses, strict=True)]
        self.epochs[-1].append(seen)
        self.steps += 1

    def settle(self) -> None:
        """The last step's backward has been."""
        logits, self.waiting = self.waiting, None
        if logits is not None and logits.grad is not None:
            last = next(steps[-1] for steps in reversed(self.epochs) if steps)
            for entry, norm in zip(last, logits.grad.double().norm(dim=1).tolist(), strict=True):
                entry.append(norm)

    def end_epoch(self) -> None:
        self.epochs.append([])

    def report(self, pruning: Any) -> dict[str, Any]:
        self.settle()
        if self.policy:
            return {"epochs": self.epochs[:EPOCHS]}
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
    policies = "yes"  # whether it carries those that draw every epoch
    own_states = True  # whether each process goes on from the state that it saved itself

    def __init__(self, plan: Plan) -> None:
        self.plan, self.record = plan, Record(plan.policy)
        self.model: nn.Module = Net()
        self.optimizer: Any = torch.optim.SGD(self.model.parameters(), lr=0.4)
        self.loader: Any = self.make_loader()
        self.prepare()
        names = {"ps": ps, "loader": self.loader, "model": self.model, "options": plan.options}
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


def accelerator(accumulation: int = 1, **settings: Any) -> Any:
    import accelerate
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    config = accelerate.DataLoaderConfiguration(**settings)
    return accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulation, dataloader_config=config)


class Accelerate(PyTorch):
    name = "Accelerate"
    packages = ("accelerate",)
    several = "yes"
    policies = "yes; several processes that resume lose the scores of the epoch that was cut off"
    own_states = False
    settings: ClassVar[dict[str, Any]] = {}
    accumulation = 1
    batch_size = BATCH

    def make_loader(self) -> Any:
        return DataLoader(Leaky(self.rows), batch_size=self.batch_size, shuffle=True)

    def prepare(self) -> None:
        self.accelerator = accelerator(self.accumulation, **self.settings)
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
    policies = "yes"


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


# -- loaders and datasets of other libraries, in the ordinary loop ---------------------------------------------------


class Stateful(PyTorch):
    name = "torchdata `StatefulDataLoader`"
    packages = ("torchdata",)
    resumes = "inside any epoch, by the loader's own state"
    continues = True
    several = "yes"

    def make_loader(self) -> Any:
        from torchdata.stateful_dataloader import StatefulDataLoader

        options: dict[str, Any] = {"shuffle": True, "generator": torch.Generator().manual_seed(5)}
        if self.plan.world > 1:
            self.sampler = ps.PrunedSampler(self.rows, num_replicas=self.plan.world, rank=self.plan.rank)
            options = {"sampler": self.sampler}
        return StatefulDataLoader(Leaky(self.rows), batch_size=BATCH, **options)

    def set_epoch(self, epoch: int) -> None:
        if self.plan.world > 1:
            self.sampler.set_epoch(epoch)

    def save(self, path: Path, epoch: int) -> None:
        super().save(path, epoch)
        torch.save(self.loader.state_dict(), f"{path}-{self.plan.rank}.loader")

    def load(self, path: Path) -> int:
        epoch = super().load(path)
        self.loader.load_state_dict(torch.load(f"{path}-{self.plan.rank}.loader", weights_only=False))
        return epoch


class HuggingFace(Distributed):
    name = '`datasets.Dataset.set_format("torch")`'
    packages = ("datasets",)

    def make_loader(self) -> Any:
        import datasets

        plain = Leaky(self.rows)
        data = datasets.Dataset.from_dict({"x": plain.x.numpy(), "labels": plain.targets.numpy()})
        data.set_format("torch")
        loader = super().make_loader()
        return DataLoader(data, batch_size=BATCH, sampler=loader.sampler)  # type: ignore[arg-type]

    def read(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        return batch["x"], batch["labels"], batch["x"][:, 0].long()


class Pictures(Dataset[Any]):
    """Tiny images whose first pixel is the row."""

    def __init__(self, n: int) -> None:
        generator = np.random.default_rng(0)
        self.images = generator.integers(0, 256, (n, 3, 2, 2), dtype=np.uint8)
        self.images[:, 0, 0, 0] = np.arange(n)
        self.targets = self.images[:, :, 1, 1].argmax(axis=1)
        self.transform: Any = None  # timm sets it

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        return self.images[i], int(self.targets[i])


class OnPictures(Net):
    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat([images[:, :1, 0, 0], images[:, :, 1, 1]], dim=1))  # type: ignore[no-any-return]


def timm_loader(rows: int, **options: Any) -> Any:
    from timm.data import create_loader

    settings = {"batch_size": BATCH, "is_training": True, "no_aug": True, "num_workers": 0, "persistent_workers": False}
    return create_loader(Pictures(rows), input_size=(3, 2, 2), device=torch.device("cpu"), **settings, **options)


class Timm(PyTorch):
    name = "timm `create_loader`, with its prefetcher"
    packages = ("timm",)
    rows = 40  # it drops what does not fill a batch
    several = "yes"

    def make_loader(self) -> Any:
        loader = timm_loader(self.rows, distributed=self.plan.world > 1)
        self.sampler = loader.sampler
        return loader

    def prepare(self) -> None:
        self.model = OnPictures()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.4)
        super().prepare()

    def set_epoch(self, epoch: int) -> None:
        if self.plan.world > 1:
            self.sampler.set_epoch(epoch)

    def read(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        images, y = batch
        return images, y, (images[:, 0, 0, 0] * 0.229 * 255 + 0.485 * 255).round().long()


SHARDS = [10, 10, 10, 10]


def write_shards(folder: Path) -> None:
    import webdataset as wds

    data, row = Leaky(sum(SHARDS)), 0
    for number, size in enumerate(SHARDS):
        with wds.TarWriter(str(folder / f"{number:03d}.tar")) as writer:
            for _ in range(size):
                x, y = data[row]
                writer.write({"__key__": f"s{row}", "x.bin": x.numpy().tobytes(), "cls": int(y)})
                row += 1


def as_tensors(sample: Any) -> Any:
    return torch.frombuffer(bytearray(sample[0]), dtype=torch.float32), torch.as_tensor(int(sample[1]))


class WebDataset(PyTorch):
    name = "WebDataset, under `shards.track(pipeline, index)`"
    packages = ("webdataset",)
    rows = sum(SHARDS)
    resumes = "at the beginning of the epoch that was cut off"
    rest = False
    several = "yes, where its shards give all ranks as many batches"

    def make_loader(self) -> Any:
        import webdataset as wds

        from prunesampler import shards

        urls = [str(self.plan.data / f"{number:03d}.tar") for number in range(len(SHARDS))]
        split = {"nodesplitter": wds.split_by_node} if self.plan.world > 1 else {}
        pipeline = wds.WebDataset(urls, shardshuffle=False, **split).shuffle(8, initial=8)
        pipeline = pipeline.decode().to_tuple("x.bin", "cls").map(as_tensors).batched(BATCH)
        pipeline = shards.track(pipeline, shards.build_index(urls, progress=False))
        return wds.WebLoader(pipeline, batch_size=None, num_workers=0)


def of_sample(sample: Any) -> Any:
    return as_tensors((sample["x.bin"], sample["cls"]))


class StreamedShards(Distributed):
    name = "Tar shards, `shards.StreamedShards`"
    packages = ("webdataset",)
    rows = sum(SHARDS)

    def make_loader(self) -> Any:
        from prunesampler import shards

        urls = [str(self.plan.data / f"{number:03d}.tar") for number in range(len(SHARDS))]
        dataset = shards.StreamedShards(shards.build_index(urls, progress=False), None, of_sample, shuffle_block=2)
        self.sampler: Any = dataset.sampler(num_replicas=self.plan.world, rank=self.plan.rank)
        return DataLoader(dataset, batch_size=BATCH, sampler=self.sampler)


# -- trainers whose loop is their own ---------------------------------------------------------------------------------


class Lightning:
    name = "Lightning `Trainer`"
    packages = ("lightning",)
    line = CALLBACK
    rows = N
    resumes = "inside any epoch, by `ckpt_path`"
    continues = rest = True
    full = False
    several: str | None = "yes"
    policies = "yes"
    own_states = True

    def __init__(self, plan: Plan, **settings: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import lightning.pytorch as pl

            from prunesampler.integrations.lightning import PruningCallback
        record = self.record = Record(plan.policy)

        class Module(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = Net()

            def forward(self, x: Tensor) -> Any:
                return self.net(x)

            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                x, y = batch
                logits = self(x)
                while len(record.epochs) <= self.current_epoch:
                    record.end_epoch()
                record.write(x[:, 0].long(), logits, y)
                return cross_entropy(logits, y)

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.4)

        class Save(pl.Callback):
            def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
                if record.steps in plan.saves:
                    trainer.save_checkpoint(plan.checkpoint(record.steps))

        self.plan = plan
        self.callback = eval(self.line, {"PruningCallback": PruningCallback, "options": plan.options})
        self.module = Module()
        self.trainer = pl.Trainer(
            callbacks=[self.callback, Save()],
            max_epochs=EPOCHS,
            accelerator="cpu",
            devices=plan.world,
            strategy="ddp" if plan.world > 1 else "auto",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings,
        )

    def run(self) -> dict[str, Any]:
        path = None if self.plan.resume is None else self.plan.checkpoint(self.plan.resume)
        data = DataLoader(Leaky(self.rows), batch_size=BATCH, shuffle=True)
        more = {} if path is None else {"ckpt_path": path, "weights_only": True}
        self.trainer.fit(self.module, data, **more)
        return self.record.report(self.callback.pruning)


class Texts(Dataset[Any]):
    """Rows of tokens whose first is the row."""

    def __init__(self, n: int) -> None:
        self.tokens = torch.randint(n, n + 20, (n, 6), generator=torch.Generator().manual_seed(0))
        self.tokens[:, 0] = torch.arange(n)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> dict[str, Any]:
        tokens = self.tokens[i]
        return {"input_ids": tokens, "labels": int(tokens[1:].sum()) % CLASSES}


class Transformers:
    name = "Transformers `Trainer`"
    packages = ("transformers",)
    line = CALLBACK
    rows = N
    resumes = "inside any epoch, by `resume_from_checkpoint`"
    continues = rest = True
    full = True
    several: str | None = "yes"
    policies = "yes, with as many steps an epoch"
    own_states = True

    def __init__(self, plan: Plan, **settings: Any) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        import transformers

        from prunesampler.integrations.transformers import PruningCallback

        accelerator()  # forgets what an earlier test has set
        record = self.record = Record(plan.policy)

        class Save(transformers.TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                control.should_save = record.steps in plan.saves

            def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                record.end_epoch()

        def forward(module: Any, args: Any, given: dict[str, Any], output: Any) -> None:
            if module.training:
                record.write(given["input_ids"][:, 0], output.logits, given["labels"])

        torch.manual_seed(1)
        size = {"vocab_size": self.rows + 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.BertConfig(**size, intermediate_size=16, num_labels=CLASSES, initializer_range=0.4)  # type: ignore[arg-type]
        model = transformers.BertForSequenceClassification(config)
        model.register_forward_hook(forward, with_kwargs=True)
        self.plan = plan
        self.callback = eval(self.line, {"PruningCallback": PruningCallback, "options": plan.options})
        self.trainer = transformers.Trainer(
            model,
            transformers.TrainingArguments(
                str(plan.folder),
                per_device_train_batch_size=BATCH,
                num_train_epochs=EPOCHS,
                learning_rate=0.02,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                ddp_backend="gloo" if plan.world > 1 else None,
                disable_tqdm=True,
                dataloader_pin_memory=False,
                **settings,
            ),
            train_dataset=Texts(self.rows),
            callbacks=[self.callback, Save()],
        )

    def run(self) -> dict[str, Any]:
        steps = -(-self.rows // (BATCH * self.plan.world))
        first = 0 if self.plan.resume is None else self.plan.resume // steps
        self.record.epochs = [[] for _ in range(first + 1)]
        path = None if self.plan.resume is None else str(self.plan.folder / f"checkpoint-{self.plan.resume}")
        self.trainer.train(resume_from_checkpoint=path)
        return self.record.report(self.callback.pruning)


# -- all of them ------------------------------------------------------------------------------------------------------

FRAMEWORKS: list[Any] = [
    PyTorch,
    Distributed,
    Accelerate,
    Accumulated,
    SplitBatches,
    Seedable,
    Dispatched,
    Lightning,
    Transformers,
    RayTrain,
    Stateful,
    Timm,
    HuggingFace,
    WebDataset,
    StreamedShards,
]
BY_NAME = {framework.__name__: framework for framework in FRAMEWORKS}


def marks(framework: Any, world: int) -> tuple[int, int]:
    """Steps inside the second scoring epoch and inside the first pruned one."""
    batches = framework.rows // (BATCH * world) if framework is Timm else -(-framework.rows // (BATCH * world))
    return batches + 2, SCORED * batches + 1


def mark(framework: Any, world: int) -> int:
    """A step inside the second epoch that a policy draws, after one that it scores."""
    full = marks(framework, world)[0] - 2
    drawn = 20 // (BATCH * world) if framework is Timm else -(-20 // (BATCH * world))
    # No checkpoint holds gradients that wait for more.
    inside = framework.accumulation if framework is Accumulated and world == 1 else 1
    return full + (full if framework.full else drawn) + inside


def train(name: str, data: Path, folder: Path, rank: int = 0, world: int = 1) -> list[dict[str, Any]]:
    """A whole run, and those that go on from its two checkpoints; the same under a policy, from one checkpoint."""
    framework, reports = BY_NAME[name], []
    saves = marks(framework, world)
    plans: list[dict[str, Any]] = [{"saves": saves}, *({"resume": step} for step in saves)]
    plans += [{"saves": (mark(framework, world),)}, {"resume": mark(framework, world)}]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what each framework finds worth saying of a small run
        for number, steps in enumerate(plans):
            torch.manual_seed(3)
            policy = number > len(saves)
            plan = Plan(data, folder / name / ("policy" * policy), **steps, rank=rank, world=world, policy=policy)
            plan.folder.mkdir(parents=True, exist_ok=True)
            reports.append(framework(plan).run())
    return reports


def train_all(rank: int, world: int, port: int, data: str, folder: str, names: list[str]) -> dict[str, Any]:
    """Each framework in one of several processes, as torchrun would have started it."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    environment = {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}
    found: dict[str, Any] = {}
    for name in names:
        os.environ.update(environment)  # Lightning takes some of it away
        try:
            if BY_NAME[name].several is None:
                BY_NAME[name](Plan(Path(data), Path(folder), rank=rank, world=world))
                found[name] = "nothing was refused"
            else:
                found[name] = train(name, Path(data), Path(folder), rank, world)
        except ps.PruneSamplerError as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def train_on_ray(name: str, data: Path, folder: Path, world: int) -> list[list[dict[str, Any]]]:
    """What :func:`train` reports in each of several workers of Ray Train."""
    from ray.train import RunConfig, ScalingConfig, get_context
    from ray.train.torch import TorchTrainer

    def work() -> None:
        rank = get_context().get_world_rank()
        torch.save(train(name, data, folder, rank, world), folder / f"{rank}.pt")

    scaling, storage = ScalingConfig(num_workers=world), RunConfig(storage_path=str(folder / "ray"))
    TorchTrainer(work, scaling_config=scaling, run_config=storage).fit()
    gc.collect()  # handles of actors, which no process that is forked later can let go
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]
