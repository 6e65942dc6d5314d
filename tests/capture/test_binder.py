"""Which batch a forward was given, recognised by its values."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from prunesampler.capture.binder import Binder, Pass
from prunesampler.errors import ArgumentError, BindingError


def batch(number: int, size: int = 4) -> Any:
    """Inputs that differ from batch to batch in a few places only, as padded or dark ones do."""
    x = torch.zeros(size, 10)
    x[:, 0] = torch.arange(size) + number * size
    return x, torch.zeros(size, dtype=torch.long)


class Loop:
    """A binder with the loader's side of the conversation."""

    def __init__(self, **options: Any) -> None:
        self.binder = Binder(**options)
        self.open: Pass = self.binder.start()

    def fetch(self, number: int, training: bool = True, of: Pass | None = None) -> Any:
        x, y = batch(number)
        self.binder.fetched(of or self.open, x[:, 0].long(), (x, y), y, training)
        return x

    def bind(self, *inputs: Any) -> list[int] | None:
        token = self.binder.match(inputs)
        return None if token is None else token.rows.tolist()


def rows(number: int) -> list[int]:
    return list(range(4 * number, 4 * number + 4))


@given(st.integers(1, 3), st.lists(st.booleans(), min_size=1, max_size=20), st.booleans())
def test_any_lookahead_and_any_skips(depth: int, trains: list[bool], reshaped: bool) -> None:
    loop, fetched, bound = Loop(), [], []
    for number, train in enumerate(trains):
        while len(fetched) < min(number + depth, len(trains)):
            fetched.append(loop.fetch(len(fetched)))
        if len(fetched) == len(trains):
            loop.open.exhausted = True
        if train:
            x = fetched[number]
            bound.append(loop.bind(x.reshape(2, 20) if reshaped else x))
    assert bound == [rows(number) for number, train in enumerate(trains) if train]


def test_a_second_forward_on_the_same_batch_is_ignored() -> None:
    loop = Loop()
    x = loop.fetch(0)
    loop.fetch(1)
    assert loop.bind(x) == rows(0)
    assert loop.bind(x) is None  # the same tensor
    assert loop.bind(x.clone()) is None  # moved to the device once more
    assert loop.bind(x.detach()) is None  # recomputed by reentrant checkpointing


def test_a_buffer_that_is_filled_anew_is_a_new_batch() -> None:
    loop, static = Loop(), torch.zeros(4, 10)
    for number in range(3):
        static.copy_(loop.fetch(number))
        assert loop.bind(static) == rows(number)


def test_casts_and_device_copies_still_match() -> None:
    loop = Loop()
    for number, cast in enumerate([torch.bfloat16, torch.float64, torch.float16]):
        assert loop.bind(loop.fetch(number).to(cast)) == rows(number)


def test_nan_inputs_match_themselves() -> None:
    loop = Loop()
    x, y = batch(0)
    x[0, 3] = float("nan")
    loop.binder.fetched(loop.open, x[:, 0].long(), (x, y), y, True)
    assert loop.bind(x.clone()) == rows(0)


def test_a_constant_mask_tells_nothing() -> None:
    loop = Loop()
    for number in range(2):
        x, y = batch(number)
        made = {"mask": torch.ones(4, 10), "ids": x, "labels": y}
        loop.binder.fetched(loop.open, x[:, 0].long(), made, y, True)
    assert loop.bind({"mask": torch.ones(4, 10), "ids": batch(1)[0]}) == rows(1)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: 0.9 * x + 0.1 * x.flip(0),  # mixup
        lambda x: torch.cat([x[:, :5], x.flip(0)[:, 5:]], dim=1) + x.roll(1, 0) * 0.01,  # CutMix
        lambda x: x.chunk(2)[0],  # micro-batches
        lambda x: torch.cat([x, x]),  # several crops
        lambda x: torch.randn(4, 10),  # unlabelled data first
    ],
)
def test_changed_inputs_are_refused_with_the_cures(change: Any) -> None:
    loop = Loop()
    x = loop.fetch(1)
    with pytest.raises(BindingError, match=r"inputs_changed=.*rescore=.*forwards="):
        loop.bind(change(x))


def test_a_forward_on_something_else_is_refused_or_ignored() -> None:
    other = torch.randn(4, 10)
    loop = Loop()
    assert loop.bind(loop.fetch(0)) == rows(0)
    with pytest.raises(BindingError, match="forwards="):
        loop.bind(other)
    loop = Loop(forwards="matching")
    for number in range(20):
        x = loop.fetch(number)
        if number % 2:
            assert loop.bind(other + number) is None
        assert loop.bind(x) == rows(number)
        assert loop.bind(other - number) is None


def test_augmented_inputs_are_bound_one_at_a_time() -> None:
    loop = Loop(inputs_changed="augmented")
    loop.fetch(7, training=False)  # left behind by an evaluation
    for number in range(3):
        noisy = loop.fetch(number) + torch.randn(4, 10)
        assert loop.bind(noisy) == rows(number)
        assert loop.bind(noisy) is None
    loop.fetch(3)
    x = loop.fetch(4)
    with pytest.raises(BindingError, match="2 batches wait"):
        loop.bind(x + 1)
    with pytest.raises(BindingError, match="one training forward"):
        Loop(inputs_changed="augmented").bind(x)


def test_nested_training_passes_are_refused_and_nested_evaluations_are_not() -> None:
    loop = Loop()
    assert loop.bind(loop.fetch(0)) == rows(0)
    inner = loop.binder.start()
    loop.fetch(5, training=False, of=inner)
    assert loop.binder.waiting(inner)
    x = loop.fetch(1)
    assert not loop.binder.waiting(inner)
    assert loop.bind(x) == rows(1)
    second = loop.binder.start()
    assert loop.bind(loop.fetch(6, of=second)) == rows(6)
    with pytest.raises(BindingError, match="interleaved"):
        loop.fetch(2)


def test_a_model_that_is_never_called_is_noticed() -> None:
    loop = Loop()
    for number in range(64):
        loop.fetch(number)
    with pytest.raises(BindingError, match=r"model\.forward\(x\)"):
        loop.fetch(64)
    loop = Loop()
    for number in range(1000):
        loop.fetch(number, training=False)  # a long evaluation
    loop = Loop()
    loop.binder.expect_skips(100)
    for number in range(101):  # a loop that resumes by skipping batches
        x = loop.fetch(number)
    assert loop.bind(x) == rows(100)


def test_forwards_before_the_first_batch_are_warm_up() -> None:
    assert Binder().match((torch.zeros(2, 3),)) is None


def test_counting_alone_needs_no_values() -> None:
    loop = Loop()
    loop.binder.follow(False)
    fetched = [loop.fetch(0), loop.fetch(1)]
    for number in range(2, 6):
        assert loop.bind(fetched[number - 2] * 0.5 + 3) == rows(number - 2)
        fetched.append(loop.fetch(number))
    assert loop.open.trained == 4


def test_wrong_options_are_refused() -> None:
    for options in ({"inputs_changed": "mixup"}, {"forwards": "some"}):
        with pytest.raises(ArgumentError):
            Binder(**options)
    with pytest.raises(ArgumentError, match="compared"):
        Binder(forwards="matching", inputs_changed="augmented")


def test_what_was_not_compared_at_once_is_compared_at_the_end_of_the_epoch() -> None:
    loop = Loop()
    assert loop.bind(loop.fetch(0)) == rows(0)
    x = loop.fetch(1)
    loop.binder._suspect([x])
    loop.binder.check()
    loop.binder._suspect([x + 1])
    loop.binder._suspect([x])
    loop.binder._suspect([x[:2]])
    with pytest.raises(BindingError, match="2 training forwards"):
        loop.binder.check()
    loop.binder.check()


@pytest.mark.gpu
def test_binding_on_a_gpu_does_not_synchronise_once_settled() -> None:
    loop = Loop()
    for number in range(40):
        x = loop.fetch(number).cuda()
        if number == 20:
            torch.cuda.set_sync_debug_mode("error")
        try:
            assert loop.binder.match((x,)) is not None
        finally:
            if number == 39:
                torch.cuda.set_sync_debug_mode("default")
    loop.binder.check()


def sparse(number: int, size: int = 4) -> Tensor:
    """Nearly all values are 0, and those that the probe looks at first."""
    x = torch.zeros(size, 20_000)
    x[torch.arange(size), 90 * number + 7 + torch.arange(size)] = 1.0 + torch.arange(size)
    return x


def mostly_equal(number: int, size: int = 4) -> Tensor:
    """The same picture but for one value, where the probe does not look."""
    x = torch.arange(size * 20_000.0).reshape(size, 20_000)
    x[1, 11 + number] += 0.5
    return x


def missing(number: int, size: int = 4) -> Tensor:
    x = sparse(number, size)
    return torch.where(x == 0, torch.nan, x)


def torch_sparse(number: int) -> Tensor:
    return sparse(number).to_sparse()


def moved(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x.clone()


@pytest.mark.parametrize("make", [sparse, mostly_equal, missing, torch_sparse])
@pytest.mark.parametrize("passed_on", [moved, lambda x: x])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_alike_batches_are_told_apart_by_what_differs(make: Any, passed_on: Any, depth: int) -> None:
    binder = Binder()
    of, bound, queued = binder.start(), [], []
    for number in range(20):
        x, y = make(number), torch.zeros(4, dtype=torch.long)
        binder.fetched(of, torch.tensor([number]), (x, y), y, True)
        queued.append((number, passed_on(x)))
        del x
        if len(queued) == depth:
            number, given = queued.pop(0)
            if number % 5 not in (1, 2):
                token = binder.match((given,))
                assert token is not None
                bound.append(token.rows.item() == number)
    assert len(bound) >= 10
    assert all(bound)


@pytest.mark.parametrize("make", [sparse, mostly_equal])
def test_a_second_forward_on_a_copy_is_not_the_alike_batch_that_waits(make: Any) -> None:
    binder = Binder()
    of, y = binder.start(), torch.zeros(4, dtype=torch.long)
    first, second = make(0), make(1)
    for number, x in enumerate((first, second)):
        binder.fetched(of, torch.tensor([number]), (x, y), y, True)
    for x, row in ((first, 0), (first, None), (second, 1)):
        token = binder.match((x.double(),))
        assert (None if token is None else token.rows.item()) == row


@pytest.mark.parametrize("make", [sparse, mostly_equal])
def test_alike_data_that_the_loader_does_not_have_is_refused(make: Any) -> None:
    binder = Binder()
    of, y = binder.start(), torch.zeros(4, dtype=torch.long)
    binder.fetched(of, torch.tensor([0]), (make(0), y), y, True)
    with pytest.raises(BindingError, match="not a batch of the loader"):
        binder.match((0.3 * make(0) + 0.7 * make(0).flip(0),))
    with pytest.raises(BindingError, match="not a batch of the loader"):
        binder.match((make(5),))


def test_an_input_that_was_changed_is_not_excused_by_a_mask_that_was_not() -> None:
    binder = Binder()
    of, y = binder.start(), torch.zeros(4, dtype=torch.long)
    x, mask = torch.randn(4, 10), torch.rand(4, 10) > 0.5
    binder.fetched(of, torch.tensor([0]), (x, y, mask), y, True)
    with pytest.raises(BindingError, match="inputs_changed="):
        binder.match((0.9 * x + 0.1 * x.flip(0), mask))


def twins(binder: Binder, targets: tuple[int, ...], size: int = 2) -> tuple[Pass, list[Tensor]]:
    """Waiting batches of which every one has the same inputs."""
    of, given = binder.start(), []
    for number, target in enumerate(targets):
        x, y = torch.zeros(size, 3), torch.full((size,), target)
        binder.fetched(of, torch.tensor([number]), {"x": x, "labels": y}, y, True)
        given.append(x)
    return of, given


def test_batches_with_the_same_inputs_are_told_apart_by_targets_that_the_model_gets_too() -> None:
    binder = Binder()
    twins(binder, (3, 4, 5))
    token = binder.match({"x": torch.zeros(2, 3), "labels": torch.full((2,), 4)})
    assert token is not None
    assert token.rows.item() == 1


@pytest.mark.parametrize("targets", [(0, 0), (0, 1)])
def test_batches_that_nothing_tells_apart_are_refused_unless_they_are_the_very_tensors(targets: Any) -> None:
    binder = Binder()
    twins(binder, targets)
    with pytest.raises(BindingError, match=r"2 batches.*rescore="):
        binder.match((torch.zeros(2, 3, dtype=torch.float64),))
    binder = Binder()
    _, given = twins(binder, targets)
    token = binder.match((given[1],))
    assert token is not None
    assert token.rows.item() == 1


def test_an_empty_batch_that_waits_alone_is_taken() -> None:
    binder = Binder()
    twins(binder, (0,))
    assert binder.match((torch.zeros(2, 3).double(),)) is not None


def test_a_loop_that_looks_ahead_over_the_same_sample_twice_keeps_its_order() -> None:
    binder = Binder()
    of, y, seen = binder.start(), torch.zeros(1, dtype=torch.long), []
    inputs = [torch.full((1, 3), float(value)) for value in (1, 2, 2, 2, 3)]
    for number, x in enumerate([*inputs, None]):
        if x is not None:
            binder.fetched(of, torch.tensor([number]), (x, y), y, True)
        else:
            of.exhaust()
        if number:
            token = binder.match((inputs[number - 1].double(),))
            assert token is not None
            seen.append(token.rows.item())
    assert seen == [0, 1, 2, 3, 4]


def test_of_equal_batches_that_of_the_newest_pass_is_trained_on() -> None:
    loop = Loop()
    loop.fetch(0)  # a peek
    loop.open = loop.binder.start()
    x = loop.fetch(0)
    token = loop.binder.match((x.double(),))
    assert token is not None
    assert token.of is loop.open


def test_a_pass_that_is_read_ahead_of_comes_first() -> None:
    loop = Loop()
    for number in (0, 1):
        loop.fetch(number)
    old, loop.open = loop.open, loop.binder.start()
    old.exhaust()
    assert loop.bind(batch(0)[0].double()) == rows(0)
    for number in (0, 1):
        loop.fetch(number)
    token = loop.binder.match((batch(1)[0].double(),))
    assert token is not None
    assert token.of is old


def test_few_batches_are_held() -> None:
    binder = Binder()
    of, y, held = binder.start(), torch.zeros(4, dtype=torch.long), []
    for _ in range(20):
        x = torch.randn(4, 10)
        binder.fetched(of, torch.arange(4), (x, y), y, False)
        held.append(weakref.ref(x))
        del x
    assert [number for number, x in enumerate(held) if x() is not None] == [16, 17, 18, 19]


def test_a_thread_may_read_ahead_further_than_a_loop_may_skip() -> None:
    loop = Loop()
    read = threading.Thread(target=lambda: [loop.fetch(number) for number in range(300)])
    read.start()
    read.join()
    for number in range(300):
        assert loop.bind(batch(number)[0].double()) == rows(number)
    loop = Loop()
    read = threading.Thread(target=lambda: [loop.fetch(number) for number in range(300)])
    read.start()
    read.join()
    with pytest.raises(BindingError, match="no training forward"):
        loop.binder.check_called()
