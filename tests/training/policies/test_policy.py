"""What a run makes of a policy's answers: rows or probabilities, from scores that are tracked throughout."""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

import prunesampler as ps
from tests.helpers.attached import check_run_resumes
from tests.helpers.rankruns import rows_of_epochs
from tests.helpers.ranks import run_ranks
from tests.helpers.training import Journal, Leaky, Net, Trainer

N, BATCH = 24, 4
SHARES = np.linspace(0.2, 1.0, N)


def by_probability(epoch: int, table: Any) -> ps.Probabilities:
    return ps.Probabilities(SHARES, budget=10)


def hardest_half(epoch: int, table: Any) -> Any:
    """The half with the highest last EL2N, and one row more that comes round."""
    order = np.argsort(-table.column("el2n"), kind="stable")
    return np.union1d(order[: N // 2 - 1], [order[N // 2 + epoch % (N // 2)]])


def make(policy: Any, **options: Any) -> tuple[Any, Trainer]:
    model = Net()
    loader = DataLoader(Leaky(N), batch_size=BATCH, shuffle=True, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.PruneSamplerWarning)  # of a length that nobody knows yet
        return ps.attach(loader, model, policy=policy, **options), Trainer(model, Journal())


def test_a_draw_by_probabilities_weights_each_gradient_by_one_over_its_probability() -> None:
    loader, trainer = make(by_probability)
    chances = SHARES * 10 / SHARES.sum()
    model, seen = trainer.model, set()
    for _ in range(5):
        rows: list[int] = []
        for x, y in loader:
            each = x[:, 0].long()
            rows += each.tolist()
            weights = torch.from_numpy(1 / chances[each]).float()
            twin = Net()
            twin.load_state_dict(model.state_dict())
            (cross_entropy(twin(x), y, reduction="none") * weights).mean().backward()
            model.zero_grad()
            cross_entropy(model(x), y).backward()
            for mine, expected in zip(model.parameters(), twin.parameters(), strict=True):
                torch.testing.assert_close(mine.grad, expected.grad)
        assert len(rows) == len(set(rows)) == 10
        seen.add(frozenset(rows))
    assert len(seen) == 5


def last_el2n(journal: Journal) -> np.ndarray[Any, Any]:
    return np.array([journal.seen[row][-1][0] for row in range(N)])


def test_each_draw_reads_the_last_scores_of_every_row() -> None:
    tables: list[Any] = []
    drawn: list[int] = []

    def policy(epoch: int, table: Any) -> Any:
        tables.append((epoch, table.column("el2n").copy()))
        return hardest_half(epoch, table)

    loader, trainer = make(policy, scores=("el2n",), score_epochs=2)
    for epoch in range(6):
        trainer.epoch(loader)
        expected = last_el2n(trainer.journal)
        if epoch >= 2:
            assert sorted(trainer.journal.epochs[-2]) == drawn
        if epoch >= 1:
            loader.pruning.begin_pass()
            drawn[:] = loader.pruning.coreset.rows.tolist()
            number, values = tables[-1]
            assert number == epoch + 1
            np.testing.assert_allclose(values, expected, atol=1e-6)


@pytest.mark.parametrize("policy", [hardest_half, by_probability])
def test_a_run_resumes_after_any_step(policy: Any) -> None:
    options = {"scores": ("el2n",), "score_epochs": 1} if policy is hardest_half else {}

    check_run_resumes(lambda: make(policy, **options), 4, first=N // BATCH)  # the first epoch is the loader's own


@pytest.mark.parametrize(
    "options",
    [
        {"policy": hardest_half, "scores": ("el2n",), "score_epochs": 1},
        {"policy": ps.SwapForgotten(keep=0.75, swap=0.25, every=1)},
    ],
)
def test_ranks_draw_the_same_rows_from_merged_scores(options: dict[str, Any]) -> None:
    if options["policy"] is hardest_half:
        with pytest.warns(ps.PruneSamplerWarning, match="what the policy draws"):
            ps.attach(DataLoader(Leaky(N), batch_size=BATCH), Net(), **options)
    alone, *both = (epochs for world in (1, 2) for epochs in run_ranks(world, rows_of_epochs, N, BATCH, 5, options))
    assert len(set(map(frozenset, alone))) > 3
    for whole, first, second in zip(alone, *both, strict=True):
        assert sorted(first + second) == sorted(whole)


def test_a_loop_that_leaves_its_epochs_early_draws_all_the_same() -> None:
    loader, trainer = make(hardest_half, scores=("el2n",), score_epochs=1)
    trainer.epoch(loader)
    drawn = []
    for _ in range(4):
        for batch, _ in zip(loader, range(2), strict=False):
            trainer.step(batch)
        drawn.append(frozenset(loader.pruning.coreset.rows.tolist()))
    assert len(set(drawn)) == 4


@pytest.mark.parametrize("scores", [(), ("el2n",)])
def test_an_epoch_that_a_function_does_not_know_fails_when_it_begins(scores: Any, caplog: Any) -> None:
    def of_three_epochs(epoch: int, table: Any) -> Any:
        return {1: np.arange(5), 2: np.arange(9)}[epoch] if epoch else np.arange(N)

    loader, trainer = make(of_three_epochs, scores=scores)
    with caplog.at_level("DEBUG", "prunesampler"):
        for _ in range(3):
            trainer.epoch(loader)
        loader.pruning.end_pass()
        assert len(loader) == 3  # still the last one
        loader.pruning.state_dict()
    assert [len(rows) for rows in trainer.journal.epochs[:3]] == [N, 5, 9]
    assert [record.getMessage() for record in caplog.records if "cannot be drawn" in record.getMessage()] == [
        "epoch 3 cannot be drawn: 3"
    ]
    for _ in range(2):
        with pytest.raises(KeyError, match="3"):
            next(iter(loader))


def test_the_scores_are_written_after_the_scored_epochs_and_by_finish(tmp_path: Path) -> None:
    loader, trainer = make(hardest_half, scores=("el2n",), score_epochs=1, save_dir=tmp_path)
    for _ in range(3):
        trainer.epoch(loader)
    first = ps.ScoreTable.load(tmp_path / "scores.parquet")
    assert first.presentations is not None
    assert first.presentations.tolist() == [1] * N
    loader.pruning.finish()
    last = ps.ScoreTable.load(tmp_path / "scores.parquet")
    np.testing.assert_allclose(last.column("el2n"), last_el2n(trainer.journal), atol=1e-6)
    assert loader.pruning.table == last
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]
    anew, _ = make(hardest_half, scores=("el2n",), score_epochs=1, save_dir=tmp_path, resume=True)
    with pytest.raises(ps.StateError, match="another save_dir"):
        next(iter(anew))
    anew.pruning.load_state_dict(loader.pruning.state_dict())
    assert len(list(anew)) == 3


@pytest.mark.parametrize("every", [1, 2])
def test_the_scores_are_written_every_so_many_epochs(every: int, tmp_path: Path) -> None:
    loader, trainer = make(hardest_half, scores=("el2n",), score_epochs=1, save_dir=tmp_path, save_every=every)
    for epoch in range(4):
        trainer.epoch(loader)
        if epoch == 0 or (epoch + 1) % every == 0:
            expected = last_el2n(trainer.journal)
        found = ps.ScoreTable.load(tmp_path / "scores.parquet")
        np.testing.assert_allclose(found.column("el2n"), expected, atol=1e-6)
    for options in ({"policy": hardest_half, "scores": ("el2n",)}, {"keep": 0.5, "save_dir": tmp_path / "b"}):
        with pytest.raises(ps.ArgumentError, match=r"^save_every must be None without"):
            ps.attach(DataLoader(Leaky(N)), Net(), **options, save_every=every)  # type: ignore[arg-type]


SHARES_OF_EPOCHS = ps.Schedule([range(9), range(20), range(4), range(13)], num_rows=N)


@pytest.mark.parametrize("policy", ["InfoBatch", "Scheduled", "ProxyFilter"])
def test_the_length_is_that_of_the_next_pass_as_soon_as_one_is_over(policy: str, tmp_path: Path) -> None:
    SHARES_OF_EPOCHS.save(tmp_path / "s.parquet")
    policies = {
        "InfoBatch": lambda: ps.InfoBatch(ratio=0.9, anneal=0),
        "Scheduled": lambda: ps.Scheduled(tmp_path / "s.parquet"),
        "ProxyFilter": lambda: ps.ProxyFilter(torch.nn.Linear(4, 3), keep=[1.0, 0.25, 0.5, 0.75]),
    }
    loader, trainer = make(policies[policy]())
    lengths = []
    for _ in range(4):
        lengths.append(len(loader))
        state = loader.pruning.state_dict()  # of a job that ends between two epochs
        trainer.epoch(loader)
        assert -(-len(trainer.journal.epochs[-2]) // BATCH) == lengths[-1]
    assert len(set(lengths)) > 2
    resumed, again = make(policies[policy]())
    resumed.pruning.load_state_dict(state)
    assert len(resumed) == lengths[-1]
    if policy != "ProxyFilter":  # the model is another one
        again.epoch(resumed)
        assert again.journal.epochs[0] == trainer.journal.epochs[-2]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], "must not be empty"),
        ([1, 1], "no row twice"),
        ([1, N], "policy"),
        (ps.Probabilities(np.ones(N - 1), 5), f"{N} probabilities"),
        (ps.Probabilities(np.ones(N), N + 1), "budget must be an int"),
        (ps.Probabilities(-np.ones(N), 5), "probabilities must"),
        (ps.Coreset([1], num_rows=N + 1), "draws from a dataset of"),
    ],
)
def test_an_answer_that_breaks_its_rule_is_refused(answer: Any, message: str) -> None:
    with pytest.raises((ps.ArgumentError, ps.MismatchError), match=message):
        make(lambda epoch, table: answer)


def test_eligible_rows_come_ascending_whatever_the_order_of_the_sampler() -> None:
    seen: list[Any] = []

    @dataclass(frozen=True)
    class Seeing(ps.Policy):
        def num_draws(self, eligible: int, epoch: int) -> int:
            return 2

        def draw(self, epoch: int, table: Any, rows: Any, seed: int, last: Any = None) -> Any:
            seen.append(rows.tolist())
            return rows[:2]

    loader = DataLoader(Leaky(N), batch_size=2, sampler=ps.PrunedSampler(N, rows=[9, 3, 7]))
    ps.attach(loader, None, policy=Seeing())
    assert seen == [[3, 7, 9]]
    assert sorted(int(row) for x, _ in loader for row in x[:, 0]) == [3, 7]


POLICIES = [
    ps.RandomSubset(0.5),
    ps.InfoBatch(anneal=0),
    ps.SeTa(anneal=0),
    ps.OrderDP(),
    ps.ImportanceSampling(),
    ps.SmallLoss(score_epochs=1),
    ps.SwapForgotten(keep=0.5, every=1),
    ps.ProxyFilter(torch.nn.Linear(4, 3)),
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: type(policy).__name__)
def test_nothing_global_is_touched(policy: Any) -> None:
    def everything() -> Any:
        numbers = np.random.get_state()[1].tolist()  # noqa: NPY002
        return torch.get_rng_state().tolist(), random.getstate(), numbers, DataLoader.__iter__, DataLoader.__len__

    torch.manual_seed(0)
    Net()  # draws its first weights
    before = everything()
    torch.manual_seed(0)
    loader, trainer = make(policy)
    for _ in range(3):
        trainer.epoch(loader)
    assert everything() == before
