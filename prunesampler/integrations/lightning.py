"""A callback for Lightning 2, which attaches to the train loader that Lightning has prepared."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, SequentialSampler

from prunesampler.errors import ArgumentError, PruneSamplerWarning, StateError, UnsupportedError, missing
from prunesampler.integrations.callback import check_options, quantiles
from prunesampler.integrations.training_step import called_submodules
from prunesampler.sampling.sampler import PrunedSampler
from prunesampler.tracking.ranks import Group
from prunesampler.training.attach import attach
from prunesampler.training.handle import Pruning
from prunesampler.training.sampler_swap import SamplerSwap

try:
    from lightning.pytorch import Callback
except ImportError:  # the same library under its older name
    try:
        from pytorch_lightning import Callback
    except ImportError as error:
        raise missing("lightning", error) from error

_VERSION = 1


class PruningCallback(Callback):  # type: ignore[misc]  # untyped where Lightning is not installed
    """:func:`prunesampler.attach` for the train loader of ``trainer.fit``.

    A random, sequential or distributed sampler (Lightning's own included) is replaced by a
    :class:`~prunesampler.PrunedSampler` that does the same and can save its place in an epoch. So ``ckpt_path`` resumes
    exactly, in scoring epochs too.

    At the end of each epoch the callback logs ``prune/kept``, the number of rows that the epoch drew from, and while
    scoring ``prune/<by>_p10``, ``_p50`` and ``_p90``, quantiles of the scores so far.

    Args:
        model: what computes the logits. None: the LightningModule itself, if ``training_step`` calls ``self(x)``. A
            str: the name of a submodule, such as ``"net"``. A function: gets the LightningModule and returns the
            module, or None if ``training_step`` calls ``callback.pruning.observe(logits)``.
        options: of :func:`prunesampler.attach`.

    Attributes:
        pruning: the :class:`~prunesampler.Pruning` of the attached loader; None before training starts.

    Raises:
        ArgumentError: attach has no such option. When training starts, everything that attach raises.

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
        self._followed: nn.Module | None = None
        self._base: PrunedSampler | None = None
        self._group = Group()
        self._fit_loop: Any = None
        self._before: tuple[bool, Any] = False, None  # whether the epoch is scored, and the rows that it reads
        self._loaded: dict[str, Any] | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot be followed before anything is loaded."""
        self._loaded = None
        if stage == "fit" and trainer.reload_dataloaders_every_n_epochs:
            raise UnsupportedError(
                "Trainer(reload_dataloaders_every_n_epochs=...) makes a new loader, perhaps of other rows, and scores "
                "belong to rows: leave it out"
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach: by now Lightning has replaced the samplers, and has not trained yet."""
        if trainer.overfit_batches:
            warnings.warn("overfit_batches is set: nothing is scored or pruned", PruneSamplerWarning, stacklevel=2)
            return
        loop = self._fit_loop = trainer.fit_loop
        loaders = loop._combined_loader.flattened
        if len(loaders) != 1:
            raise UnsupportedError(f"there are {len(loaders)} train loaders, and rows are followed in one only")
        if hasattr(loaders[0], "_iterator"):
            loaders[0]._iterator = None  # Lightning has begun a pass, and its workers know nothing of rows
        if self.pruning is None or self._loader is not loaders[0] or self.pruning.phase == "detached":
            self._attach(trainer, loaders[0], pl_module)
        if self._loaded is not None:
            self._load(self._loaded)
        self._begin_epoch(trainer)
        iter(loop._data_fetcher)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Tell the samplers which epoch it is, and Lightning how many batches it has."""
        if self.pruning is not None:
            self._begin_epoch(trainer)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Merge and log the scores; select after the last scoring epoch."""
        pruning = self.pruning
        if pruning is None or pruning.phase == "detached":
            return
        scoring, coreset = self._before
        pruning.end_pass()
        pl_module.log("prune/kept", float(len(self._loader.dataset if coreset is None else coreset)))
        if scoring and trainer.is_global_zero:
            pl_module.log_dict(quantiles(pruning, self._options.get("by", "el2n")), rank_zero_only=True)

    def state_dict(self) -> dict[str, Any]:
        """The states of all ranks. Every rank calls this; Lightning saves what rank 0 returns."""
        if self.pruning is None:
            return {}
        ranks = self._group.gather_object(self.pruning.state_dict())
        return {"version": _VERSION, "epoch": self._epoch, "ranks": ranks}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the loader is there."""
        if state_dict.get("version") != _VERSION:
            raise StateError(f"expected a state of version {_VERSION}, got {state_dict.get('version')}")
        self._loaded = state_dict

    @property
    def _epoch(self) -> int:
        return int(self._fit_loop.epoch_progress.current.processed)

    def _attach(self, trainer: Any, loader: Any, pl_module: Any) -> None:
        if hasattr(loader, "load_state_dict"):
            raise UnsupportedError(
                f"{type(loader).__name__} saves its own place in the epoch, and Lightning restores it before this "
                "callback is called: give a plain DataLoader, and this callback saves the place"
            )
        if type(getattr(loader, "sampler", None)).__name__ == "DistributedSamplerWrapper":
            raise UnsupportedError(
                "Lightning has wrapped your sampler to split it over devices, and that order cannot be reproduced for "
                "the kept rows: set Trainer(use_distributed_sampler=False) and give the loader a sampler that splits "
                'rows itself, such as prunesampler.PrunedSampler(len(dataset), num_replicas="auto")'
            )
        model = self._find_model(pl_module)
        if model is pl_module and trainer.world_size > 1 and self._options.get("inputs_changed"):
            raise ArgumentError(
                "model",
                "must name the submodule that computes the logits if inputs_changed= is given on several devices: "
                "there Lightning calls the LightningModule itself too",
                self._model,
            )
        if self.pruning is not None and model is not self._followed:
            self.pruning.detach()  # with the same model attach tells whether the run goes on: fit was called again
        self._followed = model
        self._base = _swap(loader, self._options.get("seed", 0))
        self._group = Group.create()
        self.pruning = attach(loader, model, **self._options).pruning
        self._loader = loader

    def _find_model(self, pl_module: Any) -> nn.Module | None:
        names = [name for name, _ in pl_module.named_children()]
        if isinstance(self._model, str):
            try:
                return pl_module.get_submodule(self._model)  # type: ignore[no-any-return]
            except AttributeError:
                raise ArgumentError("model", f"must be the name of a submodule, such as {names}", self._model) from None
        if self._model is not None:
            return self._model(pl_module)
        if type(pl_module).forward.__module__.startswith(("lightning.", "pytorch_lightning.")):
            rule = f"must be the name of a submodule, such as {names}, if the LightningModule has no forward"
            raise ArgumentError("model", rule, None)
        used = called_submodules(pl_module)
        if used is not None:
            learn = [name for name in used if next(pl_module.get_submodule(name).parameters(), None) is not None]
            raise ArgumentError(
                "model",
                f'must name what computes the logits, such as PruningCallback(model="{(learn or names or ["net"])[0]}")'
                f" (training_step uses {learn or used}), as training_step does not call self(x): the LightningModule's "
                "own forward is never run",
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

    def _begin_epoch(self, trainer: Any) -> None:
        assert self.pruning is not None
        self._before = self.pruning.phase == "scoring", self.pruning.coreset
        for sampler in (self._base, self.pruning.sampler):
            if isinstance(sampler, PrunedSampler):
                sampler.set_epoch(self._epoch)
        self.pruning.begin_pass()  # so that what the epoch draws is counted
        # Lightning counts batches only once, at the start.
        limit, loop = trainer.limit_train_batches, self._fit_loop
        length = len(self._loader)
        length = min(length, limit) if isinstance(limit, int) else max(1, int(length * limit))
        loop._combined_loader.limits = [length]
        if trainer.val_check_batch is not None and not isinstance(trainer.val_check_interval, int):
            trainer.val_check_batch = max(1, int(length * trainer.val_check_interval))
        loop.max_batches = length


def _swap(loader: DataLoader[Any], seed: int) -> PrunedSampler | None:
    """Replace a sampler by a PrunedSampler that does the same, if there is one."""
    batch_sampler: Any = loader.batch_sampler
    base = getattr(batch_sampler, "sampler", None)
    if type(base) not in (RandomSampler, SequentialSampler, DistributedSampler):
        return base if type(base) is PrunedSampler else None
    found = SamplerSwap.of(loader)
    if not isinstance(found, SamplerSwap) or found.options.pop("replacement", False) or found.draws != found.num_rows:
        return None
    sampler = PrunedSampler(found.num_rows, seed=seed, **{"num_replicas": 1, **found.options})
    batch_sampler.sampler = sampler
    return sampler
