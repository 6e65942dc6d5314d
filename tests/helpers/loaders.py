"""Loaders and datasets of other libraries, in the ordinary loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import prunesampler as ps
from tests.helpers.loops import BATCH, Distributed, PyTorch
from tests.helpers.training import Leaky, Net


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


class Timm(PyTorch):
    name = "timm `create_loader`, with its prefetcher"
    packages = ("timm",)
    rows = 40  # it drops what does not fill a batch
    several = "yes"

    def make_loader(self) -> Any:
        from timm.data import create_loader

        loader = create_loader(
            Pictures(self.rows),
            input_size=(3, 2, 2),
            batch_size=BATCH,
            is_training=True,
            no_aug=True,
            num_workers=0,
            persistent_workers=False,
            device=torch.device("cpu"),
            distributed=self.plan.world > 1,
        )
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
    return torch.frombuffer(bytearray(sample[0]), dtype=torch.float32), torch.as_tensor(sample[1])


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
