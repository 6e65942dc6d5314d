"""The tracker against an oracle that looks at presentations one by one."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunesampler.errors import ArgumentError, PruneSamplerWarning, StateError, UnsupportedError
from prunesampler.scores import logits as scores
from prunesampler.tables.score_table import ScoreTable
from prunesampler.tracking.epoch_buffers import BatchQueue, EpochBuffers
from prunesampler.tracking.totals import Totals
from prunesampler.tracking.tracker import ScoreTracker
from tests.helpers.ranks import run_ranks
from tests.helpers.resume import check_resume, through_a_file

N, C = 12, 3
SCORES = ("el2n", "loss", "margin", "entropy")
ANSWERS = ("suggested_label", "signed_confidence")
Batch = tuple[list[int], Tensor, Tensor]


class Oracle:
    """The definitions, for one presentation after another."""

    def __init__(self) -> None:
        self.values: dict[str, dict[int, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
        self.correct: dict[int, list[bool]] = defaultdict(list)
        self.labels: dict[int, int] = {}
        self.epoch: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.halves: list[dict[str, dict[int, list[float]]]] = [
            defaultdict(lambda: defaultdict(list)),
            defaultdict(lambda: defaultdict(list)),
        ]
        self.epochs = 0
        self.answer: dict[int, tuple[int, float, bool]] = {}
        self.answers: dict[int, list[tuple[int, float, bool, int]]] = defaultdict(list)

    def see(self, name: str, row: int, value: float) -> None:
        self.epoch[name][row].append(value)

    def update(self, batch: Batch) -> None:
        rows, logits, targets = batch
        for name in SCORES if rows else ():
            for row, value in zip(rows, getattr(scores, name)(logits, targets).tolist(), strict=True):
                self.see(name, row, value)
        for row, z, y in zip(*batch, strict=True):
            self.correct[row].append(z.tolist().index(max(z.tolist())) == int(y))
            self.labels[row] = int(y)
            others = [(value, -place) for place, value in enumerate(z.tolist()) if place != int(y)]
            best, place = max(others)
            self.answer[row] = -place, float(z.double().softmax(0).max()), z[int(y)].item() >= best

    def end_epoch(self) -> None:
        self.epochs += any(name in SCORES for name in self.epoch)
        for name, rows in self.epoch.items():
            for row, values in rows.items():
                self.values[name][row].append(values)
                self.halves[self.epochs % 2][name][row] += values
        self.epoch.clear()
        for row, answer in self.answer.items():
            counted = sum(count for *_, count in self.answers[row])
            self.answers[row].append((*answer, len(self.correct[row]) - counted))
        self.answer.clear()

    def half(self, name: str, parity: int) -> list[float]:
        rows = self.halves[parity][name]
        return [math.fsum(rows[row]) / len(rows[row]) if row in rows else math.nan for row in range(N)]

    def check_halves(self, table: ScoreTable, reduction: str) -> None:
        measured = [name for name in table.scores if name in SCORES]
        spread = {f"{name}_spread" for name in measured if reduction == "mean" and self.epochs > 1}
        assert {name for name in table.scores if name.endswith("_spread")} == spread
        for name in measured:
            protocol = dict(table.protocols[name])
            agreement = protocol.pop("split_half", None)
            assert protocol == {"kind": "online", "epochs": self.epochs, "reduction": reduction, "runs": 1}
            if f"{name}_spread" not in spread:
                assert agreement is None
                continue
            odd, even = np.array(self.half(name, 1)), np.array(self.half(name, 0))
            np.testing.assert_allclose(table.scores[f"{name}_spread"], np.abs(odd - even), rtol=3e-6, atol=1e-6)
            assert table.protocols[f"{name}_spread"] == {**table.protocols[name], "spread_of": name}
            both = ~np.isnan(odd + even)
            if both.sum() < 2:
                assert agreement is None
            elif all(len(set(half[both].round(4))) == both.sum() for half in (odd, even)):  # nothing near a tie
                assert agreement == pytest.approx(scipy.stats.spearmanr(odd[both], even[both]).statistic, abs=1e-9)

    def column(self, name: str, reduction: str) -> list[float]:
        column = []
        for row in range(N):
            epochs = self.values[name].get(row, [])
            values = [v for epoch in epochs for v in epoch] if reduction == "mean" else (epochs or [[]])[-1]
            column.append(math.fsum(values) / len(values) if values else math.nan)
        return column

    def check(self, table: ScoreTable, reduction: str = "mean") -> None:
        for name, found in table.scores.items():
            if name.endswith("_spread"):
                continue
            np.testing.assert_allclose(found, self.column(name, reduction), rtol=3e-6, atol=1e-6)
        history = [self.correct.get(row, []) for row in range(N)]
        assert table.presentations.tolist() == [len(past) for past in history]
        assert table.labels.tolist() == [self.labels.get(row, -1) for row in range(N)]
        self.check_answers(table)
        if table.forgetting_events is not None:
            events = [sum(a and not b for a, b in itertools.pairwise(past)) for past in history]
            assert table.forgetting_events.tolist() == events
            assert table.learned.tolist() == [any(past) for past in history]

    def check_answers(self, table: ScoreTable) -> None:
        assert table.suggested_label is not None
        assert table.signed_confidence is not None
        for row, suggested, confidence in zip(range(N), table.suggested_label, table.signed_confidence, strict=True):
            answers, leader, lead, trust = self.answers.get(row, []), -1, 0, 1.5
            for label, _, right, _ in answers:
                if label == leader:
                    lead = min(lead + 1, 2)
                elif lead:
                    lead -= 1
                else:
                    leader = label
                step = 0.5 if trust == 1.5 else 1
                trust = min(max(trust + (step if right else -step), 0), 3)
            assert suggested == leader
            assert math.isnan(confidence) == (not answers)
            if answers:
                mean = sum(sure * count for _, sure, _, count in answers) / sum(count for *_, count in answers)
                assert abs(confidence) == pytest.approx(mean, abs=0.003)
                assert (confidence > 0) == (trust >= 2)


def batch_of(rows: list[int], seed: int) -> Batch:
    """Small integers as logits, so that ties are frequent; the label follows from the row."""
    logits = torch.from_numpy(np.random.default_rng(seed).integers(-2, 3, (len(rows), C)).astype(np.float32))
    return rows, logits, torch.tensor([row % C for row in rows], dtype=torch.int64)


STREAM = st.lists(  # epochs of batches of rows, any of them again and again
    st.lists(st.lists(st.integers(0, N - 1), min_size=0, max_size=6), max_size=20), min_size=1, max_size=4
)


@given(STREAM, st.integers(0, 2**32), st.sampled_from(["mean", "last"]))
@settings(max_examples=60)
def test_every_presentation_counts_in_its_order(stream: list[list[list[int]]], seed: int, reduction: Any) -> None:
    tracker = ScoreTracker(N, scores=("el2n", "margin", "forgetting", "entropy", "loss"), reduction=reduction)
    oracle = Oracle()
    for number, epoch in enumerate(stream):
        for step, rows in enumerate(epoch):
            batch = batch_of(rows, hash((seed, number, step)) % 2**32)
            tracker.update(*batch)
            oracle.update(batch)
        tracker.end_epoch()
        oracle.end_epoch()
    if any(rows for epoch in stream for rows in epoch):
        oracle.check(tracker.table(), reduction)
        oracle.check_halves(tracker.table(), reduction)
    else:
        with pytest.raises(StateError, match="nothing was scored"):
            tracker.table()


def test_the_table_says_how_it_was_measured() -> None:
    tracker = ScoreTracker(N, reduction="last")
    for _ in range(3):
        tracker.update(*batch_of([3, 4], 0))
        tracker.end_epoch()
    tracker.end_epoch()  # nothing in it
    table = tracker.table(keys=[f"k{row}" for row in range(N)], fingerprint="sha256:1", provenance={"seed": 1})
    protocol = {"kind": "online", "epochs": 3, "reduction": "last", "runs": 1}
    assert table.protocols == {"el2n": protocol, "forgetting": protocol}
    assert table.directions == {"el2n": "higher", "forgetting": "higher"}
    assert (table.fingerprint, table.provenance, tracker.epochs) == ("sha256:1", {"seed": 1}, 3)
    assert table.keys[-1] == f"k{N - 1}"


def test_never_learned_and_never_presented_are_not_the_same() -> None:
    tracker = ScoreTracker(3)
    tracker.update([0, 1], torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 0]))
    tracker.end_epoch()
    forgetting = tracker.table().column("forgetting")
    assert forgetting[:2].tolist() == [math.inf, 0]
    assert math.isnan(forgetting[2])


def test_what_comes_after_the_last_epoch_is_not_in_the_table() -> None:
    tracker = ScoreTracker(N)
    tracker.update(*batch_of([1], 0))
    with pytest.raises(StateError, match="end_epoch"):
        tracker.table()
    tracker.end_epoch()
    before = tracker.table()
    tracker.update(*batch_of([1, 2], 1))
    assert tracker.table() == before


def test_update_keeps_copies() -> None:
    rows, logits, targets = batch_of([1, 2, 3], 0)
    given_rows, given_logits = torch.tensor(rows), logits.clone().requires_grad_()
    tracker, oracle = ScoreTracker(N), Oracle()
    tracker.update(given_rows, given_logits, targets)
    oracle.update((rows, logits, targets.clone()))
    with torch.no_grad():
        given_logits.mul_(-3)
    given_rows.fill_(0)
    targets.fill_(2)
    tracker.end_epoch()
    oracle.end_epoch()
    oracle.check(tracker.table())


def test_batches_of_changing_shape_and_precision() -> None:
    tracker = ScoreTracker(N, scores=["margin"])
    sums, counts = np.zeros(N), np.zeros(N)
    for step in range(40):
        rows = [step % N, (5 * step) % N][: 1 + step % 2]
        logits = torch.randn(len(rows), 2 + step // 7, generator=torch.Generator().manual_seed(step))
        logits = logits.to([torch.float32, torch.bfloat16, torch.float64][step % 3])
        targets = torch.zeros(len(rows), dtype=[torch.int64, torch.uint8][step % 2])
        tracker.update(rows, logits, targets)
        np.add.at(sums, rows, scores.margin(logits, targets).numpy())
        np.add.at(counts, rows, 1)
    tracker.end_epoch()
    np.testing.assert_allclose(tracker.table().scores["margin"], sums / counts, rtol=1e-5, atol=1e-6)


def test_buffers_take_twenty_bytes_a_row() -> None:
    state = ScoreTracker(1000)
    state.update(*batch_of([0], 0))
    share = state.state_dict()["share"]
    tensors = [*(share[name] for name in ("presentations", "packed", "labels", "answers")), *share["sums"].values()]
    assert sum(tensor.nbytes for tensor in tensors) == 20 * 1000


def test_what_audit_reads_can_be_left_out() -> None:
    whole, less = ScoreTracker(N), ScoreTracker(N, audit=False)
    for tracker in (whole, less):
        for seed in range(3):
            tracker.update(*batch_of([0, 4, 5, 4], seed))
            tracker.end_epoch()
    table, expected = less.table(), whole.table()
    assert table.suggested_label is None
    assert table.signed_confidence is None
    assert table.scores["el2n"].tobytes() == expected.scores["el2n"].tobytes()
    assert table.forgetting_events is not None
    assert expected.forgetting_events is not None
    assert table.forgetting_events.tolist() == expected.forgetting_events.tolist()
    again = ScoreTracker(N, audit=False)
    again.load_state_dict(through_a_file(less.state_dict()))
    assert again.table().scores["el2n"].tobytes() == table.scores["el2n"].tobytes()
    with pytest.raises(StateError):
        ScoreTracker(N).load_state_dict(less.state_dict())


@pytest.mark.parametrize("reduction", ["mean", "last", "running"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_left_out_of_its_mean_and_counted(bad: float, reduction: Any) -> None:
    tracker = ScoreTracker(N, scores=["el2n", "forgetting"], reduction=reduction)
    finite = {row: [] for row in range(3)}
    for seed in range(4):
        rows, logits, targets = batch_of([0, 1, 2], seed)
        if seed == 1:
            logits[1] = bad
        logits[2, 0] = bad
        for row in range(3):
            if row == 0 or (row == 1 and seed != 1):
                finite[row].append(float(scores.el2n(logits, targets)[row]))
        tracker.update(rows, logits, targets)
        tracker.record([5, 6], mine=[1.0 + seed, bad if seed else 2.0])
        tracker.end_epoch()
        if seed == 2:
            state = through_a_file(tracker.state_dict())
            tracker = ScoreTracker(N, scores=["el2n", "forgetting"], reduction=reduction)
            tracker.load_state_dict(state)
    assert tracker.non_finite == {"el2n": 1}
    with pytest.warns(
        PruneSamplerWarning, match=r"8 of 20 presentations \(40.00%\).*el2n has no value for 1 of 12 rows"
    ):
        table = tracker.table()

    def reduced(values: list[float]) -> float:
        if reduction == "mean":
            return math.fsum(values) / len(values)
        if reduction == "last":
            return values[-1]
        return functools.reduce(lambda mean, value: 0.7 * mean + 0.3 * value, values)

    expected = [reduced(finite[0]), reduced(finite[1]), math.nan]
    np.testing.assert_allclose(table.scores["el2n"][:3], expected, rtol=1e-6)
    np.testing.assert_allclose(table.scores["mine"][5:7], [reduced([1, 2, 3, 4]), 2.0], rtol=1e-6)
    assert table.presentations.tolist()[:3] == [4, 4, 4]


def test_a_run_of_nothing_but_nan_says_so() -> None:
    tracker = ScoreTracker(N)
    tracker.update([0, 1], torch.full((2, C), math.nan), [0, 1])
    with pytest.warns(PruneSamplerWarning, match="every score of this epoch is infinite or NaN"):
        tracker.end_epoch()
    with pytest.warns(PruneSamplerWarning, match=r"2 of 2 presentations \(100.00%\).*every one of them"):
        assert np.isnan(tracker.table().scores["el2n"]).all()


def test_a_warning_that_is_an_error_does_not_have_an_epoch_merged_twice() -> None:
    tracker = ScoreTracker(N)
    tracker.update([0, 1], torch.full((2, C), math.nan), [0, 1])
    with warnings.catch_warnings(), pytest.raises(PruneSamplerWarning):
        warnings.simplefilter("error")
        tracker.end_epoch()
    tracker.update([0, 2], torch.zeros(2, C), [0, 1])
    tracker.end_epoch()
    with pytest.warns(PruneSamplerWarning, match="2 of 4 presentations"):
        table = tracker.table()
    assert table.presentations.tolist()[:3] == [2, 1, 1]


@pytest.mark.parametrize("method", ["merge", "_merge_columns"])
def test_an_interrupt_right_after_the_merge_does_not_have_it_merged_twice(method: str, monkeypatch: Any) -> None:
    tracker = ScoreTracker(N)
    tracker.update(*batch_of([0, 1, 2], 0))
    real = getattr(Totals, method)

    def interrupted(*args: Any) -> None:
        real(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Totals, method, interrupted)
        tracker.end_epoch()
    with pytest.raises(StateError, match="interrupted"):
        tracker.end_epoch()
    if method == "merge":
        tracker.reset_epoch()
        assert tracker.table().presentations.tolist()[:4] == [1, 1, 1, 0]
    else:
        with pytest.raises(StateError, match="interrupted"):
            tracker.table()


def test_a_row_tells_the_epoch_that_its_score_is_of() -> None:
    tracker = ScoreTracker(4, scores=["loss"], reduction="last")
    for rows in ([0, 1, 2], [1], [1, 2]):
        tracker.update(rows, torch.zeros(len(rows), C), [0] * len(rows))
        tracker.end_epoch()
    assert tracker.table().last_epoch.tolist() == [0, 2, 2, -1]
    mean = ScoreTracker(4)
    mean.update([0], torch.zeros(1, C), [0])
    mean.end_epoch()
    assert mean.table().last_epoch is None


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=11), st.integers(1, 4))
def test_recent_forgetting_counts_from_where_the_present_window_began(answers: Any, window: int) -> None:
    tracker = ScoreTracker(4, forgetting_window=window)
    for right in answers:
        logits = torch.tensor([[2.0, 0.0, 0.0] if each else [0.0, 2.0, 0.0] for each in right])
        tracker.update([0, 1, 2], logits, [0, 0, 0])
        tracker.end_epoch()
    begin = (len(answers) - 1) // window * window
    expected = []
    for row in range(3):
        past = [right[row] for right in answers]
        events = [a and not b for a, b in itertools.pairwise(past)]
        expected.append(sum(events[max(0, begin - 1) :]) + window * (not any(past)))
    found = tracker.table().scores["recent_forgetting"]
    assert found[:3].tolist() == expected
    assert np.isnan(found[3])


@pytest.mark.parametrize("place", ["queue", "credit", "merge", "clear"])
def test_what_was_broken_off_in_the_middle_does_not_go_on_as_if_whole(place: str, monkeypatch: Any) -> None:
    owner, name = {
        "queue": (BatchQueue, "_copy"),
        "credit": (EpochBuffers, "_follow"),
        "merge": (Totals, "_add"),
        "clear": (EpochBuffers, "clear"),
    }[place]
    whole = ScoreTracker(N)
    whole.update(*batch_of([0, 1, 2], 0))
    whole.end_epoch()
    before = through_a_file(whole.state_dict())
    tracker = ScoreTracker(N)
    tracker.load_state_dict(before)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def interrupted(*args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(owner, name, interrupted)
        tracker.update(*batch_of([3, 4], 1))
        tracker.end_epoch()
    for step in (lambda: tracker.update(*batch_of([3, 4], 1)), tracker.end_epoch, tracker.state_dict, tracker.table):
        with pytest.raises(StateError, match="interrupted in the middle of a change"):
            step()
    if place == "merge":
        with pytest.raises(StateError, match=r"load_state_dict\(\)"):
            tracker.reset_epoch()
        tracker.load_state_dict(before)
    else:
        tracker.reset_epoch()
    merged = place == "clear"  # what had been merged stays
    if not merged:
        tracker.update(*batch_of([3, 4], 1))
        tracker.end_epoch()
    whole.update(*batch_of([3, 4], 1))
    whole.end_epoch()
    assert tracker.table() == whole.table()


DAMAGE = {
    "on no device": lambda tensor: tensor.to("meta"),
    "sparse": lambda tensor: tensor.to_sparse(),
    "negative": lambda tensor: tensor * 0 - 2,
    "NaN": lambda tensor: tensor * math.nan,
    "too long": lambda tensor: torch.cat([tensor, tensor]),
}
HELD = [
    *(("sums", "el2n"), ("odd_sums", "el2n"), ("non_finite", "presentations")),
    *((name,) for name in ("odd_presentations", "presentations", "forgetting_events", "last_epoch")),
]


@pytest.mark.parametrize(
    ("path", "damage"),
    # Sums of margins may be negative.
    [(path, name) for path in HELD for name in DAMAGE if name != "negative" or "sums" not in path[0]],
    ids=str,
)
def test_values_that_no_tracker_has_are_refused(damage: str, path: tuple[str, ...]) -> None:
    tracker = seen_tracker()
    tracker.update([0], torch.full((1, C), math.nan), [0])
    tracker.end_epoch()
    state = tracker.state_dict()
    place = state["totals"]["held"]
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = DAMAGE[damage](place[path[-1]])
    fresh = ScoreTracker(N)
    before = plain(fresh.state_dict())
    with pytest.raises(StateError, match=rf"state\['totals'\]\['held'\]\['{path[0]}'\]"):
        fresh.load_state_dict(state)
    assert plain(fresh.state_dict()) == before


@pytest.mark.parametrize("apart", ["in a batch", "in an epoch", "in two epochs"])
def test_a_changed_label_is_noticed(apart: str) -> None:
    tracker = ScoreTracker(N)
    tracker.update([1, 2], torch.zeros(2, C), [0, 0])
    tracker.end_epoch()
    before = tracker.table()
    tracker.update([3, 1], torch.zeros(2, C), [1, 0])
    if apart == "in a batch":
        tracker.update([5, 6, 5], torch.zeros(3, C), [1, 1, 2])
    elif apart == "in an epoch":
        tracker.update([5, 6], torch.zeros(2, C), [1, 1])
        tracker.update([7, 5], torch.zeros(2, C), [1, 0])
    else:
        tracker.update([7, 2], torch.zeros(2, C), [1, 2])
    for _ in range(2):
        with pytest.raises(StateError, match=f"row {2 if apart == 'in two epochs' else 5} came with two"):
            tracker.end_epoch()
    assert tracker.table() == before

    tracker.reset_epoch()
    tracker.update([2, 5], torch.zeros(2, C), [0, 2])
    tracker.end_epoch()
    labels = tracker.table().labels
    assert labels.tolist() == [-1, 0, 0, -1, -1, 2, *[-1] * 6]


def test_reset_epoch_forgets_this_epoch_alone() -> None:
    tracker, oracle = ScoreTracker(N), Oracle()
    for seed in range(4):
        if seed % 2:
            for extra in range(20):
                tracker.update(*batch_of([0, 1, 2, 1], 100 + extra))
            tracker.record([0], mine=[9.0])
            tracker.reset_epoch()
        batch = batch_of([0, 1, 2, 1], seed)
        tracker.update(*batch)
        tracker.record([1], mine=[seed])
        oracle.update(batch)
        oracle.see("mine", 1, seed)
        tracker.end_epoch()
        oracle.end_epoch()
    oracle.check(tracker.table())


@given(st.lists(st.lists(st.integers(0, N - 1), max_size=5), min_size=1, max_size=4), st.sampled_from(["mean", "last"]))
@settings(max_examples=40)
def test_own_columns_have_their_own_counts(epochs: list[list[int]], reduction: Any) -> None:
    tracker, oracle = ScoreTracker(N, reduction=reduction), Oracle()
    for number, rows in enumerate(epochs):
        batch = batch_of([number % N], number)
        tracker.update(*batch)
        oracle.update(batch)
        values = [0.25 * number + row for row in range(len(rows))]
        tracker.record(rows, mine=values, other=torch.tensor(values, dtype=torch.float16) * 2)
        for row, value in zip(rows, values, strict=True):
            oracle.see("mine", row, value)
            oracle.see("other", row, 2 * value)
        tracker.end_epoch()
        oracle.end_epoch()
    oracle.check(tracker.table(), reduction)
    assert ("mine" in tracker.table().scores) == any(epochs)


def test_works_in_and_out_of_inference_mode() -> None:
    with torch.inference_mode():
        tracker, oracle = ScoreTracker(N), Oracle()
        tracker.record([5], mine=[1.0])
    tracker.record([5], mine=[3.0])
    for value in (1.0, 3.0):
        oracle.see("mine", 5, value)
    for seed in range(4):
        batch = batch_of([seed, 5], seed)
        with torch.inference_mode(seed % 2 == 0):
            tracker.update(batch[0], batch[1] * 1, batch[2] * 1)
            tracker.record([seed], mine=torch.ones(1) * seed)
            tracker.end_epoch()
        oracle.update(batch)
        oracle.see("mine", seed, seed)
        oracle.end_epoch()
    oracle.check(tracker.table())


# -- score_fn ---------------------------------------------------------------------------------------------------


def soft(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    return {"soft": (logits.softmax(1) - targets).norm(dim=1), "correct": logits.argmax(1) == targets.argmax(1)}


@pytest.mark.parametrize("scores_", [None, ("soft", "forgetting")])
def test_a_score_function_scores_soft_targets(scores_: Any) -> None:
    tracker = ScoreTracker(N, score_fn=soft, scores=scores_)
    generator = torch.Generator().manual_seed(0)
    expected: dict[int, list[float]] = defaultdict(list)
    for _ in range(5):
        logits, targets = torch.randn(3, C, generator=generator), torch.rand(3, C, generator=generator)
        tracker.update([0, 4, 0], logits, targets)
        values = soft(logits, targets)
        for row, value in zip([0, 4, 0], values["soft"].tolist(), strict=True):
            expected[row].append(value)
        tracker.end_epoch()
    table = tracker.table()
    assert table.scores["soft"][[0, 4]].tolist() == pytest.approx([np.mean(expected[0]), np.mean(expected[4])])
    assert np.isnan(table.scores["soft"]).sum() == N - 2
    assert table.presentations[[0, 4]].tolist() == [10, 5]
    assert table.forgetting_events is not None
    assert table.labels is None


def test_score_fn_without_correct_has_no_forgetting() -> None:
    tracker = ScoreTracker(N, score_fn=lambda logits, targets: {"mine": logits[:, 0] + targets})
    tracker.update([2], torch.ones(1, C), torch.tensor([2]))
    tracker.end_epoch()
    table = tracker.table()
    assert table.forgetting_events is None
    assert table.scores["mine"][2] == 3
    assert table.labels[2] == 2


@pytest.mark.parametrize(
    ("returned", "scores_", "match"),
    [
        (None, None, "must return a dict"),
        ({"a": torch.zeros(2)}, ["b"], r"must return all scores that are asked for, \['b'\] are missing"),
        ({"a": torch.zeros(3)}, None, "a must be 2 numbers, one per row"),
        ({"row": torch.zeros(2)}, None, "must be named"),
        ({"correct": torch.zeros(2)}, None, '"correct" as bools'),
    ],
)
def test_what_a_score_fn_must_return(returned: Any, scores_: Any, match: str) -> None:
    tracker = ScoreTracker(N, score_fn=lambda *_: returned, scores=scores_)
    with pytest.raises(ArgumentError, match=match):
        tracker.update([0, 1], torch.zeros(2, C), None)


# -- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_rows": 0}, "num_rows"),
        ({"num_rows": 2.0}, "num_rows"),
        ({"scores": []}, "scores"),
        ({"scores": ["el2m"]}, "scores"),
        ({"scores": ["el2n", "el2n"]}, "scores"),
        ({"scores": 3}, "scores"),
        ({"reduction": "max"}, "reduction"),
        ({"device": "no such"}, "device"),
        ({"score_fn": 3}, "score_fn"),
    ],
)
def test_arguments_are_checked_at_construction(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{match} must"):
        ScoreTracker(**{"num_rows": N, **options})


@pytest.mark.parametrize(
    ("rows", "logits", "targets", "error", "match"),
    [
        ([0, 1], torch.zeros(2, C), [0, C], ArgumentError, r"targets must be in \[0, 3\): .*, got '0 … 3'"),
        ([0, 1], torch.zeros(2, C), [0, -1], ArgumentError, "targets must be in"),
        ([0, 1], torch.zeros(2, C), torch.tensor([0, 200], dtype=torch.uint8), ArgumentError, "targets must be in"),
        ([0, N], torch.zeros(2, C), [0, 0], ArgumentError, r"rows must be in \[0, 12\), got '0 … 12'"),
        ([0, -1], torch.zeros(2, C), [0, 0], ArgumentError, "rows must be in"),
        ([0.0, 1.0], torch.zeros(2, C), [0, 0], ArgumentError, "rows must be integers"),
        ([True, False], torch.zeros(2, C), [0, 0], ArgumentError, "rows must be integers"),
        ([[0, 1]], torch.zeros(2, C), [0, 0], ArgumentError, "rows must be integers"),
        (["a", "b"], torch.zeros(2, C), [0, 0], ArgumentError, "rows must be"),
        ([0], torch.zeros(2, C), [0, 0], ArgumentError, "rows must be 2, one per row of logits, got 1"),
        ([0, 1], torch.zeros(2, C), [0], ArgumentError, "targets must be 2, one per row of logits, got 1"),
        ([0, 1], torch.zeros(2, C), torch.zeros(2, C), UnsupportedError, "score_fn"),
        ([0, 1], torch.zeros(2, C, 4), [0, 0], UnsupportedError, "score_fn"),
        ([0, 1], torch.zeros(2), [0, 0], UnsupportedError, "score_fn"),
    ],
)
def test_bad_batches_are_refused_at_once_and_leave_no_trace(
    rows: Any, logits: Tensor, targets: Any, error: type, match: str
) -> None:
    tracker = ScoreTracker(N)
    tracker.update([1], torch.zeros(1, C), [1])
    before = through_a_file(tracker.state_dict())
    with pytest.raises(error, match=match):
        tracker.update(rows, logits, targets)
    assert str(tracker.state_dict()) == str(before)


@pytest.mark.parametrize(
    ("rows", "values", "match"),
    [
        ([0, 1], {"mine": [1.0]}, "mine must be 2 numbers, one per row"),
        ([0, N], {"mine": [1.0, 2.0]}, "rows must be in"),
        ([0], {"el2n": [1.0]}, "must not be a tracked score"),
        ([0], {"el2n_spread": [1.0]}, "must not be a tracked score or its spread"),
        ([0], {"label": [1.0]}, "must be named"),
        ([0], {"forgetting": [1.0]}, "must be named"),
        ([0], {"mine": ["a"]}, "mine must be"),
    ],
)
def test_bad_records_are_refused(rows: Any, values: dict[str, Any], match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        ScoreTracker(N).record(rows, **values)


def test_a_table_of_records_alone_has_no_other_column() -> None:
    tracker = ScoreTracker(N)
    tracker.record([2, 0], mine=[1.0, 3.0])
    assert "mine" in tracker.columns
    tracker.end_epoch()
    assert list(tracker.table().directions) == ["mine"]


# -- saved states --------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return ["tensor", str(value.dtype).removeprefix("torch."), value.tolist()] if isinstance(value, Tensor) else value


def tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: tensors(item) for key, item in value.items()}
    if isinstance(value, list) and value[:1] == ["tensor"]:
        return torch.tensor(value[2], dtype=getattr(torch, value[1]))
    return value


class Comparable:
    """A tracker whose states can be compared by ``==``."""

    def __init__(self, reduction: Any) -> None:
        self.tracker = ScoreTracker(N, reduction=reduction)

    def state_dict(self) -> dict[str, Any]:
        return plain(through_a_file(self.tracker.state_dict()))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.tracker.load_state_dict(tensors(state))


@pytest.mark.parametrize("reduction", ["mean", "last"])
def test_resumes_anywhere(reduction: str) -> None:
    def epoch(thing: Comparable, number: int, start: int) -> Iterator[Any]:
        for step in range(start, 4):
            thing.tracker.update(*batch_of([step, 2 * step, 5], 10 * number + step))
            if step % 2:
                thing.tracker.record([step], mine=[float(number)])
            yield thing.state_dict()["share"]
        thing.tracker.end_epoch()

    check_resume(lambda: Comparable(reduction), epoch)


@pytest.mark.parametrize("reduction", ["mean", "last"])
def test_an_interrupted_run_scores_as_one_that_was_not(reduction: Any) -> None:
    def run(cut: int | None) -> ScoreTable:
        tracker = ScoreTracker(N, reduction=reduction)
        for step in range(15):
            if step == cut:
                state = through_a_file(tracker.state_dict())
                tracker = ScoreTracker(N, reduction=reduction)
                tracker.load_state_dict(state)
            tracker.update(*batch_of([step % N, 2 * step % N, 5], step))
            tracker.record([step % 7], mine=[step])
            if step % 5 == 4:
                tracker.end_epoch()
        return tracker.table()

    uncut = run(None)
    for cut in range(15):
        assert run(cut) == uncut


def seen_tracker(**options: Any) -> ScoreTracker:
    tracker = ScoreTracker(N, **options)
    tracker.update(*batch_of([1, 2], 0))
    tracker.record([3], mine=[1.0])
    tracker.end_epoch()
    tracker.update(*batch_of([1, 3], 1))
    tracker.record([3], mine=[1.0])
    return tracker


@pytest.mark.parametrize(
    "other",
    [
        lambda: ScoreTracker(N + 1),
        lambda: ScoreTracker(N, scores=["el2n"]),
        lambda: ScoreTracker(N, scores=["forgetting", "loss"]),
        lambda: ScoreTracker(N, reduction="last"),
        lambda: ScoreTracker(N, score_fn=soft),
    ],
)
def test_a_state_of_another_configuration_is_refused(other: Callable[[], ScoreTracker]) -> None:
    with pytest.raises(StateError):
        other().load_state_dict(seen_tracker().state_dict())


def leaves(state: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in state.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))


def test_a_damaged_state_is_refused_and_changes_nothing() -> None:
    state = seen_tracker().state_dict()
    for path in list(leaves(state)):
        for damage in ("missing", "unknown", "another type", "longer"):
            if path[-1] == "mine" and damage == "missing" and path[-2] == "counts":
                continue  # then "sums" is what does not fit
            broken = through_a_file(state)
            part = broken
            for key in path[:-1]:
                part = part[key]
            value = part[path[-1]]
            if damage == "missing":
                del part[path[-1]]
            elif damage == "unknown":
                part["more"] = 1
            elif damage == "another type":
                part[path[-1]] = "text"
            elif isinstance(value, Tensor):
                part[path[-1]] = torch.cat([value, value[:1]])
            else:
                continue
            tracker = seen_tracker(reduction="mean")
            before = plain(tracker.state_dict())
            with pytest.raises(StateError):
                tracker.load_state_dict(broken)
            assert plain(tracker.state_dict()) == before, (path, damage)
    for nothing in (None, [], {}):
        with pytest.raises(StateError):
            ScoreTracker(N).load_state_dict(nothing)
    with pytest.raises(StateError, match="version"):
        ScoreTracker(N).load_state_dict({**state, "version": 1})


def test_a_loaded_state_replaces_what_was_seen() -> None:
    state = seen_tracker().state_dict()
    tracker = ScoreTracker(N)
    tracker.update(*batch_of([7, 8, 9], 5))
    tracker.record([7], third=[1.0])
    tracker.end_epoch()
    tracker.update(*batch_of([7, 8, 9], 6))
    tracker.record([7], fourth=[1.0])
    tracker.load_state_dict(state)
    assert plain(tracker.state_dict()) == plain(state)
    tracker.end_epoch()
    other = seen_tracker()
    other.end_epoch()
    assert tracker.table() == other.table()


def test_a_state_saved_by_the_first_release_goes_on() -> None:
    tracker = ScoreTracker(4)
    tracker.load_state_dict(torch.load(Path(__file__).parent / "data" / "tracker_state.pt", weights_only=True))
    tracker.end_epoch()
    table = tracker.table()
    wrong, sure = math.sqrt(2) / (1 + math.exp(-3)), math.sqrt(2) / (1 + math.exp(3))
    unsure = [math.sqrt(2) / (1 + math.exp(gap)) for gap in (0, 1)]
    expected = [np.mean(unsure), (wrong + sure) / 2, math.nan, math.nan]
    np.testing.assert_allclose(table.scores["el2n"], expected, rtol=1e-6)
    assert table.scores["mine"][2] == 1
    assert table.forgetting_events.tolist() == [0, 1, 0, 0]
    assert table.learned.tolist() == [True, True, False, False]


# -- several ranks ----------------------------------------------------------------------------------------------


def rank_batches(rank: int, world_size: int, epoch: int) -> list[Batch]:
    """As DistributedSampler deals them: reshuffled, padded by wrapping; ranks then have rows in common."""
    order = np.random.default_rng(epoch).permutation(N - 1).tolist()  # row N-1 is never presented
    total = -(-len(order) // world_size) * world_size
    order = (order + order)[: total + world_size * epoch]  # with more padding from epoch to epoch
    mine = order[rank::world_size]
    # what a row's logits are depends on the row and on the epoch alone: on several ranks it is the same sample
    return [
        (part, torch.cat([batch_of([row], 100 * epoch + row)[1] for row in part]), torch.tensor([r % C for r in part]))
        for part in (mine[i : i + 2] for i in range(0, len(mine), 2))
    ]


def scoring_rank(rank: int, world_size: int, reduction: str) -> dict[str, Any]:
    tracker = ScoreTracker(N, reduction=reduction)
    for epoch in range(4):
        for step, batch in enumerate(rank_batches(rank, world_size, epoch)):
            tracker.update(*batch)
            if rank + epoch:  # in the first epoch rank 0 does not know of this column
                tracker.record(batch[0][:1], mine=[100.0 * rank + 10.0 * epoch + batch[0][0]])
            if (epoch, step) == (2, 1):  # on the way into a new process
                state = through_a_file(tracker.state_dict())
                tracker = ScoreTracker(N, reduction=reduction)
                tracker.load_state_dict(state)
        tracker.end_epoch()
    result: dict[str, Any] = {"state": tracker.state_dict()}
    if rank == 0:
        table = tracker.table()
        result |= {name: torch.tensor(column) for name, column in table.scores.items()}
        result |= {
            name: torch.tensor(getattr(table, name))
            for name in ("forgetting_events", "learned", "presentations", "labels", *ANSWERS)
        }
    else:
        with pytest.raises(StateError, match="rank 0"):
            tracker.table()

    # all ranks refuse together, whoever saw it, and then go on
    tracker.update([1], torch.zeros(1, C), [1 if rank != 1 else 2])
    with pytest.raises(StateError, match="row 1 came with two"):
        tracker.end_epoch()
    tracker.reset_epoch()
    label = 1 if rank == 0 else 2
    tracker.update([N - 1], torch.zeros(1, C), [label])  # a row that was new to all
    with pytest.raises(StateError, match=f"row {N - 1} came with two"):
        tracker.end_epoch()
    tracker.reset_epoch()
    tracker.end_epoch()

    # inside an epoch a state belongs to its rank; between epochs rank 0's serves all
    tracker.update([0], torch.zeros(1, C), [0])
    inside, between = tracker.state_dict(), through_a_file(result["state"])
    inside["rank"], between["rank"] = (rank + 1) % world_size, 0
    with pytest.raises(StateError, match="inside an epoch by rank"):
        tracker.load_state_dict(inside)
    if rank == 0:
        tracker.load_state_dict(between)
        between["totals"]["held"] = None
        with pytest.raises(StateError, match="rank above 0"):
            tracker.load_state_dict(between)
    else:
        ScoreTracker(N, reduction=reduction, group=tracker._group).load_state_dict(
            {**between, "totals": {**between["totals"], "held": None}}
        )
    return result


@pytest.mark.parametrize(("world_size", "reduction"), [(2, "mean"), (3, "last")])
def test_ranks_together_score_what_one_process_would(world_size: int, reduction: str) -> None:
    results = run_ranks(world_size, scoring_rank, reduction)
    oracle = Oracle()
    for epoch in range(4):
        owner: dict[int, int] = {}
        recorder: dict[int, int] = {}
        for rank in range(world_size):
            for batch in rank_batches(rank, world_size, epoch):
                for row, z, y in zip(*batch, strict=True):
                    if owner.setdefault(row, rank) == rank:
                        oracle.update(([row], z[None], y[None]))
                if rank + epoch and recorder.setdefault(batch[0][0], rank) == rank:
                    oracle.see("mine", batch[0][0], 100.0 * rank + 10.0 * epoch + batch[0][0])
        oracle.end_epoch()
    found = results[0]
    table = ScoreTable(
        {name: found[name].numpy() for name in ("el2n", "mine")},
        **{name: found[name].numpy() for name in ("forgetting_events", "learned", "presentations", "labels", *ANSWERS)},
    )
    oracle.check(table, reduction)
    assert table.forgetting_events.sum() > 0
    for result in results[1:]:
        assert result["state"]["totals"]["held"] is None
        for shared in ("flags", "labels"):
            assert torch.equal(result["state"]["totals"][shared], found["state"]["totals"][shared])


# -- an accelerator ---------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("rows_on", ["cpu", "cuda"])
@pytest.mark.parametrize("targets_on", ["cpu", "cuda"])
def test_update_never_waits_for_the_device(rows_on: str, targets_on: str) -> None:
    tracker, oracle = ScoreTracker(N), Oracle()
    batches = [batch_of([step % N, (7 * step) % N, 3], step) for step in range(40)]
    moved = [(torch.tensor(r).to(rows_on), z.cuda(), y.to(targets_on)) for r, z, y in batches]
    extra = torch.ones(3, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in moved:
            tracker.update(*batch)
            tracker.record(batch[0], mine=extra)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for batch in batches:
        oracle.update(batch)
        for row in batch[0]:
            oracle.see("mine", row, 1.0)
    tracker.end_epoch()
    oracle.end_epoch()
    oracle.check(tracker.table())


@pytest.mark.gpu
def test_what_is_wrong_on_the_device_is_found_at_the_end_of_the_epoch() -> None:
    good = torch.tensor([0, 1], device="cuda")
    for rows, targets, match in (([0, N], [0, 0], "rows"), ([0, -1], [0, 0], "rows"), ([0, 1], [0, C], "targets")):
        tracker = ScoreTracker(N)
        tracker.update(torch.tensor(rows).cuda(), torch.zeros(2, C).cuda(), torch.tensor(targets).cuda())
        with pytest.raises(ArgumentError, match=f"^{match} must"):
            tracker.end_epoch()
        tracker.reset_epoch()
        tracker.update(good, torch.zeros(2, C).cuda(), good)
        tracker.end_epoch()
        assert tracker.table().presentations is not None
    host = ScoreTracker(N, device="cpu")
    with pytest.raises(ArgumentError, match="rows must"):
        host.update(torch.tensor([N]).cuda(), torch.zeros(1, C).cuda(), torch.tensor([0]).cuda())


def test_a_column_can_be_read_between_epochs() -> None:
    tracker = ScoreTracker(3, scores=["el2n"])
    tracker.update(torch.tensor([0, 2]), torch.tensor([[0.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 1]))
    tracker.end_epoch()
    expected = scores.el2n(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), torch.tensor([0, 1]))
    torch.testing.assert_close(tracker.value("el2n")[[0, 2]], expected)
    assert tracker.value("el2n")[1].isnan()
    assert tracker.merged == ["el2n"]
    with pytest.raises(ArgumentError, match=r"one of \['el2n'\]"):
        tracker.value("loss")
