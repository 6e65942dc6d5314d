"""What attach adds to a training step: while it scores, and on the kept rows.

    python benchmarks/step_overhead.py --out benchmarks/results/step.json
    python benchmarks/step_overhead.py --device cuda --minutes 0.5 --out benchmarks/results/step-cuda.json
    python benchmarks/step_overhead.py --table benchmarks/results/step.json

All arms train the same network in one process, each through a loader of its own. They take turns, in an order drawn
anew each time: on a CPU step by step, on a GPU, which must not be waited for at every step, in blocks. A round is 64
steps of each, which hold all that comes at every so many steps. Besides scoring and pruned steps, ``weights`` are those
of a coreset with weights, and ``policy`` those of a policy that scores and weights in every epoch. On a GPU the network
is also compiled, and captured as CUDA graphs; hooks stay outside of both. A round's time over that of the loop without
attach is one ratio; the median counts, with a bootstrap interval. The loop without attach runs a second time as an arm
of its own: its ratio shows the noise. On a GPU host synchronisations, kernels and copies are counted from a trace, and
the host synchronisations again by torch's own debug mode; on a CPU operators. The same command again adds rounds to
those in ``--out``, and other settings beside them.
"""

from __future__ import annotations

import json
import random
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from cifar10_recipes import resnet18
from common import circumstances, make_parser, save_report, trace_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import DataLoader, Dataset

import prunesampler
from prunesampler.cli.training import Residual, convolution, small
from prunesampler.errors import PruneSamplerWarning
from prunesampler.training.policies.policy import Policy, Probabilities

ROUND = 64  # steps, a multiple of the batches that the tracker scores at a time
BASE, AGAIN = "without", "without, again"
ATTACHED = ("scoring", "pruned", "weights", "policy")
WAITS = {"cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cuStreamSynchronize"}


@dataclass(frozen=True)
class Setting:
    """A network, how it is trained, and the dataset that its loader reads: so many rows, of ``images`` images."""

    network: str
    batch: int
    side: int = 32
    classes: int = 10
    rows: int = 50_000
    images: int = 2048
    bfloat16: bool = True
    workers: int = 0  # with none the images lie on the device
    mode: str = "eager"  # or "compiled", or "graphed"


def _modes(settings: dict[str, Setting]) -> dict[str, Setting]:
    """The same, then as CUDA graphs and compiled, which takes longest to begin."""
    more = {f"{name}, {mode}": replace(each, mode=mode) for mode in MODES for name, each in settings.items()}
    return settings | more


MODES = ("graphed", "compiled")
SETTINGS = {
    "cpu": {
        "small network, 64": Setting("small", 64, bfloat16=False),
        "ResNet-18, 32": Setting("resnet18", 32),
    },
    "cuda": _modes(
        {
            "ResNet-18, 512": Setting("resnet18", 512),
            "ResNet-18, 128": Setting("resnet18", 128),
            "ResNet-50, 128 × 224 px": Setting("resnet50", 128, side=224, classes=1000, rows=1_281_167, images=512),
        }
    )
    | {"ResNet-18, 512, 4 workers": Setting("resnet18", 512, workers=4)},
}
SMOKE = {"smoke": Setting("tiny", 8, side=8, rows=256, images=64)}


class Bottleneck(Residual):
    """1 × 1, 3 × 3 and 1 × 1 convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, width: int, out: int, stride: int = 1) -> None:
        super().__init__(width, out, stride)
        inner = out // 4
        self.body = nn.Sequential(
            *(nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(inplace=True)),
            *(*convolution(inner, inner, stride), nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out)),
        )


def resnet50(classes: int) -> nn.Module:
    stem = (nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
    blocks, width = [], 64
    for out, count in ((256, 3), (512, 4), (1024, 6), (2048, 3)):
        for number in range(count):
            blocks.append(Bottleneck(width, out, 2 if number == 0 and out > 256 else 1))
            width = out
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


def _network(setting: Setting, images: Tensor) -> nn.Module:
    if setting.network == "tiny":
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * setting.side**2, setting.classes))
    if setting.network == "small":
        return small(images.permute(0, 3, 1, 2))
    return resnet18(images) if setting.network == "resnet18" else resnet50(setting.classes)


class _Called(nn.Module):
    """The network as one arm calls it: a hook on it is that arm's own."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(inputs)
        return logits


class _Rows(Dataset[Any]):
    """A dataset whose images, (n, side, side, 3), come again and again; a batch is read at once."""

    def __init__(self, images: Tensor, targets: Tensor, rows: int) -> None:
        self._images, self._targets, self._rows = images, targets, rows

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> Any:
        images, targets = self.__getitems__([row])
        return images[0], targets[0]

    def __getitems__(self, rows: list[int]) -> Any:
        where = torch.tensor(rows) % len(self._images)
        if self._images.is_cuda:
            where = where.pin_memory().to(self._images.device, non_blocking=True)
        return self._images.index_select(0, where).permute(0, 3, 1, 2), self._targets.index_select(0, where)


class Loop:
    """One setting's training, in as many arms as are asked for."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        torch.manual_seed(0)
        self.setting, self.device = setting, device
        images = torch.randn(setting.images, setting.side, setting.side, 3)
        self.network = _network(setting, images).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if device.type == "cuda":
            images = images.bfloat16()
        self.images, self.targets = images, torch.arange(setting.images) % setting.classes
        if not setting.workers:
            self.images, self.targets = self.images.to(device), self.targets.to(device)
        if setting.mode == "compiled":
            self.network = torch.compile(self.network)
        if setting.mode == "graphed":
            sample = torch.zeros_like(self.images[: setting.batch], device=device).permute(0, 3, 1, 2)
            with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):  # a cache outlives its graph
                self.network = torch.cuda.make_graphed_callables(self.network, (sample,))
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9)

    def loader(self, rows: int) -> DataLoader[Any]:
        workers = self.setting.workers
        return DataLoader(
            _Rows(self.images, self.targets, rows),
            batch_size=self.setting.batch,
            shuffle=True,
            drop_last=True,
            collate_fn=_as_it_is,
            num_workers=workers,
            pin_memory=workers > 0,
            persistent_workers=workers > 0,
        )

    def step(self, model: nn.Module, batch: Any) -> Tensor:
        inputs, targets = (part.to(self.device, non_blocking=True) for part in batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.setting.bfloat16):
            logits: Tensor = model(inputs)
        loss = cross_entropy(logits.float(), targets)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return logits

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _as_it_is(batch: Any) -> Any:
    return batch


@dataclass(frozen=True)
class EveryOther(Policy):
    """From the first epoch on as InfoBatch from its second: scores are kept, half of the rows come half as often."""

    reads: ClassVar[tuple[str, ...]] = ("loss",)  # type: ignore[misc]

    def draw(self, epoch: int, table: Any, rows: Any, seed: int, last: Any = None) -> Probabilities:
        return Probabilities(np.where(rows % 2, 0.5, 1.0), self.num_draws(len(rows), epoch))

    def num_draws(self, eligible: int, epoch: int) -> int:
        return eligible // 4 * 3


class Arm:
    def __init__(self, loop: Loop, attached: dict[str, Any] | None) -> None:
        self.loop, self.model, self.steps = loop, _Called(loop.network), 0
        self.loader: Any = loop.loader(loop.setting.rows)
        if attached is not None:
            self.loader = prunesampler.attach(self.loader, self.model, **attached)
        self._batches = self._endless()

    def _endless(self) -> Iterator[Any]:
        while True:
            yield from self.loader

    def run(self, steps: int) -> float:
        """Seconds that they take."""
        self.loop.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            self.loop.step(self.model, next(self._batches))
        self.loop.synchronize()
        self.steps += steps
        return time.perf_counter() - start


def measure(
    setting: Setting, device: torch.device, seconds: float, steps: int, times: dict[str, list[float]]
) -> dict[str, Any]:
    """Rounds of all arms for so long, three at the least, after those of earlier times."""
    loop = Loop(setting, device)
    check(loop)
    arms = _arms(loop, steps)
    earlier = len(times.setdefault(BASE, []))
    orders, until = random.Random(earlier), time.monotonic() + seconds
    # Without a device to wait for, arms can take turns after every step.
    turn = steps if device.type == "cuda" else 1
    while time.monotonic() < until or len(times[BASE]) < earlier + 3:
        spent = dict.fromkeys(arms, 0.0)
        for _ in range(steps // turn):
            for name in orders.sample(list(arms), len(arms)):
                spent[name] += arms[name].run(turn)
        for name in arms:
            times.setdefault(name, []).append(round(1e3 * spent[name] / steps, 4))
    step = statistics.median(times[BASE])
    end = _epoch_end(arms["scoring"])
    # The profiler slows what comes after it, and an epoch that ends within a trace is no step.
    counts = {name: traced(arm, steps) | warned(arm, steps) for name, arm in _arms(loop, steps).items()}
    return {
        "setting": asdict(setting),
        "rounds": len(times[BASE]),
        "steps_a_round": steps,
        "ms_a_step": round(step, 4),
        "arms": {name: beside(times[name], times[BASE]) | {"counts": counts[name]} for name in arms},
        "epoch_end_ms": round(end, 2),
        "epoch_end_of_epoch": end / (step * (setting.rows // setting.batch)),
        "rounds_ms_a_step": times,
    }


def _arms(loop: Loop, steps: int) -> dict[str, Arm]:
    """All arms, warmed up."""
    rows = loop.setting.rows
    half = np.arange(0, rows, 2)
    weights = np.where(np.arange(len(half)) % 2, 1.5, 0.5).astype(np.float32)
    made: dict[str, dict[str, Any] | None] = {
        BASE: None,
        AGAIN: None,
        "scoring": {"keep": 0.5, "score_epochs": 10**6},
        "pruned": {"coreset": prunesampler.Coreset(half, num_rows=rows)},
        "weights": {"coreset": prunesampler.Coreset(half, num_rows=rows, weights=weights)},
        "policy": {"policy": EveryOther()},
    }
    arms = {name: Arm(loop, attached) for name, attached in made.items()}
    for arm in arms.values():
        arm.run(steps if loop.device.type == "cuda" else 2)
    return arms


def check(loop: Loop) -> None:
    """What a pass credits is the definition of EL2N on that pass's own logits."""
    rows = 4 * loop.setting.batch
    model = _Called(loop.network)
    loader = prunesampler.attach(loop.loader(rows), model, keep=None, score_epochs=1)
    wanted = []
    for batch in loader:
        logits = loop.step(model, batch).detach().double().cpu()
        wanted.append((logits.softmax(1) - one_hot(batch[1].cpu(), logits.shape[1])).norm(dim=1))
    loader.pruning.finish()
    table = loader.pruning.table
    loader.pruning.detach()
    assert table is not None
    assert np.allclose(np.sort(table.scores["el2n"]), torch.cat(wanted).sort().values.numpy(), rtol=1e-4, atol=1e-6)


def _epoch_end(arm: Arm) -> float:
    """Milliseconds of merging what an epoch has seen; every step taken must be in it."""
    tracker = arm.loader.pruning.tracker
    times = []
    for _ in range(3):
        arm.loop.synchronize()
        start = time.perf_counter()
        tracker.end_epoch()
        times.append(time.perf_counter() - start)
    assert tracker.table().presentations.sum() == arm.steps * arm.loop.setting.batch
    return 1e3 * statistics.median(times)


def beside(of: list[float], base: list[float]) -> dict[str, Any]:
    """The median ratio with its bootstrap interval of 95 %, and the median difference."""
    ratios = np.array(of) / np.array(base)
    drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), (2.5, 97.5))
    return {
        "ratio": round(float(np.median(ratios)), 5),
        "interval": [round(float(low), 5), round(float(high), 5)],
        "more_us": round(float(np.median(np.array(of) - np.array(base)) * 1e3), 1),
    }


def traced(arm: Arm, steps: int) -> dict[str, float]:
    """Counts a step, from a trace of so many."""
    return counted(trace_of(lambda: arm.run(steps)), steps)


def counted(events: list[dict[str, Any]], steps: int) -> dict[str, float]:
    """What a trace of so many steps holds, a step."""
    kinds = Counter(event.get("cat") for event in events)
    called = [event for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    return {
        "operators": kinds["cpu_op"] / steps,
        "kernels": kinds["kernel"] / steps,
        "copies": (kinds["gpu_memcpy"] + kinds["gpu_memset"]) / steps,
        "host_syncs": sum(event["name"] in WAITS for event in called) / steps,
        # From pageable memory a larger copy waits for the device without being called a synchronisation.
        "longest_copy_call_us": max((e.get("dur", 0) for e in called if e["name"] == "cudaMemcpyAsync"), default=0),
    }


def warned(arm: Arm, steps: int) -> dict[str, float]:
    """Host synchronisations a step, as torch's debug mode sees them."""
    if arm.loop.device.type != "cuda":
        return {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            arm.run(steps)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return {"warned_syncs": sum("called a synchronizing" in str(each.message) for each in caught) / steps}


def table(report: dict[str, Any]) -> list[str]:
    names = (*ATTACHED, AGAIN)
    lines = [
        f"| setting | a step, ms | {' | '.join(f'{name} ÷ without' for name in ATTACHED)} | without ÷ without "
        "| scoring, more a step, µs | end of an epoch, % of it | rounds |",
        "| --- | ---: |" + " --- |" * len(names) + " ---: |" * 3,
    ]
    for name, found in report.items():
        arms = [found["arms"].get(each) for each in names]
        ratios = [
            f"{arm['ratio']:.4f} ({arm['interval'][0]:.4f} … {arm['interval'][1]:.4f})" if arm else "–" for arm in arms
        ]
        lines.append(
            f"| {name} | {found['ms_a_step']:.2f} | {' | '.join(ratios)} | {found['arms']['scoring']['more_us']:.0f} "
            f"| {100 * found['epoch_end_of_epoch']:.3f} | {found['rounds']} |"
        )
    counted = [key for key in ("host_syncs", "warned_syncs", "kernels", "copies", "operators") if _counts(report, key)]
    lines += [
        "",
        f"| setting | arm | {' | '.join(key.replace('_', ' ') + ' a step' for key in counted)} |",
        "| --- | --- |" + " ---: |" * len(counted),
    ]
    for name, found in report.items():
        base = found["arms"][BASE]["counts"]
        lines.append(f"| {name} | {BASE} | {' | '.join(f'{base[key]:.2f}' for key in counted)} |")
        for arm in ATTACHED:
            if arm in found["arms"]:
                counts = found["arms"][arm]["counts"]
                more = " | ".join(f"{counts[key] - base[key]:+.2f}" for key in counted)
                lines.append(f"| {name} | {arm}, more | {more} |")
    return lines


def _counts(report: dict[str, Any], key: str) -> bool:
    cuda = any("warned_syncs" in found["arms"][BASE]["counts"] for found in report.values())
    return cuda or key == "operators"


def main() -> None:
    parser = make_parser(__doc__, table, smoke="a tiny network, few steps")
    parser.add_argument("--device", choices=SETTINGS, default="cpu")
    parser.add_argument("--settings", nargs="+", help="by default all of the device")
    parser.add_argument("--minutes", type=float, default=4.0, help="of each setting")
    given = parser.parse_args()
    settings = SMOKE if given.smoke else SETTINGS[given.device]
    wanted: list[str] = given.settings or list(settings)
    if unknown := set(wanted) - set(settings):
        parser.error(f"--settings: {', '.join(sorted(unknown))} is none of {', '.join(settings)}")
    device = torch.device(given.device)
    torch.backends.cudnn.benchmark = True
    warnings.simplefilter("ignore", PruneSamplerWarning)
    report = json.loads(given.out.read_text()) if given.out and given.out.exists() else {}
    for name in wanted:
        times = report.get(name, {}).get("rounds_ms_a_step", {})
        seconds, steps = (0.0, 2) if given.smoke else (60 * given.minutes, ROUND)
        report[name] = circumstances() | measure(settings[name], device, seconds, steps, times)
        save_report(report, given.out, table(report))
    print("\n".join(table(report)))


if __name__ == "__main__":
    main()
