"""A proxy says which rows of a batch are handed out: the same run by hand is the oracle."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler, default_collate

import prunesampler as ps
from tests.helpers.attached import check_run_resumes
from tests.helpers.ranks import run_ranks
from tests.helpers.training import Journal, Leaky, Net, Trainer

N, BATCH = 44, 4
WEIGHT = torch.randn(3, 4, generator=torch.Generator().manual_seed(3))


class Proxy(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 3)
        self.weight.data.copy_(WEIGHT)
        self.bias.data.zero_()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input * torch.tensor([0.0, 1, 1, 1]))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.3, momentum=0.9)


class Logged(Leaky):
    """Notes which rows are fetched."""

    fetched: list[int]

    def __getitem__(self, i: int) -> Any:
        self.__dict__.setdefault("fetched", []).append(i)
        return super().__getitem__(i)


def make(dataset: Any = None, proxy: Any = None, keep: Any = 0.5, every: int = 1, **options: Any) -> Any:
    dataset, model = dataset or Leaky(N), Net()
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True, **options)
    policy = ps.ProxyFilter(proxy or Proxy(), keep=keep, every=every, optimizer=sgd)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.PruneSamplerWarning)  # of the length
        loader = ps.attach(loader, model, policy=policy, seed=5)
    return loader, Trainer(model, Journal())


@pytest.mark.parametrize("every", [1, 3])
def test_the_hardest_rows_of_each_fetched_batch_are_handed_out(every: int) -> None:
    dataset = Logged(N)
    loader, trainer = make(dataset, every=every)
    proxy = Proxy()
    optimizer, seen, last = sgd(proxy.parameters()), 0, np.full(N, np.nan)
    for _ in range(3):
        assert len(loader) == 6  # five batches of 8, and one of 4
        for x, y in loader:
            rows = dataset.fetched[:]
            dataset.fetched.clear()
            inputs, targets = dataset.x[rows], dataset.targets[rows]
            losses = cross_entropy(proxy(inputs), targets, reduction="none")
            values = losses.tolist()
            last[rows] = losses.detach().numpy()
            ranked = sorted(range(len(rows)), key=lambda i: -values[i])[: BATCH if len(rows) == 8 else 2]
            assert x[:, 0].long().tolist() == [rows[i] for i in sorted(ranked)]
            assert y.tolist() == targets[sorted(ranked)].tolist()
            if seen % every == 0:
                optimizer.zero_grad()
                losses.mean().backward()
                optimizer.step()
            seen += 1
            trainer.step((x, y))
        trainer.journal.end_epoch()
    loader.pruning.finish()
    table = loader.pruning.table
    np.testing.assert_allclose(table.scores["proxy_loss"], last, rtol=1e-5)
    handed = {row for rows in trainer.journal.epochs for row in rows}
    assert set(np.flatnonzero(np.isfinite(table.scores["loss"]))) == handed
    assert table.presentations.tolist() == [len(trainer.journal.seen[row]) for row in range(N)]


def test_steps_are_counted_beforehand_and_shares_may_change_from_epoch_to_epoch() -> None:
    loader, trainer = make(keep=[1.0, 0.5, 0.25])
    steps = []
    expected = [11, 6, 3, 3]
    for _ in range(4):
        assert len(loader) == expected[len(steps)]
        steps.append(sum(1 for batch in loader if trainer.step(batch) is None))
        loader.pruning.begin_pass()
    assert steps == expected
    assert loader.pruning.total_steps(4) == sum(steps)
    loader.pruning.detach()
    assert (len(loader), next(len(y) for _, y in loader)) == (11, BATCH)


class Kinds(Leaky):
    def __getitem__(self, i: int) -> Any:
        x, y = super().__getitem__(i)
        return {"input": x, "labels": y, "path": f"{i}.png", "pair": (x * 2, np.float32(i))}


def with_images(samples: list[Any]) -> Any:
    """Images of many sizes are no tensor, as in detection."""
    batch = default_collate(samples)
    return {**batch, "images": [torch.full((3, 2 + i % 5), i) for i in map(int, batch["pair"][1].tolist())]}


def test_a_batch_keeps_its_type() -> None:
    loader, _ = make(Kinds(N), collate_fn=with_images)
    batch = next(iter(loader))
    rows = batch["input"][:, 0].long().tolist()
    assert batch["path"] == [f"{row}.png" for row in rows]
    assert batch["pair"][0][:, 0].tolist() == [2 * row for row in rows]
    assert batch["pair"][1].tolist() == rows
    assert [int(image[0, 0]) for image in batch["images"]] == rows


def test_a_run_resumes_after_any_step() -> None:
    check_run_resumes(make, 3)


def test_an_evaluation_gets_whole_batches_and_teaches_the_proxy_nothing() -> None:
    proxy = Proxy()
    loader, trainer = make(proxy=proxy)
    trainer.model.eval()
    with torch.no_grad():
        assert sorted(torch.cat([x[:, 0] for x, _ in loader]).tolist()) == list(range(N))
    assert torch.equal(proxy.weight, WEIGHT)


def on_ranks(rank: int, world_size: int) -> list[list[int]]:
    dataset, model = Leaky(N), Net()
    sampler = DistributedSampler(dataset)
    loader = DataLoader(dataset, batch_size=BATCH, sampler=sampler)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.PruneSamplerWarning)
        loader = ps.attach(loader, model, policy=ps.ProxyFilter(Proxy(), keep=0.5, optimizer=sgd))
    trainer = Trainer(model, Journal())
    for epoch in range(2):
        sampler.set_epoch(epoch)
        trainer.epoch(loader)
    return trainer.journal.epochs[:-1]


def test_each_rank_filters_its_own_batches() -> None:
    first, second = run_ranks(2, on_ranks)
    for mine, others in zip(first, second, strict=True):
        assert len(mine) == len(others)
        assert not set(mine) & set(others)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("proxy", {"proxy": "tiny"}),
        ("proxy", {"proxy": nn.ReLU()}),
        ("keep", {"keep": 0.0}),
        ("keep", {"keep": 1.5}),
        ("keep", {"keep": []}),
        ("every", {"every": 0}),
        ("optimizer", {"optimizer": 0.1}),
    ],
)
def test_options_are_checked_at_once(argument: str, options: dict[str, Any]) -> None:
    with pytest.raises(ps.ArgumentError, match=rf"^{argument} must"):
        ps.ProxyFilter(**{"proxy": Proxy(), **options})


def test_a_proxy_of_another_shape_is_refused_and_so_is_a_batch_without_samples() -> None:
    loader, _ = make(proxy=nn.Sequential(Proxy(), nn.Unflatten(1, (1, 3))))
    with pytest.raises(ps.UnsupportedError, match="the proxy gives logits of shape"):
        next(iter(loader))
    with pytest.raises(ps.UnsupportedError, match="no tensor of 8 samples"):
        ps.capture.batch_slice.batch_slice([object()] * 3, torch.tensor([0]), 8)


def test_states_with_and_without_a_proxy_do_not_mix() -> None:
    loader, _ = make()
    state = loader.pruning.state_dict()
    state["proxy"] = None
    with pytest.raises(ps.StateError, match="proxy"):
        loader.pruning.load_state_dict(state)


@pytest.mark.parametrize("example", [torch.zeros(3, 16, 16), torch.zeros(2, 3, 50, 70), torch.zeros(7)])
def test_a_tiny_proxy_takes_what_it_was_made_for(example: torch.Tensor) -> None:
    proxy = ps.tiny_proxy(example, 5)
    batch = example if example.dim() == 4 else example.expand(4, *example.shape)
    assert proxy(batch).shape == (len(batch), 5)
    for wrong in (torch.zeros(3, dtype=torch.int64), torch.zeros(1, 1, 1, 1, 1), "image"):
        with pytest.raises(ps.ArgumentError, match=r"^example must"):
            ps.tiny_proxy(wrong, 5)
