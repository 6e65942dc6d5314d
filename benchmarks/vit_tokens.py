"""What fewer tokens and fewer attention keys cost a vision transformer, and what they save, on CIFAR-10.

    python benchmarks/vit_tokens.py --data DIR --out benchmarks/results/vit

A ViT of 12 blocks, patches of 4 × 4 pixels, is trained on some rows for a few epochs, dense and by ``sparsify`` with
the published schedule scaled from its 300 epochs to these. Each arm leaves a JSON file in ``--out``, written when it is
finished; the same command again runs those that are missing and writes the table beside the folder. DIR is as for
``cifar10.py``.

FLOPs are torch's own count (FlopCounterMode) of forward and backward, each step at its own ratios. Seconds of whole
runs depend on what else the machine does, so a last part times a step of each arm at its final ratios in turns, in one
process, and the attention alone with its keys masked beside gathered ones.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import json
import math
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import add_data, circumstances, skip_without_data
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.data import RandomSampler
from torch.utils.flop_counter import FlopCounterMode

from prunesampler.cli.training import Images, Recipe, accuracies, fast_precision, load_cifar10, loader, new_model
from prunesampler.integrations.timm_vit import Sparsity, sparsify

BATCH, RATE, DECAY = 64, 1e-3, 0.05
PUBLISHED_EPOCHS = 300
# The ratios of tokens and of attention keys.
ARMS = {
    "dense": (1.0, 1.0),
    "tokens 0.9, attention 0.1": (0.9, 0.1),
    "tokens 0.9": (0.9, 1.0),
    "tokens 0.7": (0.7, 1.0),
    "dense, shortened": (1.0, 1.0),  # to the FLOPs of tokens 0.7
}
TIMES = "times"


def vit(images: Tensor) -> VisionTransformer:
    """0.6 million parameters, 65 tokens."""
    return VisionTransformer(img_size=32, patch_size=4, embed_dim=64, num_heads=2, depth=12, num_classes=10)


def scaled(model: VisionTransformer, arm: str, epochs: float, **options: Any) -> Sparsity:
    share = epochs / PUBLISHED_EPOCHS
    return sparsify(model, *ARMS[arm], dense_epochs=10 * share, cosine_epochs=100 * share, **options)


def flops(model: VisionTransformer) -> int:
    """Of forward and backward, an image. The count does not see fused attention on a CPU, so here none is fused."""
    plain = copy.deepcopy(model).train()
    for block in plain.blocks:
        block.attn.fused_attn = False
    with FlopCounterMode(display=False) as counter:
        plain(torch.zeros(1, 3, 32, 32)).sum().backward()
    return int(counter.get_total_flops())


class Counter:
    """FLOPs of an image at the ratios of the moment; counted once for each."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], int] = {}

    def __call__(self, model: VisionTransformer, sparsity: Sparsity) -> int:
        left = list(itertools.accumulate([64, *[sparsity.tokens] * 3], lambda n, ratio: math.ceil(n * ratio)))
        key = *left, sparsity.attention < 1  # how many keys a mask allows changes nothing
        if key not in self._known:
            self._known[key] = flops(model)
        return self._known[key]


def total_flops(arm: str, steps: int, epochs: float) -> int:
    model, count = vit(torch.empty(0)), Counter()
    sparsity = scaled(model, arm, epochs)
    total = 0
    for step in range(steps):
        sparsity.set_epoch(step / steps * epochs)
        total += BATCH * count(model, sparsity)
    sparsity.remove()
    return total


def perform(arm: str, data: Path, rows: int, epochs: int) -> dict[str, Any]:
    images, test = load_cifar10(data, rows=rows, quiet=True)
    test = test.subset(slice(min(rows, 5000)))
    recipe = Recipe(vit, BATCH, RATE, DECAY, precision=fast_precision("cpu"))
    full = steps = epochs * (rows // BATCH)
    if arm == "dense, shortened":
        steps = round(full * total_flops("tokens 0.7", full, epochs) / total_flops("dense", full, epochs))
    model = new_model(vit, 0, images)
    sparsity = scaled(model, arm, epochs)
    seconds, loss = train(model, sparsity, images, recipe, steps, epochs)
    accuracy, _ = accuracies(model, test, recipe)
    sparsity.remove()
    sparsity = sparsify(model, *ARMS[arm], dense_epochs=0, cosine_epochs=0, in_eval=True)
    sparse_accuracy, _ = accuracies(model, test, recipe)
    return {
        "arm": arm,
        "tokens": ARMS[arm][0],
        "attention": ARMS[arm][1],
        "rows": rows,
        "epochs": epochs,
        "steps": steps,
        "batch": BATCH,
        "precision": str(recipe.precision),
        "accuracy_all_tokens": accuracy,
        "accuracy_as_trained": sparse_accuracy,
        "last_loss": loss,
        "petaflop": total_flops(arm, steps, epochs * steps / full) / 1e15,
        "petaflop_dense": total_flops("dense", full, epochs) / 1e15,
        "seconds": seconds,
        "test_rows": len(test),
        **circumstances("timm"),
    }


def train(
    model: VisionTransformer, sparsity: Sparsity, images: Images, recipe: Recipe, steps: int, epochs: float
) -> tuple[float, float]:
    """Seconds, and the mean loss of the last 20 steps."""
    optimizer = torch.optim.AdamW(model.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: recipe.schedule(step, steps))
    order = RandomSampler(range(len(images)), generator=torch.Generator().manual_seed(0))
    batches = loader(images.augmented(0), order, BATCH)
    model.train()
    losses: list[float] = []
    began = time.perf_counter()
    while len(losses) < steps:
        for inputs, targets in batches:
            sparsity.set_epoch(len(losses) / steps * epochs)
            losses.append(_step(model, optimizer, inputs, targets, recipe))
            schedule.step()
            if len(losses) % 50 == 0:
                print(f"{len(losses)} of {steps}, {time.perf_counter() - began:.0f} s", file=sys.stderr)
            if len(losses) == steps:
                break
    return time.perf_counter() - began, statistics.mean(losses[-20:])


def _step(
    model: VisionTransformer, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor, recipe: Recipe
) -> float:
    with recipe.autocast(inputs.device):
        logits = model(inputs)
    optimizer.zero_grad(set_to_none=True)
    loss = cross_entropy(logits.float(), targets)
    loss.backward()
    optimizer.step()
    return loss.item()


def times(rounds: int) -> dict[str, Any]:
    """Milliseconds of a step at the final ratios, the arms in turns; and of attention, keys masked or gathered."""
    recipe = Recipe(vit, BATCH, precision=fast_precision("cpu"))
    inputs, targets = torch.randn(BATCH, 3, 32, 32), torch.arange(BATCH) % 10
    steps: dict[str, Callable[[], Any]] = {}
    counts = {}
    for arm in list(ARMS)[:-1]:
        torch.manual_seed(0)
        model = vit(inputs).train()
        sparsify(model, *ARMS[arm], dense_epochs=0, cosine_epochs=0)
        counts[arm] = flops(model)
        optimizer = torch.optim.AdamW(model.parameters(), RATE)
        steps[arm] = functools.partial(_step, model, optimizer, inputs, targets, recipe)
    report: dict[str, Any] = {"rounds": rounds, "step": _in_turns(steps, rounds), "attention": []}
    for arm, count in counts.items():
        report["step"][arm]["gigaflop_an_image"] = count / 1e9
    for batch, heads, tokens, width in ((64, 2, 59, 32), (16, 6, 178, 64)):
        q, k, v = (torch.randn(batch, heads, tokens, width) for _ in range(3))
        top = torch.randn(batch, 1, tokens, tokens).topk(-(-tokens // 10), dim=3).indices
        mask = torch.full((batch, 1, tokens, tokens), -torch.inf).scatter_(3, top, 0.0)
        forms = {
            "all keys": functools.partial(scaled_dot_product_attention, q, k, v),
            "masked": functools.partial(scaled_dot_product_attention, q, k, v, attn_mask=mask),
            "gathered": functools.partial(gathered, q, k, v, top),
        }
        assert torch.allclose(forms["masked"](), forms["gathered"](), atol=1e-5)
        shape = {"batch": batch, "heads": heads, "tokens": tokens, "width": width, "keys": top.shape[3]}
        report["attention"].append({**shape, **_in_turns(forms, rounds)})
    return report | circumstances("timm")


def gathered(q: Tensor, k: Tensor, v: Tensor, top: Tensor) -> Tensor:
    """Attention of each query to keys of its own, (B, 1, N, keys): a tenth of the multiplications."""
    batch, heads, _, width = q.shape
    where = top.flatten(2)[..., None].expand(batch, heads, -1, width)
    keys, values = (each.gather(2, where).unflatten(2, top.shape[2:]) for each in (k, v))
    weights = (keys @ q[..., None]).squeeze(-1).mul(width**-0.5).softmax(-1)
    return (weights[..., None, :] @ values).squeeze(-2)


def _in_turns(arms: dict[str, Callable[[], Any]], rounds: int) -> dict[str, Any]:
    found: dict[str, list[float]] = {arm: [] for arm in arms}
    order = random.Random(0)
    for turn in range(rounds + 2):
        for arm in order.sample(list(arms), len(arms)):
            start = time.perf_counter()
            arms[arm]()
            if turn >= 2:
                found[arm].append(1e3 * (time.perf_counter() - start))
    first = next(iter(arms))
    of = {arm: statistics.median(a / b for a, b in zip(found[arm], found[first], strict=True)) for arm in arms}
    return {arm: {"ms": round(statistics.median(found[arm]), 3), "of_first": round(of[arm], 4)} for arm in arms}


def table(folder: Path) -> list[str]:
    results = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    timed = results.get(TIMES, {})
    lines = [
        "| arm | steps | FLOPs of the run | FLOPs of a step at the end | time of a step at the end "
        "| accuracy, all tokens | accuracy, tokens and keys as trained |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for arm in ARMS:
        if not (found := results.get(_file(arm))):
            continue
        same = arm if arm in timed.get("step", {}) else "dense"
        step = timed.get("step", {}).get(same, {})
        share, duration = "–", "–"
        if step:
            share = f"{step['gigaflop_an_image'] / timed['step']['dense']['gigaflop_an_image']:.2f}"
            duration = f"{step['of_first']:.2f}"
        lines.append(
            f"| {arm} | {found['steps']} | {found['petaflop'] / found['petaflop_dense']:.2f} "
            f"| {share} | {duration} "
            f"| {100 * found['accuracy_all_tokens']:.1f} % | {100 * found['accuracy_as_trained']:.1f} % |"
        )
    if timed:
        lines += [
            "",
            "| attention, forward | all keys | a tenth, masked | a tenth, gathered |",
            "| --- | --- | --- | --- |",
        ]
        for each in timed["attention"]:
            shape = f"{each['batch']} × {each['heads']} × {each['tokens']} × {each['width']}, {each['keys']} keys"
            figures = (f"{each[form]['ms']:.2f} ms" for form in ("all keys", "masked", "gathered"))
            lines.append(f"| {shape} | {' | '.join(figures)} |")
    return lines


def _file(arm: str) -> str:
    return arm.replace(", ", "_").replace(" ", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder; the table is written beside it")
    parser.add_argument("--smoke", action="store_true", help="a few rows for one epoch")
    add_data(parser)
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, TIMES], default=[*ARMS, TIMES], metavar="ARM")
    parser.add_argument("--rows", type=int, default=8_000, help="of the training set, the first ones")
    parser.add_argument("--epochs", type=int, default=4)
    given = parser.parse_args()
    skip_without_data(parser, given)
    torch.set_num_threads(1)
    rows, epochs, rounds = (128, 1, 1) if given.smoke else (given.rows, given.epochs, 30)
    given.out.mkdir(parents=True, exist_ok=True)
    for arm in given.arms:
        file = given.out / f"{_file(arm)}.json"
        if not file.exists():
            found = times(rounds) if arm == TIMES else perform(arm, Path(given.data), rows, epochs)
            scratch = file.with_suffix(".tmp")
            scratch.write_text(json.dumps(found, indent=1) + "\n")
            os.replace(scratch, file)
    lines = table(given.out)
    given.out.with_suffix(".md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
