"""What dynamic policies are worth: each beside full data at equal real cost, on CIFAR-10 at 16 × 16 pixels.

    python benchmarks/policies.py --data DIR --out runs/policies --setting short
    python benchmarks/policies.py --table runs/policies --out benchmarks/results/policies

A forward of a row costs 1 and a backward 2; what a proxy does counts by its operations beside the network's. Every arm
is given the cost ``--costs`` times that of full data at the setting's length, its schedule fits that, and the seconds
stand beside it. Each arm leaves a JSON file when it is finished; the same command again runs those that are missing.
With ``--peer`` InfoBatch also runs as its authors publish it: their sampler, loss and options from their snapshot.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import re
import statistics
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import add_data, circumstances, skip_without_data
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torch.utils.flop_counter import FlopCounterMode

import prunesampler as ps
from prunesampler.cli.training import (
    Images,
    Recipe,
    accuracies,
    fast_precision,
    load_cifar10,
    loader,
    new_model,
    small,
    train,
)


@dataclass(frozen=True)
class Setting:
    """How long full data is trained at cost 1, and by what network.

    Attributes:
        noise: share of the training labels that are wrong; "pairs" takes a class for the one that looks like it.
    """

    epochs: int
    width: int
    augmented: bool = True
    noise: float = 0.0
    pairs: bool = False


SETTINGS = {
    "short": Setting(10, 24),
    "long": Setting(60, 24, augmented=False),
    "noise-20": Setting(12, 24, noise=0.2),
    "noise-40": Setting(12, 24, noise=0.4),
    "pairs-20": Setting(12, 24, noise=0.2, pairs=True),
    "pairs-40": Setting(12, 24, noise=0.4, pairs=True),
}
BATCH, RATE = 256, 0.2
ALIKE = {0: 2, 2: 0, 1: 9, 9: 1, 3: 5, 5: 3, 4: 7, 7: 4, 6: 8, 8: 6}  # plane and bird, car and truck, cat and dog, …


@dataclass(frozen=True)
class Arm:
    """One training run."""

    setting: str
    name: str
    cost: float
    seed: int

    @property
    def file(self) -> str:
        name = re.sub("[^A-Za-z0-9.]+", "-", self.name)
        return f"{self.setting}-{name}-{self.cost:g}-{self.seed}.json"


def epochs_at(cost: float, epochs: int, share: float, anneal: float = 0.125) -> int:
    """Epochs of a policy whose first and last ones are on all rows and the others on a share, at so much cost."""
    return max(2, round((cost * epochs - 1) / ((1 - anneal) * share + anneal)) + 1)


Policies = dict[str, Callable[[Setting, float], Any]]
POLICIES: Policies = {
    "RandomSubset": lambda setting, cost: ps.RandomSubset(0.5),
    "InfoBatch": lambda setting, cost: ps.InfoBatch(epochs=epochs_at(cost, setting.epochs, 0.7)),
    "InfoBatch, budget 0.7": lambda setting, cost: ps.InfoBatch(
        epochs=epochs_at(cost, setting.epochs, 0.7), budget=0.7
    ),
    "SeTa": lambda setting, cost: ps.SeTa(epochs=epochs_at(cost, setting.epochs, 0.65)),
    "OrderDP": lambda setting, cost: ps.OrderDP(),
    "ImportanceSampling": lambda setting, cost: ps.ImportanceSampling(0.5),
    "PruneOnce": lambda setting, cost: ps.PruneOnce(ps.Selection(0.5), score_epochs=max(1, setting.epochs // 5)),
}
SHARES: dict[str, Any] = {  # of each fetched batch, in the order of the epochs
    "0.9": lambda epochs: 0.9,
    "0.75": lambda epochs: 0.75,
    "0.5": lambda epochs: 0.5,
    "0.9 to 0.6": lambda epochs: [*np.linspace(0.9, 0.6, epochs).round(3).tolist()],
    "0.6 to 0.9": lambda epochs: [*np.linspace(0.6, 0.9, epochs).round(3).tolist()],
}
EVERY = 4
PEER = "InfoBatch, its authors' code"
RETRAINED = "keep=clean, retrained"  # half of the cost is for a run that is audited, half for a new model
NOISY: Policies = {
    "InfoBatch": POLICIES["InfoBatch"],
    "keep=clean": lambda setting, cost: ps.PruneOnce(
        ps.Selection("clean"), score_epochs=round(cost * setting.epochs) // 2
    ),
    "SmallLoss": lambda setting, cost: ps.SmallLoss(1 - setting.noise, score_epochs=max(1, setting.epochs // 4)),
    "PruneOnce without the hardest": lambda setting, cost: ps.PruneOnce(
        ps.Selection(1 - setting.noise, method="bottom"), score_epochs=max(1, setting.epochs // 4)
    ),
}


def policies(setting: Setting) -> Policies:
    return NOISY if setting.noise else POLICIES


def operations(model: nn.Module, example: Tensor) -> int:
    """Of one forward of a sample."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(example[None])
    return int(counter.get_total_flops())


def proxy_filter(shares: str, setting: Setting, cost: float, example: Tensor, model: nn.Module) -> tuple[Any, float]:
    """The policy, and what it adds to the cost of a fetched row, which is 1 where it is trained on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        proxy = ps.tiny_proxy(example, 10, width=16)
    policy = ps.ProxyFilter(proxy, keep=SHARES[shares](round(setting.epochs * cost * 1.3)), every=EVERY)
    return policy, operations(proxy, example) / operations(model, example) * (1 + 2 / EVERY) / 3


def shrunk(images: Images) -> Images:
    """At half the height and width."""
    pixels = images.padded.permute(0, 3, 1, 2)[:, :, 4:-4, 4:-4].float()
    return Images.of(avg_pool2d(pixels, 2).round().byte(), images.targets)


def wrong_labels(targets: Tensor, setting: Setting, seed: int) -> Tensor:
    """The targets, a share of them wrong."""
    rng, found = np.random.default_rng([seed, 7]), targets.numpy().copy()
    rows = rng.permutation(len(found))[: round(setting.noise * len(found))]
    if setting.pairs:
        found[rows] = np.vectorize(ALIKE.get)(found[rows])
    else:
        found[rows] = (found[rows] + rng.integers(1, 10, len(rows))) % 10
    return torch.from_numpy(found)


def found_clean(images: Images, recipe: Recipe, epochs: int, seed: int) -> Tensor:
    """Rows that an ordinary run on all of them, audited, takes for rightly labelled."""
    shown, model = images.augmented(seed), new_model(recipe.network, seed, images)
    sampler = RandomSampler(shown, generator=torch.Generator().manual_seed(seed))
    batches = ps.attach(loader(shown, sampler, BATCH), model, keep=None, score_epochs=epochs, seed=seed)
    train(model, batches, recipe, epochs * (len(images) // BATCH))
    batches.pruning.finish()
    return torch.tensor(ps.select(batches.pruning.table, keep="clean").rows)


def planned(cost: float, policy: Any, proxy: float, per_epoch: int) -> tuple[int, float]:
    """How many steps so much buys, in units of a step without a policy, and what they cost."""
    if not proxy:
        return round(cost), round(cost)
    steps, spent, epoch = 0, 0.0, 0
    while True:
        share = policy.batch_share(epoch)
        step, count = 1 + proxy / share, int(per_epoch * share)
        if spent + count * step >= cost:
            last = round((cost - spent) / step)
            return steps + last, spent + last * step
        steps, spent, epoch = steps + count, spent + count * step, epoch + 1


class OneByOne(Dataset[Any]):
    """Images without ``__getitems__``, which the peer's wrapper would pass by."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> Any:
        return self.images[row]


def published_infobatch(peer: Path, images: Images, epochs: int) -> tuple[Any, Callable[[Tensor, Tensor], Tensor]]:
    """The authors' dataset in a loader as in their example, and their loss."""
    sys.path.insert(0, str(peer))
    dataset = importlib.import_module("infobatch").InfoBatch(OneByOne(images), epochs)
    return DataLoader(dataset, BATCH, sampler=dataset.sampler), lambda logits, targets: dataset.update(
        cross_entropy(logits, targets, reduction="none")
    )


def perform(arm: Arm, images: Images, test: Images, peer: Path | None = None) -> dict[str, Any]:
    """Train one arm."""
    setting = SETTINGS[arm.setting]
    recipe = Recipe(lambda sample: small(sample, setting.width), BATCH, RATE, precision=fast_precision("cpu"))
    given = Images(images.padded, wrong_labels(images.targets, setting, arm.seed), images.mean, images.std)
    right, full = given.targets == images.targets, setting.epochs * (len(images) // BATCH)
    scored, kept, began = 0, torch.arange(len(given)), time.perf_counter()
    if arm.name == "clean rows":
        kept = right.nonzero()[:, 0]
    elif arm.name == RETRAINED:
        epochs = round(arm.cost * setting.epochs) // 2
        kept, scored = found_clean(given, recipe, epochs, arm.seed), epochs * (len(images) // BATCH)
    if len(kept) < len(given):
        given = given.subset(kept)
    shown = given.augmented(arm.seed) if setting.augmented else given
    batches = loader(shown, RandomSampler(shown, generator=torch.Generator().manual_seed(arm.seed)), BATCH)
    model, loss = new_model(recipe.network, arm.seed, given), cross_entropy
    policy, proxy = None, 0.0
    if arm.name in policies(setting):
        policy = policies(setting)[arm.name](setting, arm.cost)
    elif arm.name.startswith("ProxyFilter "):
        shares = arm.name.removeprefix("ProxyFilter ")
        policy, proxy = proxy_filter(shares, setting, arm.cost, shown[0][0], model)
    elif arm.name == PEER:
        assert peer is not None
        batches, loss = published_infobatch(peer, shown, epochs_at(arm.cost, setting.epochs, 0.7))
    if policy is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ps.PruneSamplerWarning)
            batches = ps.attach(batches, model, policy=policy, seed=arm.seed)
    steps, spent = planned(arm.cost * full - scored, policy, proxy, len(images) // BATCH)
    rows = scored * BATCH

    def counted() -> Iterable[Any]:
        nonlocal rows
        for batch in batches:
            rows += len(batch[1])
            yield batch

    class Passes:
        def __iter__(self) -> Any:
            return counted()

    train(model, Passes(), recipe, steps, loss=loss)
    seconds = time.perf_counter() - began
    _, per_class = accuracies(model, test, recipe)
    seen, _ = accuracies(model, given.subset(slice(0, 5000)), recipe)
    if isinstance(policy, ps.PruneOnce) and batches.pruning.coreset is not None:
        kept = torch.tensor(batches.pruning.coreset.rows)
    return {
        "arm": asdict(arm),
        "setting": asdict(setting),
        "accuracy": float(np.mean(per_class)),
        "worst_class": min(per_class),
        "training_accuracy": seen,
        "kept": len(kept),
        "wrong_kept": 1 - float(right[kept].float().mean()),
        "steps": scored + steps,
        "rows": rows,
        "cost": (scored + spent) / full,
        "proxy": proxy,
        "seconds": seconds,
        **circumstances("numpy"),
    }


def table(folder: Path) -> list[str]:
    """A table for each setting, arms beside full data at the same cost."""
    found: dict[str, dict[tuple[str, float], list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(folder.glob("*.json")):
        result = json.loads(file.read_text())
        arm = result["arm"]
        found[arm["setting"]][arm["name"], arm["cost"]].append(result)
    lines: list[str] = []
    for setting, arms in found.items():
        costs = sorted({cost for _, cost in arms}, reverse=True)
        head = "| arm | " + " | ".join(f"cost {cost:g}" for cost in costs) + " | worst class | training | seconds |"
        lines += [f"**{setting}**: {json.dumps(next(iter(arms.values()))[0]['setting'])}", ""]
        lines += [head, "| --- |" + " ---: |" * (len(costs) + 3)]
        for name in dict.fromkeys(name for name, _ in arms):
            runs = [arms.get((name, cost), []) for cost in costs]
            first = next(found for found in runs if found)
            cells = [_shown([run["accuracy"] for run in each]) for each in runs]
            cells += [_shown([run[key] for run in first]) for key in ("worst_class", "training_accuracy")]
            cells.append(f"{statistics.median(run['seconds'] for run in first):.0f}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return lines[:-1]


def _shown(values: list[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{spread} ({len(values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data(parser)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--setting", choices=SETTINGS, default="short")
    parser.add_argument("--arms", nargs="+")
    parser.add_argument("--peer", type=Path, help="folder of InfoBatch's snapshot (NUS-HPC-AI-Lab/InfoBatch)")
    parser.add_argument("--costs", type=float, nargs="+", default=[1.0, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--hours", type=float, default=12.0, help="no arm begins after them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", type=Path, help="only write the tables of a folder of results")
    given = parser.parse_args()
    if given.table is not None:
        given.out.with_suffix(".md").write_text("\n".join(table(given.table)) + "\n")
        return
    skip_without_data(parser, given)
    torch.set_num_threads(given.threads)
    given.out.mkdir(parents=True, exist_ok=True)
    images, test = map(shrunk, load_cifar10(Path(given.data), quiet=True))
    setting, began = SETTINGS[given.setting], time.monotonic()
    names = given.arms or ["full", *policies(setting), *(f"ProxyFilter {shares}" for shares in SHARES)]
    if setting.noise and not given.arms:
        names = ["full", "clean rows", *policies(setting), RETRAINED]
    names += [PEER] if given.peer else []
    for seed, cost, name in itertools.product(given.seeds, given.costs, names):
        arm = Arm(given.setting, name, cost, seed)
        if (given.out / arm.file).exists():
            continue
        if time.monotonic() - began > 3600 * given.hours:
            print(f"left out for want of time: {arm.file}")
            continue
        done = perform(arm, images, test, given.peer)
        for folder, shown in ((given.data, "DIR"), (given.peer, "PEER")):
            done["command"] = done["command"].replace(str(folder), shown)
        scratch = given.out / f"{arm.file}.tmp"
        scratch.write_text(json.dumps(done, indent=1) + "\n")
        os.replace(scratch, given.out / arm.file)
        print(f"{arm.file}: {100 * done['accuracy']:.2f} %, {done['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
