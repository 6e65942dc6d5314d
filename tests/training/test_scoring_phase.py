"""What is credited while scoring, and how an epoch that was cut off goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from prunesampler.capture.binder import Binder, Pass, Token
from prunesampler.errors import BindingError, StateError
from prunesampler.tables.score_table import ScoreTable
from prunesampler.tracking.ranks import Group
from prunesampler.tracking.tracker import ScoreTracker
from prunesampler.training.config import RunConfig
from prunesampler.training.policies.prune_once import PruneOnce
from prunesampler.training.progress import Progress
from prunesampler.training.scoring_phase import ScoringPhase, Seen

N, BATCH = 8, 2

CONFIG = RunConfig(PruneOnce(None, 2), ("el2n", "forgetting"), "mean", False, 0)


class Plain:
    """As much of a sampler's swap as is asked."""

    num_rows, eligible = N, None

    def batches(self) -> int:
        return N // BATCH


class OfStream(Plain):
    def batches(self) -> None:  # type: ignore[override]
        return None


def make(tracked: bool = True, rescore: Any = None) -> ScoringPhase:
    return ScoringPhase(
        CONFIG,
        Progress(2, N, N // BATCH),
        tracker=ScoreTracker(N) if tracked else None,
        rescore=rescore,
        group=Group(),
        seen=Seen(Group(), Plain(), tracked=tracked),
        keys=[f"k{i}" for i in range(N)],
        fingerprint="f",
    )


def token(of: Pass, index: int) -> Token:
    rows = torch.arange(BATCH) + index * BATCH
    return Token(rows, torch.zeros(BATCH, dtype=torch.long), of, index, True)


def logits() -> Tensor:
    return torch.tensor([[2.0, 0.0]] * BATCH)


def train(scoring: ScoringPhase, batches: Any) -> None:
    of = Pass(1)
    for index in batches:
        scoring.present(token(of, index), logits)


def counts(scoring: ScoringPhase) -> list[int]:
    table = scoring.table()
    assert table is not None
    assert table.presentations is not None
    return table.presentations.tolist()


def test_epochs_end_and_the_table_says_what_it_is_of() -> None:
    scoring = make()
    for due in (False, True):
        train(scoring, range(4))
        assert scoring.end_epoch(Binder()) is scoring.due is due
    table = scoring.table()
    assert table is not None
    assert counts(scoring) == [2] * N
    assert (table.keys, table.fingerprint) == ([f"k{i}" for i in range(N)], "f")
    assert table.provenance["scoring"] == CONFIG.scoring()


def test_unequal_numbers_are_refused_before_they_count() -> None:
    scoring = make()
    with pytest.raises(BindingError, match="2 rows, 3 logits"):
        scoring.present(token(Pass(1), 0), lambda: torch.zeros(3, 2))
    assert scoring.progress.rows == 0


def test_a_pass_of_its_own_stands_beside_or_instead() -> None:
    found: list[Any] = []

    def rescore(tracked: Any) -> ScoreTable:
        found.append(tracked)
        return ScoreTable({"el2n": [0.0] * N})

    scoring = make(tracked=False, rescore=rescore)
    assert not scoring.online
    scoring.present(token(Pass(1), 0), lambda: pytest.fail("nobody asks for logits"))
    assert scoring.progress.rows == BATCH
    assert scoring.table() is not None
    scoring = make(rescore=rescore)
    train(scoring, range(4))
    scoring.end_epoch(Binder())
    scoring.table()
    assert found[0] is None
    assert found[1].presentations.tolist() == [1] * N


@pytest.mark.parametrize(
    ("trained", "first", "loader_resumes", "over", "presentations"),
    [
        (2, 2, False, False, [1, 1, 1, 1, 0, 0, 1, 1]),  # the loop skips what it trained: the epoch goes on
        (2, 0, True, False, [1, 1, 1, 1, 0, 0, 1, 1]),  # the loader does
        (2, 0, False, False, [0, 0, 0, 0, 0, 0, 1, 1]),  # the epoch starts again
        (4, 0, False, True, [1, 1, 1, 1, 1, 1, 2, 2]),  # it was complete
        (4, 0, True, True, [1, 1, 1, 1, 1, 1, 2, 2]),
    ],
)
def test_an_epoch_that_was_cut_off(
    trained: int, first: int, loader_resumes: bool, over: bool, presentations: list[int]
) -> None:
    before = make()
    train(before, range(trained))
    scoring = make()
    scoring.load_state_dict(before.state_dict(), batches_open=trained)
    assert not scoring.due
    of = Pass(1)
    assert scoring.resume(token(of, first), loader_resumes=loader_resumes) is over
    assert of.trained == (trained if loader_resumes and not over else 0)
    if over:
        scoring.end_epoch(Binder())
    scoring.present(token(of, 3), logits)
    scoring.end_epoch(Binder())
    assert counts(scoring) == presentations


def test_a_state_of_another_protocol_is_refused() -> None:
    with pytest.raises(StateError, match="rescore="):
        make(tracked=False, rescore=lambda tracked: None).check_state(make().state_dict())


def test_a_failure_is_told_at_the_end_of_the_epoch() -> None:
    scoring = make()
    scoring.give_up()
    assert not scoring.online
    with pytest.raises(StateError, match="one of the ranks"):
        scoring.end_epoch(Binder())
    assert scoring.abandoned


def test_scoring_is_over_half_a_pass_early() -> None:
    progress = Progress(epochs=3, rows_per_pass=40, batches_per_pass=7)
    for rows, due in ((40, False), (40, False), (19, False), (1, True)):
        progress.train(rows)
        assert progress.is_due is due


def test_an_epoch_that_starts_again_counts_once() -> None:
    progress = Progress(epochs=1, rows_per_pass=40, batches_per_pass=7)
    progress.train(10)
    progress.end_epoch()
    progress.train(15)
    progress.restart_epoch()
    assert (progress.rows, progress.rows_open) == (10, 0)


def test_an_epoch_that_was_cut_off_comes_first() -> None:
    progress = Progress(epochs=1, rows_per_pass=40, batches_per_pass=7, rows=39, rows_open=39, cut_off=6)
    assert not progress.is_due
    progress.cut_off = 7  # it was complete
    assert progress.is_due
