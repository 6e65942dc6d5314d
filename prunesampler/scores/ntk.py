"""The empirical neural tangent kernel of a few samples, and how fast it turns (Paul et al. 2021, section 5.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunesampler.errors import ArgumentError, UnsupportedError
from prunesampler.scores.batch import Batch, memory_for


def ntk(
    model: nn.Module,
    inputs: Any,
    count: int,
    *,
    logits_fn: Callable[[Any], Tensor] | None = None,
    memory: int | None = None,
) -> Tensor:
    """The kernel K = J Jᵀ of the logits' Jacobian J in all parameters that train.

    Args:
        model: in eval mode, one that ``torch.func.vmap`` takes.
        inputs: what it is called with, for ``count`` samples: a tuple of arguments, a dict of keywords, or one.
        count: B, the number of samples.
        logits_fn: model output → (B, C) logits; by default the output is taken for them.
        memory: bytes for Jacobians, which are computed for a part of the parameters at a time, each part with a
            forward and C backwards; by default half of what is free on a GPU, and 1 GiB on a CPU.

    Returns:
        (B · C, B · C) float32, sample by sample.

    Raises:
        UnsupportedError: no parameter requires a gradient.

    >>> model = nn.Linear(2, 1, bias=False)
    >>> ntk(model, torch.tensor([[1.0, 0.0], [1.0, 1.0]]), 2)
    tensor([[1., 1.],
            [1., 2.]])
    """
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise UnsupportedError(f"no parameter of this {type(model).__name__} requires a gradient: unfreeze some")
    device = next(iter(trained.values())).device
    memory = memory_for(device, memory)
    batch = Batch(model, inputs, torch.zeros(count, dtype=torch.int64, device=device), logits_fn)
    kernel: Tensor | int = 0
    with torch.no_grad():
        classes = batch[:1].logits().shape[1]
        for some in _parts(trained, memory // (8 * count * classes)):
            jacobian = _jacobian(batch, some, max(1, memory // (8 * classes * sum(p.numel() for p in some.values()))))
            kernel = kernel + jacobian @ jacobian.T
    assert isinstance(kernel, Tensor)
    return kernel


def ntk_velocity(before: Tensor, after: Tensor) -> float:
    """1 − the cosine between two kernels of the same samples, in [0, 1] as kernels are positive: 0 for no turn.

    The published ones are of 100 samples with neighbouring scores, an epoch apart.

    >>> ntk_velocity(torch.eye(3), 2 * torch.eye(3))
    0.0
    """
    if before.shape != after.shape:
        raise ArgumentError("after", f"must be a kernel of shape {tuple(before.shape)}", tuple(after.shape))
    product, norms = (before * after).double().sum(), before.double().norm() * after.double().norm()
    return round(1 - float(product / norms), 12) + 0.0


def _parts(parameters: Mapping[str, Tensor], numbers: int) -> Iterator[dict[str, Tensor]]:
    """Parameters in groups of at most so many numbers, or of one parameter."""
    part: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        if part and sum(p.numel() for p in part.values()) + parameter.numel() > numbers:
            yield part
            part = {}
        part[name] = parameter
    yield part


def _jacobian(batch: Batch, parameters: Mapping[str, Tensor], chunk: int) -> Tensor:
    """(B · C, P) float32."""

    def of_one(leaves: Any) -> Tensor:
        alone = [leaf if axis is None else leaf.unsqueeze(0) for leaf, axis in zip(leaves, batch.axes, strict=True)]
        found = torch.func.jacrev(lambda given: batch.logits(alone, given)[0])(dict(parameters))
        return torch.cat([each.flatten(1) for each in found.values()], 1).float()

    every = torch.func.vmap(of_one, (batch.axes,), chunk_size=chunk)
    return every(tuple(batch.leaves)).flatten(0, 1)
