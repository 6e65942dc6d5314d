"""Curvature of each sample's loss in its input: by how much a small step changes the gradient (Garg and Roy 2023)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prunesampler._random import mix
from prunesampler.errors import UnsupportedError, check_int, check_number
from prunesampler.scores.batch import Batch, kept_bytes, loss_sum, memory_for

_STEP = 1e-3


def curvature(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    *,
    step: float = _STEP,
    logits_fn: Callable[[Any], Tensor] | None = None,
    memory: int | None = None,
) -> Tensor:
    """‖∇ₓL(x + h·z) − ∇ₓL(x)‖ in the direction of the gradient's signs, z = sign(∇ₓL) / ‖sign(∇ₓL)‖ (SLo-Curves).

    Args:
        model: in eval mode.
        inputs: what it is called with: a tuple of arguments, a dict of keywords, or one argument. x is all floats in
            it whose first axis is the batch's.
        targets: (B,) class indices in [0, C), beside the logits.
        step: by how much each input value moves: h = step · √(number of them).
        logits_fn: model output → (B, C) logits; by default the output is taken for them.
        memory: bytes for activations; by default half of what is free on a GPU, and 1 GiB on a CPU.

    Returns:
        (B,) float32, at least 0, higher is harder; coresets by curvature keep the lowest. It does not depend on the
        other samples of the batch, as that of a mean loss does.

    Raises:
        UnsupportedError: no input is a float, or logits or targets of another form.

    >>> model = nn.Linear(1, 2, bias=False).eval()
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
    >>> curvature(model, torch.zeros(1, 1), torch.tensor([0])).div(1e-3).round(decimals=2)
    tensor([1.])
    """
    check_number("step", step, 0, above=True)

    def signs(gradient: Tensor) -> list[Tensor]:
        sign = gradient.sign()
        return [sign * (gradient.shape[1] ** 0.5 / sign.norm(dim=1, keepdim=True).clamp(min=1))]

    return _mean_change(model, inputs, targets, signs, step, logits_fn, memory)


def curvature_rademacher(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    *,
    step: float = _STEP,
    directions: int = 10,
    seed: int = 0,
    logits_fn: Callable[[Any], Tensor] | None = None,
    memory: int | None = None,
) -> Tensor:
    """Mean over directions of random signs v of ‖∇ₓL(x + step·v) − ∇ₓL(x)‖; as :func:`curvature` otherwise.

    The directions follow from ``seed`` alone and are the same for all samples, so that a score depends neither on the
    order of the data nor on the batch. It takes ``directions`` + 1 backwards where :func:`curvature` takes two.

    >>> model = nn.Linear(1, 2, bias=False).eval()
    >>> _ = model.weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
    >>> curvature_rademacher(model, torch.zeros(1, 1), torch.tensor([0])).div(1e-3).round(decimals=2)
    tensor([1.])
    """
    check_number("step", step, 0, above=True)
    check_int("directions", directions, 1)

    def random_signs(gradient: Tensor) -> list[Tensor]:
        found = []
        for number in range(directions):
            generator = torch.Generator().manual_seed(mix(seed, number) >> 1)
            signs = torch.randint(2, gradient.shape[1:], generator=generator) * 2 - 1
            found.append(signs.to(gradient).expand_as(gradient))
        return found

    return _mean_change(model, inputs, targets, random_signs, step, logits_fn, memory)


def _mean_change(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    directions: Callable[[Tensor], list[Tensor]],
    step: float,
    logits_fn: Callable[[Any], Tensor] | None,
    memory: int | None,
) -> Tensor:
    memory = memory_for(targets.device, memory)
    batch = Batch(model, inputs, targets, logits_fn)
    moved = [place for place, axis in enumerate(batch.axes) if axis == 0 and batch.leaves[place].is_floating_point()]
    if not moved:
        raise UnsupportedError("curvature is that of the loss in the inputs, none of which is a float")

    def gradient(part: Batch, values: Tensor) -> Tensor:
        """(b, d) gradient at (b, d) values of the inputs that move."""
        values = values.detach().requires_grad_()
        leaves, start = list(part.leaves), 0
        for place in moved:
            leaf = part.leaves[place]
            end = start + leaf[0].numel()
            leaves[place] = values[:, start:end].reshape(leaf.shape).to(leaf.dtype)
            start = end
        return torch.autograd.grad(loss_sum(part.logits(leaves), part.targets), values)[0]

    def given(part: Batch) -> Tensor:
        return torch.cat([part.leaves[place].detach().flatten(1) for place in moved], 1)

    def changes(part: Batch) -> Tensor:
        values = given(part)
        here = gradient(part, values)
        steps = [(gradient(part, values + step * way) - here).norm(dim=1) for way in directions(here)]
        return torch.stack(steps).mean(0).float()

    with torch.enable_grad():
        with kept_bytes(model) as kept:
            gradient(batch[:1], given(batch[:1]))
        parts = batch.split(max(1, memory // (3 * sum(kept.values()) or 1)))
        return torch.cat([changes(part) for part in parts])
