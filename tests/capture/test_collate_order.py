"""Collate functions of all kinds, each beside the same one done to the samples' numbers: the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence, pad_sequence
from torch.utils.data import DataLoader, default_collate

from prunesampler.capture.row_loader import with_rows
from prunesampler.errors import PruneSamplerWarning, UnsupportedError

N, BATCH = 48, 8
GENERATOR = torch.Generator().manual_seed(0)
IMAGES = [(torch.randn(3, 6, 6, generator=GENERATOR), int(i)) for i in torch.randint(4, (N,), generator=GENERATOR)]
SEQUENCES = [(torch.randint(1, 50, (2 + i * 7 % 9,), generator=GENERATOR), i % 4) for i in range(N)]
TOKENS = [
    {"input_ids": x.tolist(), "attention_mask": [1] * len(x), "token_type_ids": [0] * len(x), "labels": y}
    for x, y in SEQUENCES
]
TEXTS = [(f"text {i * 31 % N}", ("cat", "dog", "eel")[i * i % 3]) for i in range(N)]
BLANK = [(torch.zeros(784).index_fill_(0, torch.tensor([i]), 1.0), i % 4) for i in range(N)]
PICTURES = [(np.random.default_rng(i).integers(0, 255, (6, 5, 3), np.uint8), int(y)) for i, (_, y) in enumerate(IMAGES)]


def stacked(samples: list[Any]) -> Any:
    return torch.stack([torch.as_tensor(x) for x, _ in samples]), torch.tensor([y for _, y in samples])


def augmented(samples: list[Any]) -> Any:
    x, y = stacked(samples)
    return x.flip(-1) + 0.1, y


def padded(samples: list[Any], time_first: bool = False) -> Any:
    x = pad_sequence([x for x, _ in samples], batch_first=not time_first)
    return x, torch.tensor([len(x) for x, _ in samples]), torch.tensor([y for _, y in samples])


def tokens(samples: list[Any], left: bool = False) -> Any:
    width = max(len(sample["input_ids"]) for sample in samples)
    batch = {}
    for name, pad in (("input_ids", 0), ("attention_mask", 0), ("token_type_ids", 0)):
        filled = [(sample[name], [pad] * (width - len(sample[name]))) for sample in samples]
        batch[name] = torch.tensor([b + a if left else a + b for a, b in filled])
    batch["labels"] = torch.tensor([sample.pop("labels") for sample in samples])  # in place, as some collators do
    return batch


def encoded(samples: list[Any]) -> Any:
    codes = {"cat": 2, "dog": 0, "eel": 1}
    return torch.tensor([[len(t), ord(t[-1])] for t, _ in samples]), torch.tensor([codes[y] for _, y in samples])


def packed(samples: list[Any]) -> Any:
    samples = sorted(samples, key=lambda sample: -len(sample[0]))
    return pack_sequence([x for x, _ in samples]), torch.tensor([y for _, y in samples])


def in_place(samples: list[Any]) -> Any:
    samples.sort(key=lambda sample: sample[1])
    return stacked(samples)


class Held:
    def __init__(self, samples: list[Any]) -> None:
        self.pixels, self.classes = stacked(samples)


def half_flipped(samples: list[Any]) -> Any:
    x, y = stacked(samples)
    x[::2] = x[::2].flip(-1)
    return x, y


def mixed(samples: list[Any]) -> Any:
    x, y = stacked(samples)
    return 0.3 * x + 0.7 * x.flip(0), y, y.flip(0), 0.3


def contrasted(samples: list[Any]) -> Any:
    x, y = stacked(samples)
    return x, x.flip(0), (y == y.flip(0)).long()


def loader(data: list[Any], collate: Any, **options: Any) -> Any:
    samples = [dict(sample) if isinstance(sample, dict) else sample for sample in data]
    options = {"batch_size": BATCH, "shuffle": True, "generator": torch.Generator().manual_seed(1), **options}
    return DataLoader(samples, collate_fn=collate, **options)  # type: ignore[arg-type]


def drawn(**options: Any) -> list[list[int]]:
    return [batch.tolist() for batch in loader(list(range(N)), torch.tensor, **options)]


# What a collate function does to its samples; `rows` are the numbers of the samples, and what is returned are theirs.
Reorder = Callable[[list[Any], list[int]], list[int]]


def same(samples: list[Any], rows: list[int]) -> list[int]:
    return rows


def backwards(samples: list[Any], rows: list[int]) -> list[int]:
    return rows[::-1]


def by_label(samples: list[Any], rows: list[int]) -> list[int]:
    return [row for _, row in sorted(zip(samples, rows, strict=True), key=lambda pair: pair[0][1])]


def by_length(samples: list[Any], rows: list[int]) -> list[int]:
    return [row for _, row in sorted(zip(samples, rows, strict=True), key=lambda pair: -len(pair[0][0]))]


def without_twos(samples: list[Any], rows: list[int]) -> list[int]:
    return [row for sample, row in zip(samples, rows, strict=True) if sample[1] != 2]


def twos_refilled(samples: list[Any], rows: list[int]) -> list[int]:
    return [rows[0] if sample[1] == 2 else row for sample, row in zip(samples, rows, strict=True)]


def twice(samples: list[Any], rows: list[int]) -> list[int]:
    return rows + rows


def applied(collate: Any, reorder: Reorder) -> Any:
    def collate_fn(samples: list[Any]) -> Any:
        return collate([samples[i] for i in reorder(samples, list(range(len(samples))))])

    return collate_fn


FOLLOWED = [
    (data, collate, reorder)
    for data, collate in [
        (IMAGES, stacked),
        (IMAGES, lambda samples: {"image": stacked(samples)[0], "label": stacked(samples)[1]}),
        (IMAGES, lambda samples: tuple(zip(*samples, strict=True))),
        (IMAGES, lambda samples: samples),
        (IMAGES, Held),
        (BLANK, stacked),
        (PICTURES, stacked),
        (SEQUENCES, lambda samples: padded(samples)),
        (SEQUENCES, lambda samples: padded(samples, time_first=True)),
    ]
    for reorder in (same, backwards, by_label, without_twos, twos_refilled, twice)
] + [
    (TOKENS, tokens, same),
    (TOKENS, tokens, backwards),
    (TOKENS, lambda samples: tokens(samples, left=True), backwards),
    (SEQUENCES, packed, by_length),
    (IMAGES, in_place, by_label),
    (SEQUENCES, padded, by_length),
]


@pytest.mark.parametrize(("data", "collate", "reorder"), FOLLOWED)
def test_rows_follow_the_collated_batch(data: Any, collate: Any, reorder: Reorder) -> None:
    reorders_itself = collate in (packed, in_place)
    batches = with_rows(loader(data, collate if reorders_itself else applied(collate, reorder)))
    found = [rows.tolist() for rows, _ in batches]
    assert found == [reorder([data[row] for row in rows], rows) for rows in drawn()]


@pytest.mark.parametrize(
    ("data", "collate"),
    [
        (IMAGES, augmented),
        (IMAGES, half_flipped),
        (IMAGES, mixed),
        (IMAGES, contrasted),
        (IMAGES, lambda samples: (augmented(samples)[0], torch.eye(4)[augmented(samples)[1]])),
        (TEXTS, encoded),
        (PICTURES, lambda samples: (stacked(samples)[0].permute(0, 3, 1, 2) / 255, stacked(samples)[1])),
        (IMAGES, default_collate),
        (BLANK, lambda samples: (torch.zeros(len(samples), 784), stacked(samples)[1])),
    ],
)
def test_a_batch_in_order_is_not_refused(data: Any, collate: Any) -> None:
    assert [rows.tolist() for rows, _ in with_rows(loader(data, collate))] == drawn()


def elsewhere(samples: list[Any]) -> Any:
    return stacked([(torch.ones(3, 6, 6), 3) if y == 2 else (x, y) for x, y in samples])


@pytest.mark.parametrize(
    ("data", "collate"),
    [
        (IMAGES, applied(augmented, by_label)),
        (IMAGES, applied(augmented, backwards)),
        (TEXTS, applied(encoded, by_label)),
        (TEXTS, applied(encoded, backwards)),
        (PICTURES, applied(lambda s: (stacked(s)[0] / 255, stacked(s)[1]), backwards)),
        (IMAGES, elsewhere),
    ],
)
def test_an_order_that_cannot_be_known_is_refused_and_row_fn_cures_it(data: Any, collate: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"collates a batch in another order .* give row_fn="):
        list(with_rows(loader(data, collate)))

    numbered = [(sample, row) for row, sample in enumerate(data)]

    def collate_both(samples: list[Any]) -> Any:
        order = torch.tensor([row for _, row in samples]).flip(0)
        return collate([sample for sample, _ in samples]), order

    found = list(with_rows(loader(numbered, collate_both), row_fn=lambda batch: batch[1]))
    assert [rows.tolist() for rows, _ in found] == [rows[::-1] for rows in drawn()]


def test_what_cannot_be_compared_is_said_once() -> None:
    def lengths(samples: list[Any]) -> Any:
        return torch.tensor([[len(text), 1.5] for text, _ in samples])

    with pytest.warns(PruneSamplerWarning, match="nothing of the samples is found .* give row_fn=") as warned:
        assert [rows.tolist() for rows, _ in with_rows(loader(TEXTS, lengths))] == drawn()
    assert len(warned) == 1


def test_a_sample_that_is_none_and_was_replaced_is_found() -> None:
    holes: list[Any] = [None if row % 5 == 0 else sample for row, sample in enumerate(IMAGES)]

    def refill(samples: list[Any]) -> Any:
        first = next(sample for sample in samples if sample is not None)
        return stacked([first if sample is None else sample for sample in samples])

    def from_elsewhere(samples: list[Any]) -> Any:
        return stacked([(torch.ones(3, 6, 6), 1) if sample is None else sample for sample in samples])

    def expected(rows: list[int]) -> list[int]:
        first = next(row for row in rows if row % 5)
        return [row if row % 5 else first for row in rows]

    assert [rows.tolist() for rows, _ in with_rows(loader(holes, refill))] == [expected(rows) for rows in drawn()]
    with pytest.raises(UnsupportedError, match="row_fn="):
        list(with_rows(loader(holes, from_elsewhere)))


class Late:
    """Sorts from the thirtieth batch on."""

    def __init__(self) -> None:
        self.batches = 0

    def __call__(self, samples: list[Any]) -> Any:
        self.batches += 1
        return stacked(samples if self.batches < 30 else sorted(samples, key=lambda sample: sample[1]))


def test_later_batches_are_compared_too() -> None:
    found = [rows.tolist() for rows, _ in with_rows(loader(IMAGES * 8, Late()))]
    rows = [batch.tolist() for batch in loader(list(range(8 * N)), torch.tensor)]
    expected = [by_label([(IMAGES * 8)[row] for row in some], some) if k >= 29 else some for k, some in enumerate(rows)]
    # Samples that are equal in all that they hold cannot be told apart, and need not be.
    assert [[row % N for row in some] for some in found] == [[row % N for row in some] for some in expected]


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}])
def test_workers_compare_where_they_collate(options: dict[str, Any]) -> None:
    followed = loader(IMAGES, in_place, **options)
    assert [rows.tolist() for rows, _ in with_rows(followed)] == [
        by_label([IMAGES[row] for row in rows], rows) for rows in drawn()
    ]
    with pytest.raises(UnsupportedError, match="row_fn="):
        list(with_rows(loader(IMAGES, applied(augmented, by_label), **options)))


def test_equal_samples_may_be_taken_for_one_another() -> None:
    data = [(torch.zeros(9), 1), (torch.ones(9), 0)] * (N // 2)
    for rows, (x, _) in with_rows(loader(data, applied(stacked, backwards))):
        assert (rows % 2).tolist() == x[:, 0].tolist()
        assert len(rows.unique()) == BATCH


def test_nothing_random_is_drawn() -> None:
    states = []
    for read in (list, lambda loader: list(with_rows(loader))):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        read(loader(IMAGES, stacked, generator=None))
        states.append((torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()))  # noqa: NPY002
    assert states[0] == states[1]
