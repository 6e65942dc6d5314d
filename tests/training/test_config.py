from __future__ import annotations

from typing import Any

import pytest

import prunesampler as ps
from prunesampler.errors import ArgumentError
from prunesampler.selection.registry import METHODS, RegisteredMethod
from prunesampler.selection.select import Selection
from prunesampler.training.config import RunConfig, policy_of
from prunesampler.training.policies.function import FunctionPolicy
from prunesampler.training.policies.policy import Policy

SHORT: dict[str, Any] = {"keep": 0.5, "score_epochs": 10, "epoch_length": "kept", "seed": 0, "scores": None}


def policy(policy: Any = None, selection: Any = None, **given: Any) -> Policy:
    short = {name: given.pop(name, value) for name, value in SHORT.items()}
    return policy_of(policy, selection, **short, options=given)  # type: ignore[arg-type]


class Plain(Policy):
    """No dataclass."""

    def num_draws(self, eligible: int, epoch: int) -> int:
        return 2

    def draw(self, epoch: int, table: Any, rows: Any, seed: int, last: Any = None) -> Any:
        return rows[:2]


def config(**changes: Any) -> RunConfig:
    given = {"scores": ("el2n",), "reduction": "mean", "rescored": False, "seed": 0, **changes}
    return RunConfig(given.pop("policy", ps.PruneOnce(Selection(0.5), score_epochs=2)), **given)


def test_the_short_form_is_prune_once() -> None:
    assert policy() == ps.PruneOnce(Selection(0.5), 10, "kept")
    assert policy(keep=None, score_epochs=3) == ps.PruneOnce(None, 3)
    long = ps.PruneOnce(Selection(7, by="loss", method="top", seed=5), 2, "full")
    assert policy(keep=7, by="loss", method="top", score_epochs=2, epoch_length="full", seed=5) == long
    assert policy(selection=Selection(7, by="loss"), score_epochs=2) == ps.PruneOnce(Selection(7, by="loss"), 2)
    assert policy(long) is long


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("keep", {"policy": ps.RandomSubset(0.5), "keep": 0.3}),
        ("score_epochs", {"policy": ps.RandomSubset(0.5), "score_epochs": 3}),
        ("selection", {"policy": ps.RandomSubset(0.5), "selection": Selection(0.5)}),
        ("by", {"policy": ps.PruneOnce(), "by": "loss"}),
        ("keep", {"policy": lambda epoch, table: [0], "keep": 0.3}),
        ("keep", {"selection": Selection(0.5), "keep": 0.3}),
        ("method", {"selection": Selection(0.5), "method": "top"}),
        ("methud", {"methud": "top"}),
        ("policy", {"policy": "infobatch"}),
        ("policy", {"policy": Plain()}),
        ("selection", {"selection": 0.5}),
        ("threshold", {"keep": None, "threshold": 0.1}),
        ("score_epochs", {"score_epochs": 0}),
        ("score_epochs", {"score_epochs": 1.5}),
        ("score_epochs", {"score_epochs": True}),
        ("epoch_length", {"epoch_length": "half"}),
    ],
)
def test_a_wrong_or_contradicting_option_is_named(name: str, given: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=f"^{name} "):
        policy(**given)


def test_a_function_reads_the_scores_that_it_names() -> None:
    function = lambda epoch, table: [0]  # noqa: E731
    assert policy(function) == FunctionPolicy(function, (), 0)
    assert policy(function, scores=("loss",)) == FunctionPolicy(function, ("loss",), 1)
    assert policy(function, scores=("loss",), score_epochs=3) == FunctionPolicy(function, ("loss",), 3)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("seed", {"seed": -1}),
        ("seed", {"seed": 0.5}),
        ("reduction", {"reduction": "sum"}),
        ("rescore", {"policy": ps.RandomSubset(0.5), "rescored": True}),
        ("scores", {"policy": FunctionPolicy(print, ("loss",), 1)}),  # type: ignore[arg-type]
    ],
)
def test_what_the_run_cannot_do_is_refused(name: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=f"^{name} must "):
        config(**changes)


def auto(score_epochs: int = 2, **options: Any) -> ps.PruneOnce:
    return ps.PruneOnce(Selection("auto", **options), score_epochs)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("rescore", {"rescored": True}),
        ("score_epochs", {"policy": auto(1)}),
        ("reduction", {"reduction": "last"}),
        ("scores", {"scores": ("el2n",)}),
        ("by", {"scores": ("loss", "forgetting")}),
        ("by", {"policy": auto(by="margin")}),
        ("by", {"policy": auto(by="forgetting")}),
        ("by", {"policy": auto(by="el2n_spread")}),
    ],
)
def test_auto_wants_two_halves_and_forgetting(name: str, changes: dict[str, Any]) -> None:
    given = {"policy": auto(), "scores": ("el2n", "margin", "forgetting")}
    assert config(**given).selection == Selection("auto")
    with pytest.raises(ArgumentError, match=f'^{name} must .*with keep="auto"'):
        config(**{**given, **changes})


def test_a_registered_method_that_reads_no_score_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    selection = Selection(0.5, by="loss")
    with pytest.raises(ArgumentError, match=r"^by must be one of the tracked scores"):
        config(policy=ps.PruneOnce(selection, 2))
    first = RegisteredMethod(lambda candidates, budget, rng: range(budget), reads_scores=False)
    monkeypatch.setitem(METHODS, "first", first)
    assert config(policy=ps.PruneOnce(Selection(0.5, by="loss", method="first"), 2)).selection is not None


def test_a_config_is_plain_data_that_old_states_hold_too() -> None:
    assert config(policy=ps.PruneOnce(None, 2)).to_dict() == {
        "score_epochs": 2,
        "scores": ["el2n"],
        "reduction": "mean",
        "rescored": False,
        "selection": None,
        "epoch_length": "kept",
        "seed": 0,
    }
    assert config(policy=ps.RandomSubset(0.5)).to_dict()["policy"] == {"name": "RandomSubset", "keep": 0.5}
