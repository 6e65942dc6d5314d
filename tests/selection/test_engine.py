from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.blockfiles import THREADS


def test_results_come_in_order_and_not_far_ahead() -> None:
    begun: list[int] = []

    def square(number: int) -> int:
        begun.append(number)
        return number * number

    results = THREADS.map(square, range(100))
    assert next(results) == 0
    assert len(begun) < 20
    assert list(results) == [number * number for number in range(1, 100)]
    assert sorted(begun) == list(range(100))
    assert list(THREADS.map(square, [])) == []


def test_work_begins_before_anybody_reads() -> None:
    begun: list[Any] = []
    results = THREADS.map(begun.append, [1])
    THREADS.__enter__()._pool.submit(int).result()  # whatever was handed in before is begun by now
    assert begun == [1]
    assert list(results) == [None]


def test_what_a_thread_raises_is_raised_where_it_is_read() -> None:
    results = THREADS.map(lambda number: 1 // number, [1, 0])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
