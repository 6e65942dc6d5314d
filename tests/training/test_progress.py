from __future__ import annotations

from prunesampler.training.progress import Progress


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
