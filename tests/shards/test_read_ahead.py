from __future__ import annotations

import threading
import time

from prunesampler.shards.read_ahead import ReadAhead


def _wait() -> None:
    while threads := [thread for thread in threading.enumerate() if thread.name == "prunesampler read ahead"]:
        threads[0].join()


def test_what_is_wanted_is_done_once_in_order_and_no_thread_stays() -> None:
    done: list[int] = []

    def do(number: int) -> bool:
        done.append(number)
        if number == 2:
            raise OSError("whoever needs it meets the same error")
        return True

    ahead = ReadAhead(do, threads=1)
    ahead.want([3, 1, 2, 5])
    _wait()
    assert done == [3, 1, 2, 5]
    ahead.want([5, 1, 2, 3])
    ahead.want([5, 1, 9])
    _wait()
    assert done == [3, 1, 2, 5, 9]


def test_what_is_no_longer_wanted_is_not_done() -> None:
    done, go_on = [], threading.Event()

    def do(number: int) -> bool:
        done.append(number)
        go_on.wait()
        return number != 7

    ahead = ReadAhead(do, threads=2)
    ahead.want(range(6))
    while len(done) < 2:
        time.sleep(0.001)
    ahead.want([4, 7, 8, 9])
    go_on.set()
    _wait()
    assert sorted(done[:2]) == [0, 1]
    assert {4, 7} <= set(done)  # 7 has found no room for more
    assert set(done) <= {0, 1, 4, 7, 8}
