"""Work that is done ahead, in threads that end when there is none."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable


class ReadAhead:
    """Does what is wanted last, in order, while its process does something else.

    Args:
        do: called with each number; False: no more of them now. What it raises is dropped, for whoever needs the number
            itself meets the same error.
        threads: at once, at most.
    """

    def __init__(self, do: Callable[[int], bool], threads: int) -> None:
        self._do, self._most = do, threads
        self._lock, self._running = threading.Lock(), 0
        self._wanted: frozenset[int] = frozenset()
        self._left: list[int] = []  # the next one at the end

    def want(self, numbers: Iterable[int]) -> None:
        """Do these, those of earlier calls no more; the same ones as before are not done again."""
        numbers = list(numbers)
        with self._lock:
            if self._wanted == (wanted := frozenset(numbers)):
                return
            self._left = [number for number in reversed(numbers) if number not in self._wanted or number in self._left]
            self._wanted = wanted
            for _ in range(min(self._most, len(self._left)) - self._running):
                self._running += 1
                threading.Thread(target=self._work, name="prunesampler read ahead", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._left:
                    self._running -= 1
                    return
                number = self._left.pop()
            try:
                more = self._do(number)
            except Exception:
                continue
            if not more:
                with self._lock:
                    self._left, self._wanted = [], frozenset()
