"""The state of an attached run as tensors and plain Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch

from prunesampler.errors import ArgumentError, StateError
from prunesampler.tables.coreset import Coreset
from prunesampler.tracking.ranks import Group
from prunesampler.tracking.state import is_other

_PLAIN = ("num_rows", "fingerprint", "scores_digest", "selection")


def check_state(state: Any, keys: set[str], expected: Mapping[str, Any]) -> None:
    """Refuse a state that is not one of this run."""
    version = expected.get("version")
    if isinstance(state, Mapping) and state.get("version", version) != version:
        raise StateError(f"the state has version {state['version']!r}, and this library reads {version!r}")
    if not isinstance(state, Mapping) or set(state) != keys:
        found = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise StateError(f"this is not a state of an attached loader: its keys are {found}")
    for name, value in expected.items():
        if is_other(state[name], value):
            raise StateError(f"the state was saved with {name} = {state[name]!r}, and this run has {value!r}")


def check_moment(state: Mapping[str, Any], group: Group) -> None:
    """Refuse states that the ranks saved at different moments. A collective; all ranks raise together."""
    scoring = state["scoring"] or {}
    moments = group.exchange({"phase": state["phase"], "ended": scoring.get("ended"), "sampler": state["sampler"]})
    if None in moments:
        raise StateError(f"rank {moments.index(None)} has refused its state")
    if any(moment != moments[0] for moment in moments):
        raise StateError(f"the ranks were given states of different moments: {moments}")


def coreset_state(coreset: Coreset) -> dict[str, Any]:
    """A coreset for ``torch.save``, to be loaded with ``weights_only=True``."""
    return {
        "rows": torch.from_numpy(coreset.rows.copy()),
        "weights": None if coreset.weights is None else torch.from_numpy(coreset.weights.copy()),
        "keys": coreset.keys,
        "shards": None if coreset.shard_column is None else coreset.shard_column.tolist(),
        **{name: getattr(coreset, name) for name in _PLAIN},
    }


def _array(values: torch.Tensor) -> npt.NDArray[Any]:
    return values.detach().cpu().numpy()


def load_coreset(state: Mapping[str, Any]) -> Coreset:
    """The coreset that :func:`coreset_state` was given."""
    try:
        weights = state["weights"]
        arrays = {"rows": _array(state["rows"]), "weights": None if weights is None else _array(weights)}
        return Coreset(**{**state, **arrays})
    except (ArgumentError, AttributeError, KeyError, NotImplementedError, RuntimeError, TypeError) as error:
        raise StateError(f"the state holds no sound coreset: {error}") from error
