"""Scores that need the model, in seconds a batch: GraNd beside a plain loop over samples and beside Opacus.

The small CIFAR network, its first weights, one batch. Each arm's values are compared with those of the plain loop
before it is timed. Opacus, where it is installed, gives per-sample gradients from which the norms are taken.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common import circumstances, make_parser, save_report
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from prunesampler.capture.last_layer import LastLayer
from prunesampler.cli.training import small
from prunesampler.scores.gradients import grand, grand_last

LOOP, VMAP = "plain loop over samples", "torch.func.vmap, 8 samples at once"


def norms(gradients: Any) -> Tensor:
    return torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()


def forward(model: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        model(x)


def training_step(model: nn.Module, x: Tensor, y: Tensor) -> None:
    model.zero_grad()
    cross_entropy(model(x), y, reduction="sum").backward()


def plain_loop(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    found = []
    for image, label in zip(x.split(1), y.split(1), strict=True):
        model.zero_grad()
        cross_entropy(model(image), label).backward()
        found.append(norms(p.grad[None] for p in model.parameters() if p.grad is not None))
    return torch.cat(found)


def vmapped(model: nn.Module, x: Tensor, y: Tensor, chunk: int) -> Tensor:
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(torch.func.functional_call(model, parameters, (image[None],)), label[None])

    def norm(image: Tensor, label: Tensor) -> Tensor:
        return norms(g[None] for g in torch.func.grad(loss)(trained, image, label).values())[0]

    return torch.func.vmap(norm, chunk_size=chunk)(x, y)  # type: ignore[no-any-return]


def last_layer(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad(), LastLayer(model) as last:
        logits = model(x)
        layer, features = last.inputs(logits)
        return grand_last(layer, features, logits, y)


def opacus_arms(model: nn.Module) -> dict[str, Callable[..., Tensor]]:
    """Opacus takes neither batch norm nor ReLU in place: both arms are of the network without, as it changes it."""
    from opacus import GradSampleModule
    from opacus.validators import ModuleValidator

    fixed = ModuleValidator.fix(model).eval()
    for layer in fixed.modules():
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    wrapped = GradSampleModule(copy.deepcopy(fixed), loss_reduction="sum").train()  # in eval mode it keeps nothing

    def opacus(_: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        wrapped.zero_grad()
        cross_entropy(wrapped(x), y, reduction="sum").backward()
        return norms(p.grad_sample for p in wrapped.parameters() if p.requires_grad)

    return {
        "Opacus, with group norm": opacus,
        "grand, with group norm": lambda _, x, y: grand(fixed, x, y),
    }


def table(report: dict[str, Any]) -> list[str]:
    seconds = report["seconds"]
    lines = [
        f"The small CIFAR network (width {report['width']}), a batch of {report['batch']}, {report['threads']} "
        f"thread(s); medians of {report['repeats']}. {report['circumstances']['machine']}.",
        "",
        "| | seconds | × the forward | times as fast as the loop |",
        "| --- | --- | --- | --- |",
    ]
    for name, value in seconds.items():
        ratio = f"{seconds[LOOP] / value:.1f}"
        lines.append(f"| {name} | {value:.3f} | {value / seconds['forward']:.2f} | {ratio} |")
    return lines


def main() -> None:
    parser = make_parser(__doc__, table)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    if options.smoke:
        options.batch, options.width, options.repeats = 4, 8, 1
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    x, y = torch.randn(options.batch, 3, 32, 32), torch.randint(10, (options.batch,))
    model = small(x[:64], options.width).eval()
    arms: dict[str, Callable[..., Any]] = {
        "forward": forward,
        "forward and backward of the batch": training_step,
        LOOP: plain_loop,
        "grand": lambda model, x, y: grand(model, x, y),
        "grand_last": last_layer,
        VMAP: functools.partial(vmapped, chunk=8),
    }
    with contextlib.suppress(ModuleNotFoundError):
        arms |= opacus_arms(model)
    times: dict[str, list[float]] = {name: [] for name in arms}
    found = {name: arm(model, x, y) for name, arm in arms.items()}  # warms up
    for name, same in ((LOOP, "grand"), (LOOP, VMAP), ("Opacus, with group norm", "grand, with group norm")):
        if name in found:
            torch.testing.assert_close(found[same].detach(), found[name], rtol=1e-3, atol=1e-4)
    for _ in range(options.repeats):
        for name, arm in arms.items():
            began = time.perf_counter()
            arm(model, x, y)
            times[name].append(time.perf_counter() - began)
    report = {
        "circumstances": circumstances(),
        **{"batch": options.batch, "width": options.width, "repeats": options.repeats, "threads": options.threads},
        "seconds": {name: statistics.median(each) for name, each in times.items()},
        "all_seconds": times,
    }
    lines = table(report)
    print("\n".join(lines))
    save_report(report, options.out, lines)


if __name__ == "__main__":
    main()
