"""What is refused of other people's loops, before or early in training."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler

import prunesampler as ps
from tests.helpers.frameworks import (
    BATCH,
    OPTIONS,
    Lightning,
    N,
    Plan,
    Transformers,
    WebDataset,
    accelerator,
    timm_loader,
    write_shards,
)
from tests.helpers.training import Leaky, Net


@dataclass(frozen=True)
class Refusal:
    case: str
    packages: tuple[str, ...]
    run: Callable[[], Any]
    message: str
    error: type[Exception] = ps.UnsupportedError

    def __str__(self) -> str:
        return self.case


def attach(loader: Any, model: Any = None, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ps.attach(loader, model or Net(), **(options or OPTIONS))  # type: ignore[arg-type]


def plain(**options: Any) -> Any:
    return DataLoader(Leaky(N), batch_size=BATCH, **{"shuffle": True, **options})


def without_a_process_group() -> None:
    os.environ["WORLD_SIZE"] = "2"
    try:
        attach(plain())
    finally:
        del os.environ["WORLD_SIZE"]


def attached_before_prepare() -> None:
    model = Net()
    loader = attach(plain(), model)
    prepared = accelerator().prepare(loader)
    for _ in range(10):
        for x, y in prepared:
            cross_entropy(model(x), y).backward()


def split_twice() -> None:
    from accelerate.data_loader import prepare_data_loader

    accelerator()
    sampler = DistributedSampler(range(N), num_replicas=2, rank=0)
    attach(prepare_data_loader(plain(shuffle=False, sampler=sampler), num_processes=2, process_index=0))


def uneven() -> None:
    from accelerate.data_loader import prepare_data_loader

    accelerator()
    attach(prepare_data_loader(plain(), num_processes=2, process_index=0, even_batches=False))


def filtered_by_processes() -> None:
    from accelerate.data_loader import prepare_data_loader

    accelerator()
    loader = prepare_data_loader(plain(), num_processes=2, process_index=0)
    attach(loader, policy=ps.ProxyFilter(Net()))


def filtered_shards() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder))
        loader = WebDataset.make_loader(SimpleNamespace(plan=Plan(Path(folder), Path())))  # type: ignore[arg-type]
        attach(loader, policy=ps.ProxyFilter(Net()))


def repeated() -> None:
    from timm.data.distributed_sampler import RepeatAugSampler

    attach(plain(shuffle=False, sampler=RepeatAugSampler(Leaky(N), num_replicas=1, rank=0)))


def lightning(data: Any, **settings: Any) -> None:
    run = Lightning(Plan(Path(), Path()), **settings)
    run.trainer.fit(run.module, data)


def stateful() -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(Leaky(N), batch_size=BATCH)


def streamed() -> None:
    import datasets

    data = datasets.Dataset.from_dict({"x": [[0.0]] * N, "labels": [0] * N}).to_iterable_dataset()
    attach(DataLoader(data, batch_size=BATCH))  # type: ignore[arg-type]


def untracked() -> None:
    import webdataset as wds

    attach(wds.WebLoader(wds.WebDataset("no.tar", shardshuffle=False).batched(BATCH), batch_size=None))


def grouped() -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(FileNotFoundError):
        Transformers(Plan(Path(), Path(folder)), train_sampling_strategy="group_by_length").run()


REFUSALS = [
    Refusal(
        "several processes without a process group", (), without_a_process_group, "torch.distributed is not initialised"
    ),
    Refusal(
        "Accelerate: attached before `prepare`",
        ("accelerate",),
        attached_before_prepare,
        "call attach after the framework has prepared the loader",
        ps.BindingError,
    ),
    Refusal(
        "Accelerate: `prepare` on a loader whose sampler splits rows already",
        ("accelerate",),
        split_twice,
        "Accelerate splits them once more",
    ),
    Refusal(
        "Accelerate: `even_batches` turned off in several processes",
        ("accelerate",),
        uneven,
        "processes have different numbers of batches",
    ),
    Refusal(
        "Accelerate: `ProxyFilter` in several processes",
        ("accelerate",),
        filtered_by_processes,
        "needs batches of another size, which Accelerate splits over its processes",
    ),
    Refusal(
        "Lightning: a loader that saves its own place",
        ("lightning", "torchdata"),
        lambda: lightning(stateful()),
        "give a plain DataLoader, and this callback saves the place",
    ),
    Refusal(
        "Lightning: several train loaders",
        ("lightning",),
        lambda: lightning([plain(), plain()]),
        "there are 2 train loaders, and rows are followed in one only",
    ),
    Refusal(
        "Lightning: `reload_dataloaders_every_n_epochs`",
        ("lightning",),
        lambda: lightning(plain(), reload_dataloaders_every_n_epochs=1),
        "makes a new loader, perhaps of other rows",
    ),
    Refusal(
        "Transformers: batches grouped by length",
        ("transformers",),
        grouped,
        "the sampler LengthGroupedSampler is unknown",
    ),
    Refusal("timm: `num_aug_repeats`", ("timm",), repeated, "the sampler RepeatAugSampler is unknown"),
    Refusal(
        "timm: `use_multi_epochs_loader`",
        ("timm",),
        lambda: attach(timm_loader(40, use_multi_epochs_loader=True)),
        "makes up batches in a way of its own",
    ),
    Refusal("datasets: an `IterableDataset`", ("datasets",), streamed, "has no positions to name samples by"),
    Refusal(
        "WebDataset: without `shards.track`",
        ("webdataset",),
        untracked,
        "a webdataset pipeline under prunesampler.shards.track(pipeline, index)",
    ),
    Refusal(
        "WebDataset: `ProxyFilter`",
        ("webdataset",),
        filtered_shards,
        "needs batches of another size, which a shard pipeline makes itself",
    ),
]
# In the world of several processes, which the other tests share.
DISPATCHED = Refusal(
    "Accelerate: `dispatch_batches` in several processes",
    ("accelerate",),
    lambda: None,
    "one process reads the batches of all, and their rows would not reach the others",
)
