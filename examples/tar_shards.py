"""Tar shards: make some, index them, train on them, and write the kept samples into new ones."""

from __future__ import annotations

from pathlib import Path

import torch
import webdataset as wds
from sklearn.datasets import load_digits
from torch import nn

import prunesampler as ps
from prunesampler import shards

FOLDER = Path("runs/tar_shards")
FOLDER.mkdir(parents=True)
urls = [str(FOLDER / f"{number:06d}.tar") for number in range(4)]
images, labels = load_digits(return_X_y=True)
for number, url in enumerate(urls):
    with wds.TarWriter(url) as writer:
        for row in range(number * 400, (number + 1) * 400):
            writer.write({"__key__": f"{row:06d}", "npy": images[row].astype("float32") / 16, "cls": int(labels[row])})

index = shards.build_index(urls, progress=False)  # each sample gets a row
index.save(FOLDER / "index.parquet")

torch.manual_seed(0)
pipeline = wds.WebDataset(urls, shardshuffle=4).shuffle(500).decode().to_tuple("npy", "cls").batched(64)
pipeline = shards.track(pipeline, index)  # rows travel with the samples
loader = wds.WebLoader(pipeline, batch_size=None, num_workers=0)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
loader = ps.attach(loader, model, keep=0.5, score_epochs=3, save_dir=FOLDER / "run")
for epoch in range(6):
    rows = 0
    for x, y in loader:
        loss = nn.functional.cross_entropy(model(torch.as_tensor(x)), torch.as_tensor(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rows += len(x)
    print(f"epoch {epoch + 1}: {rows} samples")

shards.repack(index, loader.pruning.coreset, str(FOLDER / "kept/{shard:06d}.tar"))
print(f"the kept samples are in {', '.join(map(str, sorted(FOLDER.glob('kept/*.tar'))))}")
