"""One line for Lightning 2: a callback that attaches to the loader that Lightning has prepared."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler

from prunesampler.errors import ArgumentError, PruneSamplerWarning, StateError, UnsupportedError
from prunesampler.integrations.figures import quantiles
from prunesampler.integrations.options import check_options
from prunesampler.sampling.sampler import PrunedSampler
from prunesampler.tracking.ranks import Group
from prunesampler.training.attach import attach
from prunesampler.training.handle import Pruning
from prunesampler.training.sampler_swap import Replacement

try:
    from lightning.pytorch import Callback
except ImportError:  # the same library under its older name, whose Trainer takes either's callbacks
    from pytorch_lightning import Callback

__all__ = ["PruningCallback"]

_VERSION = 1


class PruningCallback(Callback):  # type: ignore[misc]  # untyped where Lightning is not installed
    """:func:`prunesampler.attach` on the train loader of ``trainer.fit``, after Lightning has prepared it.

    A random, sequential or distributed sampler, Lightning's own included, gives way to a
    :class:`~prunesampler.PrunedSampler` that does the same: its place in an epoch can be saved, so ``ckpt_path`` goes
    on exactly, scoring epochs included.

    At the end of each epoch it logs ``prune/kept``, the rows that the epoch drew from, and while scoring the deciles
    ``prune/<by>_p10``, ``_p50`` and ``_p90`` of the scores so far.

    Args:
        model: what computes the logits: None, the LightningModule, where ``training_step`` calls ``self(x)``; a
            submodule's name (``"net"``); or a function of the LightningModule that returns a module, or None where
            ``training_step`` calls :meth:`Pruning.observe` of ``pruning``.
        options: of :func:`prunesampler.attach`.

    Attributes:
        pruning: the :class:`~prunesampler.Pruning` of the attached loader; None before training starts.

    Raises:
        ArgumentError: an option that attach does not have; at the start of training, what attach says.

    >>> PruningCallback(keep=0.5, score_epochs=2, epoch_length="full").pruning is None
    True
    """

    def __init__(self, *, model: str | Callable[[Any], nn.Module | None] | None = None, **options: Any) -> None:
        if not (model is None or isinstance(model, str) or (callable(model) and not isinstance(model, nn.Module))):
            raise ArgumentError("model", "must be None, the name of a submodule, or a function", model)
        check_options(options, ("loader", "model"))
        self.pruning: Pruning | None = None
        self._model, self._options = model, options
        self._loader: Any = None
        self._base: PrunedSampler | None = None
        self._group = Group()
        self._fit_loop: Any = None
        self._loaded: dict[str, Any] | None = None

    # -- what Lightning calls ----------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot be followed, before anything is loaded."""
        self._loaded = None
        if stage == "fit" and trainer.reload_dataloaders_every_n_epochs:
            raise UnsupportedError(
                "Trainer(reload_dataloaders_every_n_epochs=...) makes a new loader, perhaps of other rows, and scores "
                "belong to rows: leave it out"
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach: Lightning has replaced samplers by now, and trained on nothing."""
        if trainer.overfit_batches:
            warnings.warn("overfit_batches is set: nothing is scored or pruned", PruneSamplerWarning, stacklevel=2)
            return
        loop = self._fit_loop = trainer.fit_loop
        loaders = loop._combined_loader.flattened
        if len(loaders) != 1:
            raise UnsupportedError(f"there are {len(loaders)} train loaders, and rows are followed in one")
        if hasattr(loaders[0], "_iterator"):
            loaders[0]._iterator = None  # Lightning has begun a pass, whose workers cannot be followed any more
        if self.pruning is None or self._loader is not loaders[0] or self.pruning.phase == "detached":
            self._attach(trainer, loaders[0], pl_module)
        if self._loaded is not None:
            self._load(self._loaded)
        self._go_to_epoch()
        self._measure(trainer)
        iter(loop._data_fetcher)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Tell the samplers which epoch it is, and Lightning how long it will be."""
        if self.pruning is not None:
            self._go_to_epoch()
            self._measure(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Merge, log, and select when it is time."""
        pruning = self.pruning
        if pruning is None or pruning.phase == "detached":
            return
        scoring, coreset = pruning.phase == "scoring", pruning.coreset
        pruning.end_pass()
        kept = len(self._loader.dataset) if coreset is None else len(coreset)
        pl_module.log("prune/kept", float(kept))
        if scoring and trainer.is_global_zero:
            pl_module.log_dict(quantiles(pruning, self._options.get("by", "el2n")), rank_zero_only=True)

    def state_dict(self) -> dict[str, Any]:
        """Of all ranks, which all call it; rank 0 holds what the checkpoint gets."""
        if self.pruning is None:
            return {}
        ranks = self._group.gather_object(self.pruning.state_dict())
        return {"version": _VERSION, "epoch": self._epoch, "ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it until there is a loader."""
        if state_dict.get("version") != _VERSION:
            raise StateError(f"the state has version {state_dict.get('version')}, this library reads {_VERSION}")
        self._loaded = state_dict

    # -- its own -----------------------------------------------------------------------------------------------

    @property
    def _epoch(self) -> int:
        return int(self._fit_loop.epoch_progress.current.processed)

    def _attach(self, trainer: Any, loader: Any, pl_module: Any) -> None:
        if hasattr(loader, "load_state_dict"):
            raise UnsupportedError(
                f"{type(loader).__name__} keeps its own place, which Lightning has loaded before this callback is "
                "called: give a plain DataLoader, whose place this callback keeps"
            )
        if type(getattr(loader, "sampler", None)).__name__ == "DistributedSamplerWrapper":
            raise UnsupportedError(
                "Lightning has wrapped your sampler to split it over devices, and its order cannot be reproduced for "
                "the kept rows: give Trainer(use_distributed_sampler=False) and the loader a sampler that splits rows "
                'itself, such as prunesampler.PrunedSampler(len(dataset), num_replicas="auto")'
            )
        model = self._find_model(pl_module)
        if model is pl_module and trainer.world_size > 1 and self._options.get("inputs_changed"):
            raise ArgumentError(
                "model",
                "must name the submodule that computes the logits where inputs_changed= is given on several devices: "
                "there Lightning calls the LightningModule itself, too",
                self._model,
            )
        if self.pruning is not None:
            self.pruning.detach()
        self._base = _swap(loader, self._options.get("seed", 0))
        self._group = Group.create()
        self.pruning = attach(loader, model, **self._options).pruning
        self._loader = loader

    def _find_model(self, pl_module: Any) -> nn.Module | None:
        if isinstance(self._model, str):
            try:
                return pl_module.get_submodule(self._model)  # type: ignore[no-any-return]
            except AttributeError:
                names = [name for name, _ in pl_module.named_children()]
                raise ArgumentError("model", f"must be the name of a submodule, such as {names}", self._model) from None
        if self._model is not None:
            return self._model(pl_module)
        if type(pl_module).forward.__module__.startswith(("lightning.", "pytorch_lightning.")):
            names = [name for name, _ in pl_module.named_children()]
            raise ArgumentError(
                "model",
                f"must be given where the LightningModule has no forward: the name of a submodule, such as {names}",
                None,
            )
        return pl_module  # type: ignore[no-any-return]

    def _load(self, state: dict[str, Any]) -> None:
        assert self.pruning is not None
        self._loaded = None
        ranks = state["ranks"]
        own = ranks[min(self._group.rank, len(ranks) - 1)]
        done, base = own["batches_open"], self._base
        goes_on = own["phase"] == "scoring" and base is not None and done > 0 and state["epoch"] == self._epoch
        self.pruning.load_state_dict(own, base_resumes=goes_on)
        if goes_on and base is not None:
            position = done * self._loader.batch_size * base.num_replicas
            base.load_state_dict({**base.state_dict(), "epoch": self._epoch, "position": position})
        elif state["epoch"] != self._epoch:
            self.pruning.end_pass()

    def _go_to_epoch(self) -> None:
        pruning = self.pruning
        assert pruning is not None
        for sampler in (self._base, pruning.sampler):
            if isinstance(sampler, PrunedSampler):
                sampler.set_epoch(self._epoch)

    def _measure(self, trainer: Any) -> None:
        """Lightning counts batches once, at the start; here it does again."""
        loop = self._fit_loop
        whole = len(self._loader)
        limit = trainer.limit_train_batches
        length = min(whole, limit) if isinstance(limit, int) else max(1, int(whole * limit))
        loop._combined_loader.limits = [length]
        if trainer.val_check_batch is not None and not isinstance(trainer.val_check_interval, int):
            trainer.val_check_batch = max(1, int(length * trainer.val_check_interval))
        loop.max_batches = length


def _swap(loader: DataLoader[Any], seed: int) -> PrunedSampler | None:
    """A PrunedSampler in the place of a sampler that it can do all of."""
    batch_sampler: Any = loader.batch_sampler
    base = getattr(batch_sampler, "sampler", None)
    if type(base) not in (RandomSampler, SequentialSampler, DistributedSampler):
        return base if type(base) is PrunedSampler else None
    found = Replacement.of(loader)
    if found.options.pop("replacement", False) or found.draws != found.num_rows:
        return None
    sampler = PrunedSampler(found.num_rows, seed=seed, **{"num_replicas": 1, **found.options})
    batch_sampler.sampler = sampler
    return sampler
