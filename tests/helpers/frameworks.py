"""Other people's training loops, each with its one line, each run in the same way.

A class here is a row of docs/compatibility.md: a framework is added by adding its class to FRAMEWORKS.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch

import prunesampler as ps
from tests.helpers.loaders import HuggingFace, Stateful, Timm, WebDataset
from tests.helpers.loops import (
    BATCH,
    SCORED,
    Accelerate,
    Accumulated,
    Dispatched,
    Distributed,
    Plan,
    PyTorch,
    RayTrain,
    Seedable,
    SplitBatches,
)
from tests.helpers.trainers import Lightning, Transformers

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
]
BY_NAME = {framework.__name__: framework for framework in FRAMEWORKS}


def marks(framework: Any, world: int) -> tuple[int, int]:
    """Steps inside the second scoring epoch and inside the first pruned one."""
    batches = framework.rows // (BATCH * world) if framework is Timm else -(-framework.rows // (BATCH * world))
    return batches + 2, SCORED * batches + 1


def train(name: str, data: Path, folder: Path, rank: int = 0, world: int = 1) -> list[dict[str, Any]]:
    """A whole run, and those that go on from its two checkpoints."""
    framework, reports = BY_NAME[name], []
    saves = marks(framework, world)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what each framework finds worth saying of a small run
        for resume in (None, *saves):
            torch.manual_seed(3)
            plan = Plan(data, folder / name, () if resume else saves, resume, rank, world)
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
    return [torch.load(folder / f"{rank}.pt") for rank in range(world)]
