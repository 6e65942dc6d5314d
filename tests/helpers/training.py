"""A training run that writes down by hand what attach must find out: the oracle of the whole path.

The dataset leaks its index as the first number of every input, so whatever reaches the model says which row it is.
"""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

CLASSES = 3


class Leaky(Dataset):
    """``n`` rows of (index, three features), and a label that the features nearly tell."""

    def __init__(self, n: int = 40, seed: int = 0, kind: str = "tuple") -> None:
        generator = np.random.default_rng(seed)
        features = generator.normal(size=(n, 3)).astype(np.float32)
        index = np.arange(n, dtype=np.float32)[:, None]
        self.x = torch.from_numpy(np.concatenate([index, features], axis=1))
        noisy = features + generator.normal(scale=0.8, size=features.shape)
        self.targets = torch.from_numpy(noisy.argmax(axis=1))
        self.kind = kind

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        x, y = self.x[i], self.targets[i]
        if self.kind == "dict":
            return {"input_ids": x, "attention_mask": torch.ones(4), "labels": y}
        if self.kind == "three":
            return x, y, f"path/{i}"
        return x, y


class ManyAtOnce(Leaky):
    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[i] for i in indices]


class Net(nn.Module):
    """Learns quickly and forgets often; ignores the leaked index."""

    def __init__(self, seed: int = 0, output: str = "tensor") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.body = nn.Linear(3, 8)
        self.head = nn.Linear(8, CLASSES)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.7
        self.output = output

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None) -> Any:
        logits = self.head(torch.relu(self.body(input_ids[:, 1:])))
        if self.output == "hf":
            loss = None if labels is None else cross_entropy(logits, labels)
            return {"loss": loss, "logits": logits}
        if self.output == "inception":
            return logits, logits * 0.5
        return logits


class Journal:
    """What was seen in training, one presentation after another, in plain Python."""

    def __init__(self) -> None:
        self.seen: dict[int, list[tuple[float, bool]]] = defaultdict(list)
        self.epochs: list[list[int]] = [[]]
        self.recording = True

    def write(self, x: Tensor, logits: Tensor, y: Tensor) -> None:
        rows = x[:, 0].long().tolist()
        self.epochs[-1] += rows
        if not self.recording:
            return
        for row, z, label in zip(rows, logits.detach().double().tolist(), y.tolist(), strict=True):
            shift = max(z)
            exponentials = [np.exp(value - shift) for value in z]
            p = [value / sum(exponentials) for value in exponentials]
            error = sum((value - (k == label)) ** 2 for k, value in enumerate(p)) ** 0.5
            right = z.index(shift) == label
            self.seen[row].append((float(error), right))

    def end_epoch(self) -> None:
        self.epochs.append([])

    def el2n(self, row: int) -> float:
        values = [error for error, _ in self.seen[row]]
        return sum(values) / len(values) if values else float("nan")

    def halves(self, row: int) -> tuple[float, float]:
        """The mean EL2N over the odd and over the even epochs, of a row that came once in each."""
        values = [error for error, _ in self.seen[row]]
        odd, even = values[0::2], values[1::2]
        return sum(odd) / len(odd), sum(even) / len(even)

    def superfluous(self, n: int, threshold: float) -> set[int]:
        """The rows that keep="auto" is to remove; asserts that some go, some stay, and that none is at the limit."""
        gone = set()
        for row in range(n):
            odd, even = self.halves(row)
            higher = self.el2n(row) + abs(odd - even) / 2
            assert abs(higher - threshold) > 1e-5
            if self.learned(row) and not self.forgetting(row) and higher <= threshold:
                gone.add(row)
        assert 0 < len(gone) < n
        return gone

    def forgetting(self, row: int) -> int:
        rights = [right for _, right in self.seen[row]]
        return sum(before and not after for before, after in itertools.pairwise(rights))

    def learned(self, row: int) -> bool:
        return any(right for _, right in self.seen[row])


def inputs_of(batch: Any) -> tuple[Tensor, Tensor]:
    return (batch["input_ids"], batch["labels"]) if isinstance(batch, dict) else (batch[0], batch[1])


def logits_of(output: Any) -> Tensor:
    if isinstance(output, dict):
        return output["logits"]
    return output[0] if isinstance(output, tuple) else output


class Trainer:
    """An ordinary loop, with switches for what people do in theirs."""

    def __init__(self, model: nn.Module, journal: Journal, lr: float = 0.4) -> None:
        self.model, self.journal = model, journal
        self.optimizer = torch.optim.SGD(model.parameters(), lr=lr)

    @property
    def rows(self) -> list[int]:
        """All that it was trained on, one after another."""
        return [row for epoch in self.journal.epochs for row in epoch]

    def forward(self, batch: Any) -> Tensor:
        x, y = inputs_of(batch)
        output = self.model(**batch) if isinstance(batch, dict) else self.model(x)
        logits = logits_of(output)
        self.journal.write(x, logits, y)
        return cross_entropy(logits.float(), y)

    def step(self, batch: Any) -> None:
        loss = self.forward(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def epoch(self, batches: Any) -> None:
        self.model.train()
        for batch in batches:
            self.step(batch)
        self.journal.end_epoch()


def lookahead(loader: Any) -> Iterator[Any]:
    """One batch ahead, as Accelerate, the HF Trainer and timm do it."""
    iterator = iter(loader)
    try:
        current = next(iterator)
    except StopIteration:
        return
    for upcoming in iterator:
        yield current
        current = upcoming
    yield current


def evaluate(model: nn.Module, loader: Any) -> None:
    was = model.training
    model.eval()
    with torch.no_grad():
        for batch in loader:
            model(inputs_of(batch)[0])
    model.train(was)


def ema(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def check_scores(table: Any, journal: Journal, rows: int | Sequence[int]) -> None:
    """These rows alone, with the same EL2N to 1e-6, same forgetting events, same flags and counts."""
    rows = range(rows) if isinstance(rows, int) else rows
    assert table.rows.tolist() == list(rows)
    expected = np.array([journal.el2n(row) for row in rows])
    np.testing.assert_allclose(table.scores["el2n"], expected, rtol=0, atol=1e-6)
    assert table.presentations.tolist() == [len(journal.seen[row]) for row in rows]
    assert table.forgetting_events.tolist() == [journal.forgetting(row) for row in rows]
    assert table.learned.tolist() == [journal.learned(row) for row in rows]


def hardest(journal: Journal, n: int, count: int) -> set[int]:
    """The rows of the highest EL2N; asserts that no tie decides."""
    order = sorted(range(n), key=journal.el2n, reverse=True)
    assert journal.el2n(order[count - 1]) > journal.el2n(order[count]) + 1e-7
    return set(order[:count])
