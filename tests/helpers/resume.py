"""The resume test that every stateful object has to pass."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch


def through_a_file(state: dict[str, Any]) -> Any:
    """The state as a training script's checkpoint would give it back: plain Python and tensors only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def check_resume(
    factory: Callable[[], Any],
    epoch: Callable[[Any, int, int], Iterator[Any]],
    *,
    epochs: int = 3,
    carry: Callable[[dict[str, Any]], Any] = through_a_file,
) -> None:
    """Interrupt an object after every step of every epoch but the last; what resumes must do as it would have.

    Args:
        factory: makes the object anew, always in the same way.
        epoch: ``epoch(thing, number, start)`` does the steps start, start + 1, ... of an epoch, one whenever
            it is asked for the next item, and yields what can be seen of that step (compared by ``==``). What
            belongs to the end of an epoch stands after its last yield.
        epochs: how many; at least 2, so that a second epoch is resumed too.
        carry: what happens to a state between two processes.
    """
    whole = factory()
    record = [list(epoch(whole, number, 0)) for number in range(epochs)]
    for number, steps in enumerate(record[:-1]):
        for step in range(len(steps) + 1):
            thing = factory()
            for earlier in range(number):
                assert list(epoch(thing, earlier, 0)) == record[earlier]
            running = epoch(thing, number, 0)
            assert list(itertools.islice(running, step)) == steps[:step]
            at = (number, step)
            if step == len(steps):
                assert list(running) == [], "the end of the epoch was to come"
                at = (number + 1, 0)

            state = carry(thing.state_dict())
            resumed = factory()
            resumed.load_state_dict(state)
            assert carry(resumed.state_dict()) == state, f"the state that was just loaded changed at {at}"
            start = at[1]
            for later in range(at[0], epochs):
                seen = list(epoch(resumed, later, start))
                assert seen == record[later][start:], f"resumed at {at}, epoch {later} differs"
                start = 0
            assert list(running) == steps[step:], f"taking the state at {at} disturbed what was running"
