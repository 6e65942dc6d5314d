"""A small model that says which rows of each batch the large one trains on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn, optim

from prunesampler.errors import ArgumentError, check_int, check_number
from prunesampler.training.policies.policy import AllRows
from prunesampler.training.proxy import ProxyTraining


@dataclass(frozen=True, eq=False)
class ProxyFilter(AllRows):
    """Of every batch the rows on which a small model has the highest loss (the filter of cifar10-airbench, 2024).

    The loader fetches and augments B / keep rows, once, where its batch size is B. The proxy is trained on them inside
    the loader's iterator, and the B rows with its highest loss are handed out, in the loader's own batch type. A pass
    thus has ``keep`` times as many batches. The run's table holds the proxy's last loss of every row
    (``proxy_loss``) beside the model's own of those that were handed out.

    On several ranks each proxy learns from its own rank's batches, and nothing is exchanged: which rows a rank hands
    out depends on its own proxy. With a GPU the choice waits for the device once a step.

    Args:
        proxy: a module that takes the batch's inputs and gives (B, classes) logits, on the device where it shall run;
            :func:`prunesampler.tiny_proxy` makes one. Its dropout, if any, would draw from the global generator.
        keep: in (0, 1], the share of each fetched batch that is handed out; or a sequence, one for each epoch, of
            which the last one stays.
        every: an int >= 1: the proxy takes a step on every so many batches only, and judges all.
        optimizer: parameters → an optimizer; by default AdamW with a learning rate of 0.002.

    Raises:
        ArgumentError: an option breaks its rule.

    >>> ProxyFilter(nn.Linear(4, 2), keep=0.75).batch_share(epoch=3)
    0.75
    """

    proxy: nn.Module
    keep: float | Sequence[float] = 0.75
    every: int = 1
    optimizer: Callable[[Iterable[Any]], optim.Optimizer] | None = None
    reads: ClassVar[tuple[str, ...]] = ("loss",)  # type: ignore[misc]

    def __post_init__(self) -> None:
        if not isinstance(self.proxy, nn.Module):
            raise ArgumentError("proxy", "must be a torch.nn.Module", self.proxy)
        if not any(parameter.requires_grad for parameter in self.proxy.parameters()):
            raise ArgumentError("proxy", "must have a parameter to train", self.proxy)
        if isinstance(self.keep, Sequence) and not len(self.keep):
            raise ArgumentError("keep", "must not be empty", self.keep)
        for share in self._shares:
            check_number("keep", share, 0, 1, above=True)
        check_int("every", self.every, 1)
        if self.optimizer is not None and not callable(self.optimizer):
            raise ArgumentError(
                "optimizer", "must be a function from parameters to an optimizer, or None", self.optimizer
            )

    @property
    def _shares(self) -> tuple[float, ...]:
        return tuple(self.keep) if isinstance(self.keep, Sequence) else (self.keep,)

    def batch_share(self, epoch: int) -> float:
        """The share of each fetched batch that is handed out."""
        return self._shares[min(epoch, len(self._shares) - 1)]

    def batch_filter(self) -> ProxyTraining:
        """The proxy and its optimizer."""
        make = self.optimizer or (lambda parameters: optim.AdamW(parameters, lr=2e-3))
        return ProxyTraining(self.proxy, make(self.proxy.parameters()), self.every)

    def to_dict(self) -> dict[str, Any]:
        """Its options as JSON values; of the proxy its class."""
        proxy = type(self.proxy)
        name = f"{proxy.__module__}.{proxy.__qualname__}"
        return {"name": "ProxyFilter", "proxy": name, "keep": list(self._shares), "every": self.every}
