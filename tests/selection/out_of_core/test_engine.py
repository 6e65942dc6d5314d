from __future__ import annotations

import pyarrow as pa
import pytest

from tests.helpers.blockfiles import THREADS


def table(values: range) -> pa.Table:
    return pa.table({"n": pa.array(values, pa.int64()), "square": pa.array([n * n for n in values], pa.int64())})


def test_parts_come_in_order_again_and_again() -> None:
    blocks = THREADS.map(table, [range(5), range(0), range(5, 7)])
    for _ in range(2):
        assert [part["n"].to_pylist() for part in blocks.parts()] == [[0, 1, 2, 3, 4], [5, 6]]
        assert [part.to_pydict() for part in blocks.parts(["n"], rows=4)] == [{"n": [0, 1, 2, 3]}, {"n": [4, 5, 6]}]


def test_nothing_has_no_parts() -> None:
    nothing = THREADS.map(table, [range(0)])
    assert list(nothing.parts(["n"], rows=2)) == list(nothing.sorted("n").map(lambda part: part).parts()) == []


def test_sorted_parts_are_mapped_one_by_one() -> None:
    blocks = THREADS.map(table, [range(-3, 1), range(1, 3)]).sorted("square")
    sums = blocks.map(lambda part: pa.table({"sum": [sum(part["square"].to_pylist())]}))
    assert [part["sum"].to_pylist() for part in sums.parts()] == [[0 + 1 + 1], [4 + 4 + 9]]


def test_what_is_not_held_is_made_anew_and_not_far_ahead() -> None:
    made: list[int] = []

    def one(number: int) -> pa.Table:
        made.append(number)
        return table(range(number, number + 1))

    blocks = THREADS.map(one, range(100))
    first = next(blocks.parts())
    assert first["n"].to_pylist() == [0]
    assert len(made) < 20
    assert [part["n"].to_pylist() for part in blocks.parts(rows=40)] == [
        [*range(40)],
        [*range(40, 80)],
        [*range(80, 100)],
    ]
    made.clear()
    held = blocks.held()
    for _ in range(2):
        assert sum(len(part) for part in held.parts()) == 100
    assert sorted(made) == list(range(100))


def test_what_a_thread_raises_is_raised_where_it_is_read() -> None:
    blocks = THREADS.map(lambda number: table(range(1 // number)), [1, 0]).held()
    parts = blocks.parts()
    assert len(next(parts)) == 1
    with pytest.raises(ZeroDivisionError):
        next(parts)
