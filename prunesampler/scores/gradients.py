"""Norms of the loss gradient, sample by sample (Paul et al. 2021): over all parameters, and over the last layer's."""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from prunesampler.errors import UnsupportedError
from prunesampler.scores.batch import Batch, kept_bytes, loss_sum, memory_for, wide
from prunesampler.scores.logits import el2n

_log = logging.getLogger(__name__)

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm)
_CLOSED = (nn.Linear, nn.Conv2d, *_NORMS)  # these types, not their subclasses, which may compute anything
_looped: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # models that the log already knows to be slow


def grand_last(layer: nn.Linear, features: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Norm of the loss gradient over the weight and bias of the last layer alone: EL2N · √(‖features‖² + 1).

    The gradient is the outer product of the error vector and the layer's input, so no backward is needed; without a
    bias the 1 is left out. Of a layer, its (B, d) inputs and (B, C) outputs, the logits, and (B,) class indices it
    gives (B,) float32, at least 0, higher is harder.

    >>> grand_last(nn.Linear(2, 2), torch.tensor([[2.0, 2.0]]), torch.zeros(1, 2), torch.tensor([0]))
    tensor([2.1213])
    """
    squares = features.float().square().sum(1) + (layer.bias is not None)
    return el2n(logits, targets) * squares.sqrt()


def grand(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    *,
    logits_fn: Callable[[Any], Tensor] | None = None,
    memory: int | None = None,
) -> Tensor:
    """GraNd: the norm of each sample's cross-entropy gradient over all parameters that train (Paul et al. 2021).

    One backward serves a whole part of the batch where a layer's gradient has a closed form (linear, convolution,
    normalization); the others' come from ``torch.func.vmap``. A sample of every batch is compared with autograd on it
    alone: where the two differ, as when a model mixes samples, all of that batch comes from ``vmap``; a model that
    ``vmap`` cannot take is done sample by sample, and the log says so.

    Args:
        model: in eval mode. Its gradients, flags and buffers do not change.
        inputs: what it is called with: a tuple of arguments, a dict of keywords, or one argument.
        targets: (B,) class indices in [0, C), beside the logits.
        logits_fn: model output → (B, C) logits; by default the output is taken for them.
        memory: bytes for activations and gradients; by default half of what is free on a GPU, and 1 GiB on a CPU.

    Returns:
        (B,) float32, at least 0, higher is harder. It does not depend on the other samples of the batch.

    Raises:
        UnsupportedError: no parameter requires a gradient, or logits or targets of another form.

    At initialisation it ranks by the norm of the inputs and is no better than random (Kirsch, arXiv 2303.14753).

    >>> model = nn.Linear(2, 2).eval()
    >>> _ = nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    >>> grand(model, torch.tensor([[2.0, 2.0]]), torch.tensor([0]))
    tensor([2.1213])
    """
    memory = memory_for(targets.device, memory)
    batch = Batch(model, inputs, targets, logits_fn)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise UnsupportedError(f"no parameter of this {type(model).__name__} requires a gradient: unfreeze some")
    with torch.enable_grad():
        probe = len(batch) // 2
        with kept_bytes(model) as kept:
            expected = _alone(batch[probe : probe + 1], trained).unsqueeze(0)
        if len(batch) == 1:
            return expected.sqrt().float()
        size = max(1, memory // (3 * sum(kept.values()) or 1))
        squares = torch.cat([_together(part, trained, memory) for part in batch.split(size)])
        half = any(p.dtype in (torch.float16, torch.bfloat16) for p in trained.values())
        if not torch.isclose(squares[probe], expected[0], rtol=0.2 if half else 0.01, atol=0.0, equal_nan=True):
            squares = _one_by_one(batch, trained, memory)
    return squares.clamp_(min=0).sqrt_().float()


def _sum_of_squares(gradients: Any) -> Tensor:
    return torch.stack([wide(g).square().sum() for g in gradients if g is not None]).sum()


def _alone(sample: Batch, trained: Mapping[str, Tensor]) -> Tensor:
    loss = loss_sum(sample.logits(), sample.targets)
    return _sum_of_squares(torch.autograd.grad(loss, list(trained.values()), allow_unused=True))


def _one_by_one(batch: Batch, parameters: Mapping[str, Tensor], memory: int) -> Tensor:
    """(B,) squared norms over ``parameters`` from each sample's own gradient, many samples at once if that can be."""
    plain = {name: p.detach() for name, p in parameters.items()}
    per_sample = 3 * sum(p.numel() * p.element_size() for p in plain.values())

    def squares(leaves: Any, target: Tensor) -> Tensor:
        alone = [leaf if axis is None else leaf.unsqueeze(0) for leaf, axis in zip(leaves, batch.axes, strict=True)]

        def loss(given: Mapping[str, Tensor]) -> Tensor:
            return loss_sum(batch.logits(alone, given), target.unsqueeze(0))

        return _sum_of_squares(torch.func.grad(loss)(plain).values())

    try:
        with torch.no_grad():
            chunk = max(1, memory // per_sample)
            every = torch.func.vmap(squares, (batch.axes, 0), chunk_size=chunk)
            return every(tuple(batch.leaves), batch.targets)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if batch.model not in _looped:
            _looped.add(batch.model)
            _log.info("GraNd of this %s goes sample by sample: vmap says %s", type(batch.model).__name__, error)
        return torch.stack([_alone(sample, parameters) for sample in batch.split(1)])


# -- closed forms ------------------------------------------------------------------------------------------------


class _Call(NamedTuple):
    """One call of a layer: its input and where the gradient of its output comes by."""

    layer: nn.Module
    inputs: Tensor
    edge: Any


def _together(batch: Batch, trained: Mapping[str, Tensor], memory: int) -> Tensor:
    """(B,) squared norms, from one backward for all parameters whose gradient has a closed form."""
    with _followed(batch.model) as calls:
        logits = batch.logits()
    uses = _uses(logits)
    # A parameter that is used once is used by that call of its layer alone.
    once = [
        (call, [name for name, p in call.layer.named_parameters(recurse=False) if uses[p] == 1])
        for call in calls
        if call.edge.node.metadata is not None and len(call.inputs) % len(batch) == 0
    ]
    once = [(call, names) for call, names in once if names]
    squares = wide(logits.detach().new_zeros(len(batch)))
    if once:
        edges = [call.edge for call, _ in once]
        gradients = torch.autograd.grad(loss_sum(logits, batch.targets), edges, allow_unused=True)
        for (call, names), gradient in zip(once, gradients, strict=True):
            if gradient is not None:
                squares += _layer_squares(call.layer, names, call.inputs, gradient, len(batch), memory)
    done = {id(getattr(call.layer, name)) for call, names in once for name in names}
    rest = {name: p for name, p in trained.items() if id(p) not in done and uses[p]}
    return squares + _one_by_one(batch, rest, memory) if rest else squares


@contextmanager
def _followed(model: nn.Module) -> Iterator[list[_Call]]:
    calls: list[_Call] = []

    def note(layer: nn.Module, given: Any, output: Any) -> None:
        if len(given) == 1 and isinstance(output, Tensor) and output.requires_grad:
            # An edge, as the output itself may be overwritten by what follows (ReLU in place).
            calls.append(_Call(layer, given[0].detach(), get_gradient_edge(output)))

    hooks = [layer.register_forward_hook(note) for layer in model.modules() if _has_closed_form(layer)]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _has_closed_form(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return False
    return type(layer) in _CLOSED and getattr(layer, "running_mean", 0) is not None


def _uses(result: Tensor) -> Counter[Tensor]:
    """How often each parameter is read in the computation of a tensor."""
    uses: Counter[Tensor] = Counter()
    seen, waiting = set(), [result.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for before, _ in node.next_functions:
            parameter = getattr(before, "variable", None)
            if parameter is not None:
                uses[parameter] += 1
            else:
                waiting.append(before)
    return uses


def _layer_squares(
    layer: nn.Module, names: list[str], inputs: Tensor, gradient: Tensor, size: int, memory: int
) -> Tensor:
    """(size,) squared gradients of a layer's parameters, summed, from its inputs and the gradient of its output."""
    gradient = wide(gradient)
    if isinstance(layer, _NORMS):
        products = {"weight": wide(_normalized(layer, inputs)) * gradient, "bias": gradient}
        return torch.stack([_over_places(layer, products[name], size).square().sum(1) for name in names]).sum(0)
    inputs, squares = wide(inputs), gradient.new_zeros(size)
    if isinstance(layer, nn.Conv2d):
        outputs = gradient.reshape(size, -1, *gradient.shape[1:]).transpose(1, 2).flatten(2)  # (B, out, places)
        width, groups = layer.weight[0].numel() * layer.groups, layer.groups
    else:
        outputs = gradient.reshape(size, -1, gradient.shape[-1]).mT
        width, groups = inputs.shape[-1], 1
    if "bias" in names:
        squares += outputs.sum(2).square().sum(1)
    if "weight" not in names:
        return squares
    places = outputs.shape[2]
    floats = width * places + min(outputs.shape[1] * width // groups, 2 * places**2)
    step, each = max(1, memory // (8 * floats)), len(inputs) // size
    for start in range(0, size, step):
        part = inputs[start * each : (start + step) * each]
        if isinstance(layer, nn.Conv2d):
            part = F.unfold(part, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
            part = part.reshape(-1, each, *part.shape[1:]).transpose(1, 2).flatten(2)  # (b, width, places)
        else:
            part = part.reshape(min(step, size - start), -1, width).mT
        squares[start : start + step] += _outer_squares(part, outputs[start : start + step], groups)
    return squares


def _outer_squares(inputs: Tensor, gradients: Tensor, groups: int) -> Tensor:
    """(b,) squared norms of the sum over places of gradients · inputsᵀ; of (b, width, places) and (b, out, places)."""
    inputs, gradients = (each.unflatten(1, (groups, -1)) for each in (inputs, gradients))
    width, out, places = inputs.shape[2], gradients.shape[2], inputs.shape[3]
    if places * (width + out) < width * out:  # through the places' own products, which are then fewer
        products = (inputs.mT @ inputs).mul_(gradients.mT @ gradients)
    else:
        products = (gradients @ inputs.mT).square_()
    return products.sum((1, 2, 3))


def _normalized(layer: nn.Module, inputs: Tensor) -> Tensor:
    if isinstance(layer, nn.LayerNorm):
        return F.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    if isinstance(layer, nn.GroupNorm):
        return F.group_norm(inputs, layer.num_groups, eps=layer.eps)
    return F.batch_norm(inputs, layer.running_mean, layer.running_var, eps=layer.eps)  # type: ignore[arg-type]


def _over_places(layer: nn.Module, products: Tensor, size: int) -> Tensor:
    """(size, parameters), summed over the places that share a parameter."""
    if isinstance(layer, nn.LayerNorm):
        return products.reshape(size, -1, layer.weight.numel()).sum(1)
    return products.reshape(size, -1, products.shape[1], products[0, 0].numel()).sum((1, 3))
