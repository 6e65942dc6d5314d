"""Whether an attach goes on with a run that is there already, or takes over from it.

A run is known by its model, its rows and its options, not by one loader: a loop may make its loader anew each epoch,
and a notebook cell may be run again. So a model carries its run, until it is detached or another one takes over.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from prunesampler._logging import log
from prunesampler.capture.row_loader import RowLoader, RowPipeline
from prunesampler.errors import PruneSamplerWarning
from prunesampler.training.config import comparable

Run = Any  # training.run.Run, which imports this module
_NAME = "_prunesampler_run"


class _Carried:
    """What a model carries. A copy or pickle of the model has an empty tuple instead, which needs no prunesampler."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __reduce__(self) -> tuple[Any, ...]:
        return tuple, ()


def weakly(value: Any) -> Callable[[], Any]:
    """A weak reference; for None, and for what there is none to (a list), a function that gives None."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: None


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module in a compiled or data-parallel one."""
    while isinstance(inner := vars(model).get("_modules", {}).get("_orig_mod") or _wrapped(model), nn.Module):
        model = inner
    return model


def _wrapped(model: nn.Module) -> nn.Module | None:
    parallel = type(model).__module__.startswith("torch.") and "Parallel" in type(model).__name__
    return model.module if parallel and isinstance(getattr(model, "module", None), nn.Module) else None  # type: ignore[return-value]


def carry(model: nn.Module, run: Run) -> None:
    """Have a model carry its run."""
    vars(unwrapped(model))[_NAME] = _Carried(run)


def let_go(model: nn.Module, run: Run) -> None:
    """Have a model carry its run no more."""
    held = vars(unwrapped(model))
    if isinstance(carried := held.get(_NAME), _Carried) and carried.run is run:
        del held[_NAME]


def earlier_runs(loader: Any, model: nn.Module | None) -> list[Run]:
    """The runs that the model, the modules inside it and the loader are in."""
    modules = () if model is None else unwrapped(model).modules()
    found = [held.run for module in modules if isinstance(held := vars(module).get(_NAME), _Carried)]
    if isinstance(loader, RowLoader | RowPipeline):
        found.append(cast(Any, loader).pruning.run)
    return list(dict.fromkeys(run for run in found if run.phases.now != "detached"))


@contextmanager
def samplers_as_found(runs: list[Run]) -> Iterator[None]:
    """Within this context their loaders have the samplers that they came with."""
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(run.phases.pruned.sampler_as_found())
        yield


def tell_of_continuation(run: Run, stacklevel: int) -> None:
    """Say once that an attach goes on with a run."""
    if run.phases.has_begun:
        run.tell_once(
            f"attach goes on with the run that this model is in already ({run.phases.progress}): model, dataset and "
            "options are the same. For a new run call loader.pruning.detach() first",
            stacklevel + 1,
        )


def take_over(runs: list[Run], key: RunKey, stacklevel: int) -> None:
    """Give the runs up, and say so."""
    for run in runs:
        why = key.difference(run.key) or "another model"
        message = (
            f"attach takes over from an earlier attach to the same model or loader ({run.phases.progress}), which had "
            f"{why}: the earlier one is detached"
        )
        if run.phases.now == "scoring" and run.phases.has_begun:
            message += (
                ", and what it scored is lost. Where both are one run, give both the same options, and fingerprint= if "
                "their datasets are the same"
            )
        if run.phases.has_begun and (run.phases.now == "scoring" or run.followed.attachment() is not None):
            warnings.warn(message, PruneSamplerWarning, stacklevel=stacklevel + 1)
        else:
            log.info(message)
        run.detach()


@dataclass(frozen=True, eq=False)
class RunKey:
    """What a run is known by, beside its model.

    Attributes:
        dataset: the dataset object, as long as it lives.
        contents: of it in memory, for another object with the same; or what the user says it is recognised by.
        rows: which of its rows the loader's sampler draws, and how.
        options: of attach.
    """

    dataset: Callable[[], Any]
    contents: str
    rows: dict[str, Any]
    options: dict[str, Any]

    @classmethod
    def of(cls, dataset: Any, contents: str, swap: Any, options: dict[str, Any]) -> RunKey:
        """Arrays and functions are kept as what they are compared by."""
        rows = {name: getattr(swap, name, None) for name in ("num_rows", "num_replicas", "draws", "eligible")}
        rows |= {"kind": type(swap).__name__, **getattr(swap, "options", {})}
        given = ({name: comparable(value) for name, value in part.items()} for part in (rows, options))
        return cls(weakly(dataset), contents, *given)

    def difference(self, other: RunKey) -> str | None:
        """What tells the two apart, for people; None if nothing does."""
        mine = self.dataset()
        if (mine is None or mine is not other.dataset()) and self.contents != other.contents:
            return "another dataset"
        if self.rows != other.rows:
            return "a sampler of other rows or of another kind"
        names = [name for name, value in self.options.items() if other.options.get(name) != value]
        return f"another {', '.join(names)}" if names else None
