"""Rows through webdataset's stages: each sample holds its row, and must come out beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import webdataset as wds

from prunesampler.capture.rows import RowBatch
from prunesampler.errors import UnsupportedError
from prunesampler.shards.pipeline import rows_through

invoke = wds.DataPipeline().invoke


def dicts(n: int = 10) -> Iterator[RowBatch]:
    return (RowBatch(np.asarray(i), {"__key__": str(i), "x": i, "y.txt": str(i).encode()}) for i in range(n))


def run(*stages: Any, source: Iterable[Any] | None = None) -> list[RowBatch]:
    stream: Iterator[Any] = iter(dicts() if source is None else source)
    for stage in stages:
        stream = iter(rows_through(stage, stream, invoke))
    return list(stream)


def doubled(sample: dict[str, Any]) -> dict[str, Any]:
    return {"x": sample["x"]}


def odd(sample: dict[str, Any]) -> bool:
    return bool(sample["x"] % 2)


def failing(sample: dict[str, Any]) -> dict[str, Any]:
    if sample["x"] == 4:
        raise ValueError
    return {"x": sample["x"]}


ONE_BY_ONE: list[tuple[Any, ...]] = [
    (wds.map(doubled),),
    (wds.decode(partial=True),),
    (wds.map(failing, handler=lambda error: True),),
    (wds.select(odd),),
    (wds.rename(x="x", keep=False),),
    (wds.rename_keys(x="x"),),
    (wds.map_dict(x=int),),
    (wds.shuffle(4, initial=3),),
    (wds.detshuffle(6),),
    (wds.rsample(0.5),),
    (wds.slice(2, 7),),
    (wds.associate({}),),
    (wds.filters.Cached(),),
    (wds.shuffle(3), wds.select(odd), wds.decode(partial=True), wds.shuffle(2)),
]


@pytest.mark.parametrize("stages", ONE_BY_ONE, ids=lambda stages: repr(stages)[:30])
def test_single_samples(stages: tuple[Any, ...]) -> None:
    out = run(*stages)
    assert out
    for row, sample in out:
        assert int(row) == sample["x"]
        assert "__row__" not in sample


def test_tuples() -> None:
    for stage in (wds.to_tuple("x", "y.txt"), wds.extract_keys("x", "*.txt")):
        out = run(stage, wds.shuffle(5), wds.map_tuple(lambda x: x + 100))
        assert sorted(int(row) for row, _ in out) == list(range(10))
        assert all(sample[0] == row + 100 for row, sample in out)


@pytest.mark.parametrize("partial", [True, False])
def test_batches_and_apart_again(partial: bool) -> None:
    batches = run(wds.shuffle(4), wds.to_tuple("x"), wds.batched(4, partial=partial))
    assert [len(rows) for rows, _ in batches] == [4, 4, 2][: 3 if partial else 2]
    for rows, (x,) in batches:
        assert rows.dtype == np.int64
        assert rows.tolist() == list(x)
    single = run(wds.shuffle(2), wds.filters.unbatched(), wds.shuffle(3), wds.batched(3), source=batches)
    for rows, (x,) in single:
        assert rows.tolist() == list(x)


def test_rows_follow_a_collation_that_sorts() -> None:
    def backwards(samples: list[Any]) -> Any:
        return np.array([sample[0] for sample in samples])[::-1]

    for rows, x in run(wds.to_tuple("x"), wds.batched(4, collation_fn=backwards)):
        assert rows.tolist() == x.tolist()


def test_lists_and_dict_batches() -> None:
    for rows, listed in run(wds.batched(3, collation_fn=None)):
        assert isinstance(listed, list)
        assert rows.tolist() == [sample["x"] for sample in listed]
    back = run(wds.batched(3, collation_fn=None), wds.filters.unlisted())
    assert [int(row) for row, _ in back] == [sample["x"] for _, sample in back] == list(range(10))
    for rows, batch in run(wds.map(doubled), wds.batched(batchsize=6)):
        assert rows.tolist() == batch["x"].tolist()


def stage(function: Callable[[Iterator[Any]], Iterator[Any]]) -> Any:
    return function


@stage
def several_crops(source: Iterator[Any]) -> Iterator[Any]:
    for sample in source:
        yield sample["x"]
        yield sample["x"]


@stage
def ahead(source: Iterator[Any]) -> Iterator[Any]:
    before = next(source)
    for sample in source:
        yield before["x"]
        before = sample
    yield before["x"]


@stage
def sorted_dicts(source: Iterator[Any]) -> Iterator[Any]:
    yield from sorted(source, key=lambda sample: -sample["x"])


def test_stages_of_ones_own() -> None:
    assert [(int(row), x) for row, x in run(several_crops)] == [(i // 2, i // 2) for i in range(20)]
    assert [(int(row), sample["x"]) for row, sample in run(sorted_dicts)] == [(9 - i, 9 - i) for i in range(10)]
    with pytest.raises(UnsupportedError, match="ahead"):
        run(ahead)


def test_what_has_no_row_yet_passes() -> None:
    shards = [{"url": "a.tar"}, {"url": "b.tar"}]
    plain: list[Any] = run(wds.map(dict), wds.batched(2), source=shards)
    assert not any(isinstance(item, RowBatch) for item in plain)
    passed: list[Any] = run(wds.split_by_worker, wds.shuffle(1), ahead_of_urls, source=shards)
    assert passed == shards


def ahead_of_urls(source: Iterator[Any]) -> Iterator[Any]:
    yield from list(source)
