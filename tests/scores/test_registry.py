"""A score of the user's own goes wherever a built-in one goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import prunesampler as ps
from prunesampler.cli import app as cli
from prunesampler.scores.registry import SCORES, compute
from prunesampler.tables import score_table

N, C = 24, 3
pytestmark = pytest.mark.filterwarnings("ignore::prunesampler.PruneSamplerWarning")  # "top" keeps few rows


def confidence(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.softmax(1).gather(1, targets[:, None])[:, 0]


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    before = dict(SCORES)
    ps.register_score("confidence", confidence, direction="lower")
    yield
    SCORES.clear()
    SCORES.update(before)


def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(N, 4, generator=generator), torch.arange(N) % C)


def model() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(4, C)


def wanted(network: nn.Module) -> np.ndarray:
    x, y = dataset().tensors
    with torch.no_grad():
        return confidence(network(x), y).numpy()


def test_built_in_scores_have_their_published_directions() -> None:
    directions = {name: entry.direction for name, entry in SCORES.items() if entry.built_in}
    assert {name for name in directions if directions[name] == "lower"} == {"margin", "aum", "aum_softmax"}
    assert ps.ScoreTable({name: [0.0] for name in directions}).directions == directions  # of a table made by hand too


def test_every_score_is_found_by_score_attach_and_the_command_line(tmp_path: Path) -> None:
    names = [name for name, entry in SCORES.items() if not entry.over_epochs]
    network, plain = model(), DataLoader(dataset(), 5)
    table = ps.score(network, plain, scores=names, progress=False)
    options: dict[str, Any] = {"scores": names, "by": "grand", "method": "bottom"}
    loader: Any = DataLoader(dataset(), 4, shuffle=True)
    loader = ps.attach(loader, network, keep=0.5, score_epochs=1, rescore=plain, save_dir=tmp_path / "run", **options)
    for x, _ in loader:
        network(x)
    assert set(loader.pruning.coreset.rows) == set(np.argsort(table.scores["grand"])[: N // 2])
    path = tmp_path / "run" / "scores.parquet"
    for name in names:
        np.testing.assert_allclose(loader.pruning.table.scores[name], table.scores[name], rtol=1e-4, atol=1e-6)
        out = tmp_path / f"{name}.parquet"
        assert cli.main(["select", str(path), "-o", str(out), "--keep", "6", "--by", name, "--method", "top"]) == 0
        ranked = np.argsort(table.scores[name] * (1 if table.directions[name] == "higher" else -1))
        assert set(ps.Coreset.load(out).rows) == set(ranked[-6:])
    assert cli.main(["report", str(path), "-o", str(tmp_path / "report.html"), "--by", "curvature"]) == 0
    assert all(f">{name}<" in (tmp_path / "report.html").read_text() for name in names)


def test_score_and_select_follow_it_through_a_file(tmp_path: Path) -> None:
    network = model()
    loader = DataLoader(dataset(), 5)
    table = ps.score(network, loader, scores=["el2n", "confidence"], progress=False)
    np.testing.assert_allclose(table.scores["confidence"], wanted(network), rtol=1e-5)
    assert table.directions == {"el2n": "higher", "confidence": "lower"}
    table.save(tmp_path / "scores.parquet")
    loaded = ps.ScoreTable.load(tmp_path / "scores.parquet")
    assert loaded == table
    hardest = ps.select(loaded, keep=6, by="confidence", method="top")
    assert set(hardest.rows) == set(np.argsort(wanted(network))[:6])


def test_a_tracker_scores_it_beside_the_built_in_ones_and_resumes() -> None:
    x, y = dataset().tensors
    logits = model()(x)
    tracker = ps.ScoreTracker(N, scores=["confidence", "el2n", "forgetting"])
    tracker.update(range(N), logits, y)
    other = ps.ScoreTracker(N, scores=["confidence", "el2n", "forgetting"])
    other.load_state_dict(tracker.state_dict())
    other.update(range(N), logits, y)
    other.end_epoch()
    table = other.table()
    np.testing.assert_allclose(table.scores["confidence"], wanted(model()), rtol=1e-5)
    assert table.directions["confidence"] == "lower"
    assert table.presentations.tolist() == [2] * N


def test_attach_prunes_by_it(tmp_path: Path) -> None:
    network = model()
    loader: Any = DataLoader(dataset(), 4, shuffle=True)
    options: dict[str, Any] = {"scores": ["confidence"], "by": "confidence", "method": "top"}
    loader = ps.attach(loader, network, keep=0.5, score_epochs=1, save_dir=tmp_path / "run", **options)
    for x, _ in loader:
        network(x)
    seen = sum(len(x) for x, _ in loader)
    assert seen == N // 2
    hardest = set(np.argsort(wanted(network))[: N // 2])
    assert set(loader.pruning.coreset.rows) == hardest
    assert ps.ScoreTable.load(tmp_path / "run" / "scores.parquet").directions == {"confidence": "lower"}


def test_scores_of_inputs_and_of_the_model_come_from_a_pass_of_their_own() -> None:
    def gradient_norm(network: nn.Module, inputs: tuple[Tensor], targets: Tensor) -> Tensor:
        x = inputs[0].clone().requires_grad_()
        loss = nn.functional.cross_entropy(network(x), targets, reduction="sum")
        return torch.autograd.grad(loss, x)[0].norm(dim=1)

    ps.register_score("input_norm", lambda inputs, targets: inputs[0].norm(dim=1), direction="higher", needs="inputs")
    ps.register_score("gradient_norm", gradient_norm, direction="higher", needs="model")
    network, (x, y) = model(), dataset().tensors
    expected = {"input_norm": x.norm(dim=1).numpy(), "gradient_norm": gradient_norm(network, (x,), y).numpy()}
    for names in (["input_norm", "gradient_norm"], ["el2n", "gradient_norm"]):
        table = ps.score(network, DataLoader(dataset(), 5), scores=names, progress=False)
        assert sorted(table.scores) == sorted(names)
        assert table.labels.tolist() == y.tolist()
        for name in set(names) & set(expected):
            np.testing.assert_allclose(table.scores[name], expected[name], rtol=1e-5)
    with pytest.raises(ps.ArgumentError, match=r"'gradient_norm' needs the model.*prunesampler\.score\(\)"):
        ps.ScoreTracker(N, scores=["el2n", "gradient_norm"])


def test_a_value_that_is_not_finite_or_has_no_class_is_none() -> None:
    ps.register_score("broken", lambda logits, targets: logits[:, 0] / 0, direction="higher")
    values = compute(("broken", "confidence"), torch.ones(3, C), torch.tensor([0, C, -1]))
    assert values["broken"].isnan().all()
    assert values["confidence"].isnan().tolist() == [False, True, True]


@pytest.mark.parametrize("returned", [torch.zeros(2, 1), torch.zeros(()), [0.0, 0.0], torch.zeros(2).cfloat()])
def test_a_function_must_return_a_number_per_sample(returned: Any) -> None:
    ps.register_score("wrong", lambda logits, targets: returned, direction="higher")
    with pytest.raises(ps.ArgumentError, match="function of score 'wrong' must return a tensor of 2 numbers"):
        ps.ScoreTracker(N, scores=["wrong"]).update([0, 1], torch.zeros(2, C), [0, 1])


RESERVED = [*score_table._RESERVED, "rows", "correct", "el2n_spread", "", 3]


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        *[({"name": name}, "name must be a str") for name in RESERVED],
        ({"name": "el2n"}, "name must not be that of another registered score"),
        ({"direction": "higher"}, "name must not be that of another registered score"),
        ({"function": lambda logits, targets: logits[:, 0]}, "name must not be that of another"),
        ({"function": 3}, "function must be"),
        ({"direction": "up"}, "direction must be one of 'higher', 'lower'"),
        ({"needs": "labels"}, "needs must be one of 'logits', 'last_layer', 'inputs'"),
    ],
)
def test_what_cannot_be_registered(changed: dict[str, Any], match: str) -> None:
    with pytest.raises(ps.ArgumentError, match=match):
        ps.register_score(**{"name": "confidence", "function": confidence, "direction": "lower", **changed})


def test_the_same_function_may_be_registered_again() -> None:
    ps.register_score("confidence", confidence, direction="lower")
    assert list(SCORES).count("confidence") == 1
