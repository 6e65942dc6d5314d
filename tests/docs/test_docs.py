"""The README and each page of docs/ do what they say: their snippets run in order, and their links lead somewhere."""

from __future__ import annotations

import functools
import inspect
import math
import re
import shlex
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import prunesampler
from prunesampler.cli import app as cli
from prunesampler.scores.registry import SCORES
from tests.helpers.attached import EPOCHS, scored
from tests.helpers.ranks import run_script
from tests.helpers.shardfiles import write_shards

ROOT = Path(__file__).parents[2]
README = "../README.md"
PAGES = [*sorted(page.name for page in (ROOT / "docs").glob("*.md")), README]
Names = dict[str, Any]


def text(page: str) -> str:
    return (ROOT / "docs" / page).read_text(encoding="utf-8")


def sections(page: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Title and (language, code) blocks of the part before the first heading of level two, and of each such part."""
    for part in re.split(r"^## ", text(page), flags=re.MULTILINE):
        title = "" if part.startswith("# ") else part.partition("\n")[0]
        yield title, re.findall(r"^```(\w+)\n(.*?)^```$", part, re.DOTALL | re.MULTILINE)


# -- what a reader has already -----------------------------------------------------------------------------------


@functools.cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).div(8).sub(1).reshape(-1, 1, 8, 8), torch.tensor(labels)


def some(rows: Any = slice(1200)) -> TensorDataset:
    images, labels = digits()
    return TensorDataset(images[rows], labels[rows])


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def given(page: str, title: str) -> Names:
    names: Names = {
        "dataset": some(),
        "model": network(),
        "epochs": 4,
        **OWN.get((page, title), OWN.get((page, ""), dict))(),
    }
    names["optimizer"] = optimizer = torch.optim.SGD(names["model"].parameters(), lr=0.1, momentum=0.9)
    rates = optimizer.rates = []  # type: ignore[attr-defined]  # of each step
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    return names


def newcomer() -> Names:
    libraries = {"torch": torch, "DataLoader": DataLoader, "cross_entropy": nn.functional.cross_entropy}
    return {**libraries, "dataset": some(slice(1000)), "epochs": 12}


def soft_labels() -> Names:
    images, labels = digits()
    return {"dataset": TensorDataset(images, nn.functional.one_hot(labels, 10) * 0.9 + 0.01)}


def imbalance() -> Names:
    labels = digits()[1]
    rows = torch.cat([(labels[:1200] == c).nonzero()[:, 0][: 120 - 10 * c] for c in range(10)])
    return {"dataset": some(rows), "test_dataset": some(slice(1200, None))}


def several_labels() -> Names:
    images, labels = digits()
    facts = torch.stack([labels % 2 == 1, labels > 4, labels % 3 == 0], dim=1)
    return {
        "dataset": TensorDataset(images, facts.float()),
        "model": nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3)),
    }


class Segmenter(nn.Module):
    """Returns what the segmentation models of torchvision do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.layers(images)}


def segmentation() -> Names:
    images = digits()[0][:200]
    masks = (images[:, 0] > 0).long()  # ink
    masks[:, 0] = 255
    return {"dataset": TensorDataset(images + 0.3 * torch.randn(images.shape), masks), "model": Segmenter()}


class Boxes(Dataset[Any]):
    """Each image has one digit on a larger ground, and its box."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, row: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        digit, label = digits()[0][row], digits()[1][row]
        left = 4 * (row % 8)
        image = torch.zeros(3, 64, 64)
        image[:, 16:48, left : left + 32] = digit.repeat_interleave(4, 1).repeat_interleave(4, 2)
        boxes = torch.tensor([[left, 16.0, left + 32.0, 48.0]])
        return image, {"boxes": boxes, "labels": label[None] + 1}


def detection() -> Names:
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=8, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    body.out_channels = 8  # type: ignore[assignment]  # as torchvision asks
    model = FasterRCNN(
        body,
        num_classes=11,
        min_size=64,
        max_size=64,
        rpn_anchor_generator=AnchorGenerator(((16, 32),), ((1.0,),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], output_size=3, sampling_ratio=2),
    )
    return {"dataset": Boxes(), "model": model, "epochs": 1}


def with_proxy() -> Names:
    proxy = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    return {"proxy": proxy, "proxy_optimizer": torch.optim.SGD(proxy.parameters(), lr=0.1), "epochs": 2}


class Texts(Dataset[Any]):
    """Of 24 token sequences, each of a class or with a label for each token."""

    def __init__(self, classes: bool) -> None:
        self.classes = classes

    def __len__(self) -> int:
        return 24

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        tokens = torch.arange(row, row + 6) % 20
        labels = torch.tensor(row % 3) if self.classes else tokens
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def language() -> Names:
    from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

    size = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    more = {"intermediate_size": 8, "max_position_embeddings": 8}
    return {
        "dataset": Texts(classes=True),
        "token_dataset": Texts(classes=False),
        "model": BertForSequenceClassification(BertConfig(num_labels=3, **size, **more)),
        "causal_model": LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **size, **more)),
    }


def growing() -> Names:
    old, new = torch.arange(1000), torch.randperm(1200)[:1150]
    names, new_names = ([f"images/{i:04}.png" for i in rows.tolist()] for rows in (old, new))
    return {"dataset": some(old), "names": names, "new_dataset": some(new), "new_names": new_names}


def controls() -> Names:
    def train(loader: Any, model: nn.Module, steps: int) -> float:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rows = []
        while len(rows) < steps:
            for x, y in loader:
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
                optimizer.zero_grad()
                rows.append(x)
                if len(rows) == steps:
                    break
        runs.append(torch.cat(rows))
        return 0.0

    runs: list[torch.Tensor] = []
    return {"new_model": network, "train": train, "_trained": runs}


def gate(names: Names) -> None:
    found = names["found"]
    assert set(found.metrics) == {"kept", "random", "shorter"}
    assert {trial.rows for trial in found.trials} == {350, None}
    assert [trial.share for trial in found.trials[:3]] == [0.5, 1.0, 1.0]
    assert min(map(min, found.metrics.values())) > 0.5
    assert len(list(Path("runs/compare").iterdir())) == 9


def second_run() -> Names:
    """The page's own run, once more."""
    torch.manual_seed(1)
    (_, setup), *_ = sections("files.md")
    names = given("files.md", "")
    for _, code in setup:
        exec(code.replace("runs/a", "runs/b"), names)
    return {}


def measured() -> Names:
    images, labels = digits()
    pixels = images.flatten(1)[:1200]
    centres = torch.stack([pixels[labels[:1200] == each].mean(0) for each in range(10)])
    apart = torch.cdist(pixels, centres)
    own = apart.gather(1, labels[:1200, None])[:, 0]
    margin = apart.scatter(1, labels[:1200, None], torch.inf).min(1).values - own
    table = prunesampler.ScoreTable({"el2n": own, "margin": margin}, labels=labels[:1200])

    def validate(rows: Any) -> float:  # by the nearest mean of a class
        rows = torch.tensor(rows)
        means = torch.stack([pixels[rows][labels[rows] == each].mean(0).nan_to_num(9) for each in range(10)])
        return float((torch.cdist(pixels, means).argmin(1) == labels[:1200]).float().mean())

    return {"table": table, "validate": validate, "features": pixels}


def tar_shards() -> Names:
    write_shards(Path("shards"), [40] * 4)
    return {"model": nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))}


def lightning_module() -> Names:
    from lightning.pytorch import LightningModule

    class Digits(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.net(images)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return {"module": Digits()}


def transformer() -> Names:
    from timm.models.vision_transformer import VisionTransformer

    size = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 12, "num_heads": 2, "num_classes": 10}
    return {"dataset": some(slice(256)), "model": VisionTransformer(**size), "epochs": 2}


def mislabelled() -> Names:
    from PIL import Image
    from torchvision import datasets, transforms

    images, labels = digits()
    for row in range(600):
        label = (labels[row] + (row % 10 == 0)) % 10  # every tenth is in the folder of another digit
        path = Path(f"data/train/{label}/{row}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[row, 0].add(1).mul(127).byte().numpy()).save(path)
    steps = [transforms.Grayscale(), transforms.ToTensor(), transforms.Normalize(0.5, 0.5)]
    return {"dataset": datasets.ImageFolder("data/train", transforms.Compose(steps)), "epochs": 8}


def unseen_digits() -> Names:
    from PIL import Image

    images, labels = digits()
    for row in range(600):
        path = Path(f"data/{'test' if row % 3 == 0 else 'train'}/{labels[row]}/{row}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[row, 0].add(1).mul(127).byte().numpy()).save(path)
    return {"test_dataset": some(slice(1200, None))}


OWN: dict[tuple[str, str], Callable[[], Names]] = {
    (README, ""): newcomer,
    (README, "Tar shards"): tar_shards,
    ("lightning.md", "The one line"): lightning_module,
    ("shards.md", ""): tar_shards,
    ("streaming.md", ""): tar_shards,
    ("label-audit.md", "Find them"): mislabelled,
    ("choosing.md", ""): lambda: {"epochs": 8},
    ("when-not-to-prune.md", "The controls"): controls,
    ("mixup.md", ""): lambda: {"plain_dataset": some()},
    ("mixup.md", "Soft labels without mixing"): soft_labels,
    ("imbalance.md", ""): imbalance,
    ("other-tasks.md", "Multi-label"): several_labels,
    ("other-tasks.md", "Segmentation"): segmentation,
    ("other-tasks.md", "Detection"): detection,
    ("fine-tuning.md", ""): with_proxy,
    ("transformers.md", ""): language,
    ("transformers.md", "Text classification"): language,
    ("transformers.md", "Causal language models"): language,
    ("growing.md", ""): growing,
    ("files.md", "Merge and compare"): second_run,
    ("vit.md", ""): transformer,
    ("several-scores.md", ""): measured,
    ("condensation.md", ""): unseen_digits,
}


# -- what must have come of it -----------------------------------------------------------------------------------


def ended(names: Names, rate: Callable[[int], float], *, pruned: bool = True) -> None:
    full, half = 19, 10  # batches of 1,200 and of 600 rows, 64 at a time
    steps = 2 * full + 2 * half if pruned else 4 * full
    assert len(names["optimizer"].rates) == names["steps"] == names["loader"].pruning.total_steps(4) == steps
    assert names["optimizer"].rates[-1] == pytest.approx(rate(steps), rel=1e-6)
    assert len(names["loader"].pruning.coreset) == 600


def cosine(names: Names, *, pruned: bool = True) -> None:
    ended(names, lambda steps: 0.05 * (1 + math.cos(math.pi * (steps - 1) / steps)), pruned=pruned)
    assert names["optimizer"].param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def stepped(names: Names) -> None:
    ended(names, lambda _: 0.1 * 0.2**3)
    shares = [names["optimizer"].rates.count(pytest.approx(0.1 * 0.2**drops)) / names["steps"] for drops in range(4)]
    assert shares == pytest.approx([0.3, 0.3, 0.2, 0.2], abs=0.02)


def rescored(names: Names) -> None:
    table = names["loader"].pruning.table
    assert table.protocols["el2n"]["kind"] == "rescored"
    assert np.isfinite(table.scores["el2n"]).all()
    assert len(names["loader"].pruning.coreset) == 600


def soft(names: Names) -> None:
    table, coreset = names["loader"].pruning.table, names["loader"].pruning.coreset
    assert set(table.directions) == {"error", "forgetting"}
    assert coreset.selection["options"]["by"] == "error"


def classes(names: Names) -> None:
    table, before = names["table"], names["before"]
    shares = names["kept"] / before  # of the last options, min_per_class=20
    assert (names["kept"] >= 20).all()
    assert shares.max() - shares.min() > 0.05
    even = np.bincount(table.labels[prunesampler.select(table, keep=0.5, class_balanced=True).rows])
    assert np.abs(even / before - 0.5).max() < 0.03


def weighted(names: Names) -> None:
    assert names["loader"].pruning.phase == "pruned"
    with torch.no_grad():
        drawn = torch.cat([y for _ in range(10) for _, y in names["loader"]]).bincount(minlength=10)
    assert drawn.min() > 0.75 * drawn.max()  # of 120 and of 30 rows


def looked_at(names: Names) -> None:
    from tensorboardX.proto.event_pb2 import Event

    (file,) = Path("events").iterdir()
    content, tags = file.read_bytes(), []
    while content:
        length = int.from_bytes(content[:8], "little")  # the length, its checksum, the event, its checksum
        tags += [value.tag for value in Event.FromString(content[12 : 12 + length]).summary.value]
        content = content[16 + length :]
    assert tags.count("pruning/el2n/p50") == tags.count("pruning/cost") == names["epochs"]
    assert names["loader"].pruning.metrics()["cost"] == 3


def worst(names: Names) -> None:
    assert 0.2 < names["accuracy"].min() <= names["accuracy"].mean() < 1


def pruned_by(name: str) -> Callable[[Names], None]:
    def check(names: Names) -> None:
        pruning, rows = names["loader"].pruning, len(names["dataset"])
        assert pruning.phase == "pruned"
        assert len(pruning.coreset) == rows // 2
        assert pruning.coreset.selection["options"]["by"] == name
        table = pruning.table if pruning.table is not None else names["table"]
        assert np.isfinite(table.column(name)).sum() > 0.9 * rows

    return check


def one_line(names: Names) -> None:
    assert names["schedule"].last_epoch == names["steps"] == 10 * 32 + 2 * 16
    (said,) = re.findall(r"^```text\n(.*?)\n```$", text(README), re.DOTALL | re.MULTILINE)
    assert said in names["_log"].messages


def what_comes_out(names: Names) -> None:
    told = dict(re.findall(r"^\| `runs/a/(\w+)\.parquet` \| (.*) \|$", text(README), re.MULTILINE))
    for file in ("scores", "coreset"):
        assert set(pq.read_schema(f"runs/a/{file}.parquet").names) <= set(re.findall(r"`(\w+)`", told[file]))
    assert len(names["subset"]) == 500
    assert len(names["pruned"].pruning.coreset) == 700


def kept(names: Names, rows: int, file: str | None = None) -> None:
    pruning = names["loader"].pruning
    assert pruning.phase == "pruned"
    assert len(pruning.coreset) == rows
    assert file is None or pruning.coreset == prunesampler.Coreset.load(file)


def from_shards(names: Names) -> None:
    for _ in range(3):
        for images, labels in names["loader"]:
            nn.functional.cross_entropy(names["model"](images), torch.as_tensor(labels)).backward()
    assert len(prunesampler.Coreset.load("runs/b/coreset.parquet")) == 80


def by_hand(names: Names) -> None:
    assert set(names["table"].scores) == {"el2n", "el2n_spread", "confidence"}
    assert len(names["sampler"]) == 600


def extended(names: Names) -> None:
    assert SCORES.pop("doubt").direction == "higher"  # for the tests after this one
    assert len(names["coreset"]) == 600
    assert names["coreset"].selection["options"]["by"] == "doubt"
    ranks = np.searchsorted(
        np.sort(names["table"].column("doubt")), names["table"].column("doubt")[names["coreset"].rows]
    )
    assert 200 < ranks.mean() < 1000
    assert len(names["loader"].pruning.coreset) == 480
    assert names["loader"].pruning.coreset.weights.min() >= 1


def carried_over(names: Names) -> None:
    before, after = prunesampler.ScoreTable.load("runs/a/scores.parquet"), names["table"]
    scores = dict(zip(before.keys or [], before.scores["el2n"], strict=True))
    expected = [scores.get(name, float("nan")) for name in names["new_names"]]
    assert after.scores["el2n"].tolist() == pytest.approx(expected, nan_ok=True)
    assert 0 < names["new"].sum() == names["coreset"].selection["unscored"] < 200
    assert set(names["new"].nonzero()[0]) <= set(names["coreset"].rows)
    assert len(names["loader"].pruning.coreset) == round(0.6 * len(names["new_dataset"]))


def read_alike(names: Names) -> None:
    table = prunesampler.ScoreTable.load("runs/a/scores.parquet")
    coreset = prunesampler.Coreset.load("runs/a/coreset.parquet")
    assert names["scores"].el2n.tolist() == table.scores["el2n"].tolist()
    assert set(names["hardest"].row) == set(table.scores["el2n"].argsort()[-20:])
    assert names["forgotten"]["row"].to_list() == table.rows[table.forgetting_events > 0].tolist()
    shares = np.bincount(table.labels[coreset.rows], minlength=10) / np.bincount(table.labels)
    assert names["by_class"].share_kept.tolist() == pytest.approx(shares.tolist())


def told_columns(names: Names) -> None:
    told = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*)$", text("files.md"), re.MULTILINE))))
    found = {*pq.read_schema("runs/a/scores.parquet").names, *pq.read_schema("runs/a/coreset.parquet").names}
    assert found <= told


def own_rows(names: Names) -> None:
    assert len(names["subset"]) == len(names["loader"].pruning.coreset) == 0.95 * len(names["dataset"])


def chosen(names: Names) -> None:
    assert 0 < len(names["table"]) - len(names["coreset"]) < 1200
    kept = {name: prunesampler.Coreset.load(f"{name}.parquet") for name in ("coreset", "random")}
    assert all(len(coreset) == 600 for coreset in kept.values())
    assert kept["coreset"] == prunesampler.select(names["table"], keep=0.5)


def compared(names: Names) -> None:
    assert names["steps"] == 2 * 19 + 2 * 10
    distinct = [len(seen[-600:].unique(dim=0)) for seen in names["_trained"]]
    assert distinct[:2] == [600, 600]
    assert list(map(len, names["_trained"][2:])) == [3 * 1200 + 64, 5 * 600 + 8 * 64]
    assert len(names["_trained"][3][:1200].unique(dim=0)) == len(names["dataset"])  # one half, then the other


def merged(names: Names) -> None:
    table = prunesampler.ScoreTable.load("merged.parquet")
    assert table.protocols["el2n"]["between_runs"] < 0.99  # two runs, not one twice
    runs = [prunesampler.ScoreTable.load(f"runs/{run}/scores.parquet") for run in "ab"]
    assert table.scores["el2n"] == pytest.approx(np.mean([run.scores["el2n"] for run in runs], axis=0))


def pruned_texts(names: Names) -> None:
    pruning = names["callback"].pruning
    assert len(pruning.coreset) == 12
    assert set(pruning.table.scores) >= {pruning.coreset.selection["options"]["by"]}


def told(names: Names) -> None:
    assert len(names["names"]) == 600
    assert names["loader"].pruning.table.presentations.tolist() == [2] * 1200


def by_lightning(names: Names) -> None:
    assert names["trainer"].global_step == names["trainer"].estimated_stepping_batches == 4 * 19
    assert len(names["prune"].pruning.coreset) == 600


def on_one_rank(names: Names) -> None:
    assert len(names["loader"].pruning.coreset) == 600
    assert names["state"]["pruning"]["phase"] == "pruned"
    assert not torch.distributed.is_initialized()


def found_wrong(names: Names) -> None:
    flagged = [int(Path(key).stem) for key in names["issues"].keys]
    assert len(flagged) > 20
    assert np.mean([row % 10 == 0 for row in flagged]) > 0.8
    assert names["issues"].noise_rate.low < 0.1 < names["issues"].noise_rate.high


def acted(names: Names) -> None:
    assert len(names["found"].changed) == 3
    assert len(names["clean"]) == 600 - len(names["issues"])
    assert Path("issues.html").read_text(encoding="utf-8").count("<img") == len(names["issues"])


def two_epochs(names: Names) -> None:
    assert names["checkpoint"]["sparsity"]["epoch"] == names["sparsity"].epoch == 2


def fewer_flops(names: Names) -> None:
    assert names["sparsity"].tokens == 0.7
    assert 0.6 < names["flops"]() / names["dense"] < 0.75


def learned(names: Names) -> None:
    assert names["selector"].learned
    assert len(names["coreset"]) == 60
    assert len(names["quality"]) == 1200


def deduplicated(names: Names) -> None:
    distinct = prunesampler.Coreset.load("distinct.parquet")
    assert distinct.rows.tolist() == names["found"].kept.tolist()
    assert len(distinct) < 1200
    assert set(names["coreset"].rows.tolist()) < set(distinct.rows.tolist())


def condensed(names: Names) -> None:
    accuracies = {each.images: each.mean for each in names["results"] if each.network == "convnet"}
    assert accuracies["condensed"] > 0.5
    assert len(names["results"]) == 8
    assert Path("runs/condensed/images-000030.png").is_file()


CHECKS: dict[tuple[str, str], Callable[[Names], None]] = {
    (README, "One line"): one_line,
    (README, "What comes out"): what_comes_out,
    (README, "Resume"): lambda names: kept(names, 500, "runs/a/coreset.parquet"),
    (README, "Tar shards"): from_shards,
    ("parts.md", "Score and prune"): by_hand,
    ("extending.md", "A policy"): extended,
    ("distributed.md", "The script"): on_one_rank,
    ("accelerate.md", "The one line"): lambda names: kept(names, 600),
    ("lightning.md", "The one line"): by_lightning,
    ("choosing.md", "How much"): chosen,
    ("when-not-to-prune.md", "The controls"): compared,
    ("when-it-pays.md", "The gate"): gate,
    ("looking.md", "Figures while it trains"): looked_at,
    ("files.md", "Merge and compare"): merged,
    ("schedules.md", "Cosine"): cosine,
    ("schedules.md", "OneCycle"): lambda names: ended(names, lambda _: 0.1 / 25 / 1e4),
    ("schedules.md", "Steps"): stepped,
    ("schedules.md", "The same number of steps"): lambda names: cosine(names, pruned=False),
    ("mixup.md", "Mixup in the loop"): rescored,
    ("mixup.md", "CutMix in the loader"): rescored,
    ("mixup.md", "Soft labels without mixing"): soft,
    ("imbalance.md", "What a selection does to the classes"): classes,
    ("imbalance.md", "A sampler with weights"): weighted,
    ("imbalance.md", "The worst class"): worst,
    ("other-tasks.md", "Multi-label"): pruned_by("error"),
    ("other-tasks.md", "Segmentation"): pruned_by("loss"),
    ("other-tasks.md", "Detection"): pruned_by("loss"),
    ("fine-tuning.md", "Score with a finished proxy, then prune from the start"): pruned_by("el2n"),
    ("fine-tuning.md", "Score while the proxy trains"): pruned_by("forgetting"),
    ("rows.md", "The batch says its rows"): lambda names: kept(names, 600),
    ("rows.md", "Samplers, batch samplers and streams"): told,
    ("growing.md", "Carry the scores over"): carried_over,
    ("files.md", ""): told_columns,
    ("files.md", "pandas, polars, DuckDB"): read_alike,
    ("files.md", "Rows of your own choice"): own_rows,
    ("transformers.md", "Text classification"): pruned_texts,
    ("transformers.md", "Causal language models"): pruned_texts,
    ("label-audit.md", "Find them"): found_wrong,
    ("label-audit.md", "Act on them"): acted,
    ("features.md", "Near duplicates"): deduplicated,
    ("several-scores.md", "Learn the weights"): learned,
    ("condensation.md", "What they are worth"): condensed,
    ("vit.md", "Two lines"): two_epochs,
    ("vit.md", "What it saves"): fewer_flops,
}


# -- the tests ---------------------------------------------------------------------------------------------------


# webdataset leaves files for the garbage collector to close.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("page", [page for page in PAGES if page != "ray.md"])  # test_integrations_ray has a cluster
def test_the_snippets_run_in_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "prunesampler")
    names: Names = {"_log": caplog}
    torch.manual_seed(0)
    if page == "distributed.md":
        for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}.items():
            monkeypatch.setenv(name, str(value))  # as torchrun does
    for title, blocks in sections(page):
        names.update(given(page, title))
        for language, code in blocks:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*pin_memory.*no accelerator")
                warnings.filterwarnings("ignore", "len.loader. is", prunesampler.PruneSamplerWarning)
                if page == "lightning.md":  # what Lightning has to say about loggers, workers and short epochs
                    warnings.filterwarnings("ignore", module="lightning")
                    warnings.filterwarnings("ignore", ".*(tensorboardX|does not have many workers|smaller than)")
                if language == "python":
                    exec(compile(code, f"{page}, {title}", "exec"), names)
                elif language == ("bash" if page == README else "sh"):
                    for line in filter(None, code.replace("\\\n", " ").splitlines()):
                        command, *arguments = shlex.split(line, comments=True)
                        assert command == "prunesampler"
                        assert cli.main(arguments) == 0, line
        CHECKS.get((page, title), lambda names: None)(names)


def test_the_script_of_several_processes_runs_in_two(tmp_path: Path) -> None:
    code = [
        "import torch",
        "images = torch.randn(400, 1, 8, 8, generator=torch.Generator().manual_seed(0))",
        "dataset = torch.utils.data.TensorDataset(images, images.flatten(1)[:, :10].argmax(1))",
        "model, epochs = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)), 3",
    ]
    code += [block for _, blocks in sections("distributed.md") for language, block in blocks if language == "python"]
    (tmp_path / "train.py").write_text("\n".join(code))
    assert run_script(2, tmp_path / "train.py") == ["pruned 200\n"] * 2
    assert len(prunesampler.Coreset.load(tmp_path / "runs/a/coreset.parquet")) == 200


@pytest.mark.filterwarnings("ignore")  # mlflow's own
def test_the_recipe_for_mlflow_writes_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    (recipe,) = re.findall(r"^(mlflow\..*?) +#", text("looking.md"), re.MULTILINE)
    loader, _ = scored(epochs=EPOCHS)
    with mlflow.start_run() as run:
        exec(recipe, {"mlflow": mlflow, "loader": loader, "epoch": 7})
    figures = loader.pruning.metrics()
    assert mlflow.get_run(run.info.run_id).data.metrics == pytest.approx(figures)
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "el2n/p50")
    assert [(each.step, each.value) for each in history] == [(7, figures["el2n/p50"])]


@pytest.mark.parametrize("title", ["Mixup in the loop", "CutMix in the loader", "Soft labels without mixing"])
def test_mixed_batches_need_what_the_page_says(title: str) -> None:
    (_, setup), *rest = sections("mixup.md")
    names = given("mixup.md", title)
    for _, code in [*setup, *dict(rest)[title]]:
        with pytest.raises(prunesampler.PruneSamplerError) if "attach" in code else nullcontext():
            exec(re.sub(r'(, rescore=plain_loader|by="error", score_fn=score_fn, )', "", code), names)


def test_what_is_checked_and_given_belongs_to_a_section() -> None:
    known = {(page, title) for page in PAGES for title, _ in sections(page)}
    assert {*CHECKS, *OWN} <= known


@pytest.mark.parametrize("page", PAGES[:-1])
def test_a_page_names_what_it_takes_from_the_reader(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for title, blocks in sections(page):
        code = "\n".join(code for language, code in blocks if language == "python")
        for name in given(page, title):
            if re.search(rf"\b{name}\b", code) and not re.search(rf"^ *{name} = ", code, re.MULTILINE):
                assert f"`{name}`" in text(page), f"{page}, {title}: {name}"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_short(page: str) -> None:
    assert len(text(page).splitlines()) <= (150 if page == README else 95)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", text(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        here = ROOT / "docs" / page
        file = (here.parent / path).resolve() if path else here
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_the_first_page_links_every_other() -> None:
    assert set(re.findall(r"\]\((\w[\w-]*\.md)\)", text("README.md"))) == {*PAGES} - {"README.md", README}


def test_ci_runs_the_test_command_that_is_told() -> None:
    demo, tests = (block.strip() for block in re.findall(r"^```sh\n(.*?)^```$", text(README), re.DOTALL | re.MULTILINE))
    assert "\n" not in demo + tests
    steps = [step.replace(".venv", '"$venv"') for step in tests.split(" && ")]
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert [line for line in ci if line in steps] == steps
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_every_argument_that_is_told_exists() -> None:
    from transformers import Trainer
    from webdataset import WebDataset

    from prunesampler import shards
    from prunesampler.condensation import condense, evaluate
    from prunesampler.integrations.timm_vit import sparsify
    from prunesampler.scores.sequences import sequence_scores

    functions = (
        Trainer.train,
        WebDataset.__init__,
        condense,
        evaluate,
        sequence_scores,
        sparsify,
        shards.build_index,
        shards.keep,
        shards.StreamedShards,
        shards.StreamedShards.sampler,
        prunesampler.attach,
        prunesampler.audit,
        prunesampler.report,
        prunesampler.features,
        prunesampler.ThresholdSamples,
        prunesampler.compare,
        prunesampler.Pruning.follow,
        prunesampler.InfoBatch,
        prunesampler.select,
        prunesampler.combine,
        prunesampler.sweep,
        prunesampler.fit_selector,
        prunesampler.LearnedSelector.select,
        prunesampler.near_duplicates,
        prunesampler.score,
        prunesampler.PrunedSampler,
        prunesampler.ScoreTable,
        prunesampler.Coreset,
        prunesampler.ScoreTable.align,
        prunesampler.ScoreTracker,
        prunesampler.Pruning.load_state_dict,
        DataLoader,
    )
    known = {name for function in functions for name in inspect.signature(function).parameters}
    for page in PAGES:
        told = set(re.findall(r"`(?:[^`\n]*[ (])?([a-z]\w*)=", re.sub(r"```.*?```", "", text(page), flags=re.DOTALL)))
        assert told <= known, (page, told - known)
