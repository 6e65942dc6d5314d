from __future__ import annotations

import pyarrow as pa

from prunesampler.blocks.engine import Serial


def table(values: range) -> pa.Table:
    return pa.table({"n": pa.array(values, pa.int64()), "square": pa.array([n * n for n in values], pa.int64())})


def test_parts_come_in_order_again_and_again() -> None:
    blocks = Serial().map(table, [range(5), range(0), range(5, 7)])
    for _ in range(2):
        assert [part["n"].to_pylist() for part in blocks.parts()] == [[0, 1, 2, 3, 4], [5, 6]]
        assert [part.to_pydict() for part in blocks.parts(["n"], rows=4)] == [{"n": [0, 1, 2, 3]}, {"n": [4, 5, 6]}]


def test_nothing_has_no_parts() -> None:
    nothing = Serial().map(table, [range(0)])
    assert list(nothing.parts(["n"], rows=2)) == list(nothing.sorted("n").map(lambda part: part).parts()) == []


def test_sorted_parts_are_mapped_one_by_one() -> None:
    blocks = Serial().map(table, [range(-3, 1), range(1, 3)]).sorted("square")
    sums = blocks.map(lambda part: pa.table({"sum": [sum(part["square"].to_pylist())]}))
    assert [part["sum"].to_pylist() for part in sums.parts()] == [[0 + 1 + 1], [4 + 4 + 9]]
