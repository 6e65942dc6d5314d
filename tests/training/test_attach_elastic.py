"""Runs that are cut off and go on, on as many ranks as before, more or fewer."""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import prunesampler as ps
from tests.helpers.rankruns import Run, together
from tests.helpers.ranks import run_ranks
from tests.helpers.training import Leaky

ROWS, BATCH, EPOCHS, TOTAL = 48, 12, 3, 5  # BATCH of all ranks together: the same steps on any number of them
# (epoch, batches of it) after which the run is saved. A scoring epoch has 4 batches, a pruned one 2.
CUTS = {
    "before the first batch": (0, 0),
    "inside the first epoch": (0, 2),
    "between scoring epochs": (1, 0),
    "inside a scoring epoch": (2, 1),
    "at the last batch that is scored": (2, 4),
    "after the last epoch that is scored": (3, 0),
    "inside a pruned epoch": (3, 1),
    "at the last batch of a pruned epoch": (3, 2),
    "between pruned epochs": (4, 0),
}


def make(rank: int, world_size: int, **options: Any) -> Run:
    if options.pop("rescore", False):
        options["rescore"] = DataLoader(Leaky(ROWS), batch_size=16)
    return Run(rank, world_size, rows=ROWS, batch=BATCH // world_size, keep=0.5, score_epochs=EPOCHS, **options)


def save(run: Run, path: Path, epoch: int, done: int) -> None:
    state = {"pruning": run.loader.pruning.state_dict(), "model": run.net.state_dict(), "epoch": epoch, "done": done}
    torch.save(state, path)


def first_life(rank: int, world_size: int, folder: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    """A life that each rank saves at every cut. What was found at each, and at its end."""
    run = make(rank, world_size, **options)
    found = []

    def reached(epoch: int, done: int) -> None:
        if (epoch, done) in CUTS.values():
            save(run, Path(folder, f"{len(found)}.{rank}.pt"), epoch, done)
            found.append(run.found())

    for epoch in range(TOTAL):
        reached(epoch, 0)
        run.epoch(epoch, after=functools.partial(reached, epoch))
    return [*found, run.found()]


def second_life(
    rank: int, world_size: int, folder: str, options: dict[str, Any], own: bool, skips: bool
) -> list[dict[str, Any]]:
    """From each rank's own state, or all from rank 0's; the loop skips the batches that were trained, or does not."""
    found = []
    for number in range(len(CUTS)):
        state = torch.load(Path(folder, f"{number}.{rank if own else 0}.pt"), weights_only=True)
        run = make(rank, world_size, **options)
        run.net.load_state_dict(state["model"])
        run.loader.pruning.load_state_dict(state["pruning"], mid_epoch=not skips)
        epoch, done = state["epoch"], state["done"]
        if done == len(run.loader):
            epoch, done = epoch + 1, 0
        error = ""
        try:
            for later in range(epoch, TOTAL):
                run.epoch(later, skip=done if skips else 0)
                done = 0
        except ps.StateError as refused:
            error = str(refused)
        found.append({**run.found(), "from": epoch, "error": error})
        run.loader.pruning.detach()
    return found


Life = list[list[dict[str, Any]]]


@functools.cache
def first_lives(before: int, rescore: bool) -> tuple[tempfile.TemporaryDirectory[str], Life]:
    folder = tempfile.TemporaryDirectory()
    return folder, run_ranks(before, first_life, folder.name, {"rescore": rescore})


@functools.cache
def lives(before: int, after: int, own: bool = False, skips: bool = False, rescore: bool = False) -> tuple[Life, Life]:
    folder, first = first_lives(before, rescore)
    return first, run_ranks(after, second_life, folder.name, {"rescore": rescore}, own, skips)


def check_alike(ranks: list[dict[str, Any]]) -> list[int]:
    kept: list[int] = ranks[0]["coreset"].tolist()
    for found in ranks:
        assert found["error"] == ""
        assert found["coreset"].tolist() == kept
        assert [len(epoch) for epoch in found["log"]] == [len(epoch) for epoch in ranks[0]["log"]]
    return kept


def check_cut(before: list[dict[str, Any]], whole: list[dict[str, Any]], after: list[dict[str, Any]], cut: str) -> None:
    epoch, done = CUTS[cut]
    kept = check_alike(after)
    if before[0]["coreset"] is not None:
        assert kept == before[0]["coreset"].tolist()
    if done == 0:  # nothing was lost, so nothing is trained on again
        assert kept == whole[0]["coreset"].tolist()

    scored = min(epoch, EPOCHS)  # of them all ranks know; one that was cut off starts again
    if scored < EPOCHS:
        epochs = [[found["log"][number] for found in before] for number in range(scored)]
        epochs += [[found["log"][number] for found in after] for number in range(EPOCHS - scored)]
        journal, table = together(epochs), after[0]["table"]
        expected = torch.tensor([journal.el2n(row) for row in range(ROWS)])
        torch.testing.assert_close(table["el2n"], expected, rtol=0, atol=1e-6)
        assert table["forgetting_events"].tolist() == [journal.forgetting(row) for row in range(ROWS)]
        assert table["presentations"].tolist() == [EPOCHS] * ROWS

    pruned = [
        Counter(row for log in logs for row, *_ in log) for logs in zip(*(found["log"] for found in after), strict=True)
    ]
    pruned = pruned[EPOCHS - scored :]
    if epoch >= EPOCHS and 0 < done < 2:
        pruned[0] += Counter(row for found in before for row, *_ in found["log"][epoch])
    assert len(pruned) >= 1
    assert all(read == dict.fromkeys(kept, 1) for read in pruned)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 3), (1, 2)])
def test_all_ranks_go_on_from_the_state_of_rank_0(before: int, after: int, cut: str) -> None:
    number = list(CUTS).index(cut)
    first, second = lives(before, after)
    one = [found[number] for found in first]
    check_cut(one, [found[-1] for found in first], [found[number] for found in second], cut)


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("rescore", [False, True])
def test_ranks_that_go_on_from_their_own_states_do_as_if_nothing_had_been(cut: str, rescore: bool) -> None:
    number = list(CUTS).index(cut)
    first, second = lives(2, 2, own=True, skips=True, rescore=rescore)
    check_alike([found[number] for found in second])
    for whole, before, after in zip(
        [found[-1] for found in first],
        [found[number] for found in first],
        [found[number] for found in second],
        strict=True,
    ):
        seen = [row for epoch in before["log"] + after["log"] for row in epoch]
        assert [row for row, *_ in seen] == [row for epoch in whole["log"] for row, *_ in epoch]
        assert after["coreset"].tolist() == whole["coreset"].tolist()


@pytest.mark.parametrize("cut", CUTS)
def test_batches_may_not_be_skipped_where_their_scores_are_missing(cut: str) -> None:
    number = list(CUTS).index(cut)
    _, second = lives(2, 2, own=False, skips=True)
    errors = {found[number]["error"] for found in second}
    if cut in ("inside the first epoch", "inside a scoring epoch"):
        (error,) = errors
        assert "begin the epoch again, with all its batches" in error
    else:
        assert errors == {""}


def different_moments(rank: int, world_size: int, folder: str) -> list[str]:
    errors = []
    for number in ((1, 2), (2, 4), (2, 6), (6, 8)):
        state = torch.load(Path(folder, f"{number[rank]}.0.pt"), weights_only=True)["pruning"]
        errors.append(load(rank, world_size, state))
    state = torch.load(Path(folder, "2.0.pt"), weights_only=True)["pruning"]
    errors.append(load(rank, world_size, {**state, "num_rows": 3} if rank else state))
    return errors


def load(rank: int, world_size: int, state: dict[str, Any]) -> str:
    run = make(rank, world_size)
    try:
        run.loader.pruning.load_state_dict(state)
    except ps.StateError as error:
        return str(error)
    finally:
        run.loader.pruning.detach()
    return "went on"


def test_ranks_refuse_states_of_different_moments_together() -> None:
    folder, _ = first_lives(1, False)
    first, second = run_ranks(2, different_moments, folder.name)
    assert [error.split(":")[0] for error in first[:-1]] == ["the ranks were given states of different moments"] * 4
    assert first[:-1] == second[:-1]
    assert first[-1] == "rank 1 has refused its state"
    assert "num_rows = 3" in second[-1]
