"""The table of docs/compatibility.md: each claim is a test, and each test's claim is in the table."""

from __future__ import annotations

import functools
import importlib.util
import socket
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import compatibility
from tests.helpers.compatibility import CLAIMS, COLUMNS
from tests.helpers.frameworks import (
    BATCH,
    BY_NAME,
    EPOCHS,
    FRAMEWORKS,
    POLICY,
    SCORED,
    mark,
    marks,
    train,
    train_all,
    train_on_ray,
    write_shards,
)
from tests.helpers.ranks import run_ranks
from tests.helpers.refusals import DISPATCHED, REFUSALS
from tests.helpers.training import Journal, hardest

Reports = list[list[dict[str, Any]]]  # of each rank: of the whole run, and of those that go on from its checkpoints
WHOLE, RESUMED = 3, 4  # and the same under a policy
DRAWN = 20  # rows of an epoch under it, of 40 or 41

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(900),  # a busy machine takes minutes to start Ray
]


def installed(name: str) -> bool:
    return all(map(importlib.util.find_spec, BY_NAME[name].packages))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    if installed("WebDataset"):
        write_shards(folder)
    return folder


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return functools.cache(lambda name: [train(name, data, tmp_path_factory.mktemp("alone"))])


@pytest.fixture(scope="module")
def together(alone: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """All of them in one world of two processes: starting one costs more than what it does."""
    names = [name for name in BY_NAME if name not in ("PyTorch", "RayTrain") and installed(name)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("together")
    for name in names:
        alone(name)  # imports once what both processes need
    ranks = run_ranks(2, train_all, port, str(data), str(folder), names, method="fork")
    found: dict[str, Reports] = {name: [rank[name] for rank in ranks] for name in names}

    def reports(name: str, request: pytest.FixtureRequest) -> Reports:
        if name not in found:
            request.getfixturevalue("cluster")
            found[name] = train_on_ray(name, data, folder, 2)
        return found[name]

    return reports


# -- the oracle ------------------------------------------------------------------------------------------------------


def place(framework: Any, reports: Reports, number: int) -> tuple[int, int]:
    """The epoch in which a run was cut off, and how many steps of it were done; it is run ``number`` that goes on."""
    world, epoch = len(reports), 0
    done = mark(framework, world) if number == RESUMED else marks(framework, world)[number - 1]
    lengths = [len(steps) for steps in reports[0][WHOLE if number == RESUMED else 0]["epochs"]]
    while done >= lengths[epoch]:
        done -= lengths[epoch]
        epoch += 1
    return epoch, done


def joined(framework: Any, reports: Reports, number: int) -> list[list[list[Any]]]:
    """The epochs of each rank over the run that was cut off and the one that went on from its checkpoint."""
    first = WHOLE if number in (WHOLE, RESUMED) else 0
    if number == first:
        return [rank[first]["epochs"] for rank in reports]
    epoch, done = place(framework, reports, number)
    goes_on = framework.continues if epoch < (POLICY.score_epochs if first else SCORED) else framework.rest
    ranks = []
    for whole, after in ((rank[first]["epochs"], rank[number]["epochs"]) for rank in reports):
        ranks.append([*whole[:epoch], whole[epoch][: done * goes_on] + after[epoch], *after[epoch + 1 :]])
    return ranks


def journal_of(ranks: list[list[list[Any]]]) -> Journal:
    """One presentation of each row in an epoch: the first; what samplers repeat to fill a batch comes later."""
    journal = Journal()
    for epoch in range(SCORED):
        seen = set()
        for step in range(max(len(rank[epoch]) for rank in ranks)):
            for rank in ranks:
                for row, error, right in rank[epoch][step] if step < len(rank[epoch]) else ():
                    if row not in seen:
                        journal.seen[row].append((error, bool(right)))
                    seen.add(row)
    return journal


def rows_of(ranks: list[list[list[Any]]], epoch: int) -> list[int]:
    return [entry[0] for rank in ranks for step in rank[epoch] for entry in step]


def order_of(ranks: list[list[list[Any]]], epoch: int) -> list[int]:
    """Rows as all ranks together read them, without those that are repeated to fill a batch."""
    steps = zip(*(rank[epoch] for rank in ranks), strict=True)
    return list(dict.fromkeys(entry[0] for step in steps for entries in step for entry in entries))


def check_scores(framework: Any, reports: Reports, number: int) -> None:
    n, report = framework.rows, reports[0][number]
    journal = journal_of(joined(framework, reports, number))
    assert [len(journal.seen[row]) for row in range(n)] == [SCORED] * n
    if report["el2n"] is not None:  # a run that goes on pruned has none any more
        np.testing.assert_allclose(report["el2n"], [journal.el2n(row) for row in range(n)], rtol=0, atol=1e-6)
        assert report["forgetting"] == [journal.forgetting(row) for row in range(n)]
    assert {tuple(rank[number]["coreset"]) for rank in reports} == {tuple(report["coreset"])}
    assert set(report["coreset"]) == hardest(journal, n, round(n * 0.5))


def check_rows(framework: Any, reports: Reports, number: int) -> None:
    """A scoring epoch has all rows once, a pruned one the kept rows once, or in full epochs all of them as often."""
    ranks, kept = joined(framework, reports, number), reports[0][number]["coreset"]
    repeats = BATCH * len(ranks) * (len(ranks) > 1)
    for epoch in range(EPOCHS):
        assert len({len(rank[epoch]) for rank in ranks}) == 1
    for epoch in range(SCORED):
        rows = rows_of(ranks, epoch)
        assert set(rows) == set(range(framework.rows))
        assert len(rows) - framework.rows <= repeats
    for epoch in range(SCORED, EPOCHS):
        rows = rows_of(ranks, epoch)
        if framework.full:
            assert framework.rows <= len(rows) <= framework.rows + repeats
            assert set(rows) <= set(kept)
        elif framework is BY_NAME["Timm"]:  # drops what does not fill a batch
            assert len(rows) == len(set(rows)) == len(kept) // (BATCH * len(ranks)) * BATCH * len(ranks)
            assert set(rows) <= set(kept)
        else:
            assert set(rows) == set(kept)
            assert len(rows) - len(kept) <= repeats
    if framework.full:
        counts = np.bincount([row for epoch in range(SCORED, EPOCHS) for row in rows_of(ranks, epoch)])[kept]
        assert counts.max() - counts.min() <= 2 + len(ranks)


def chances(losses: dict[int, float]) -> dict[int, float]:
    """The probabilities of importance sampling, in plain Python."""
    mean = sum(losses.values()) / len(losses)
    even = 1 / POLICY.max_weight
    sizes = {row: even + (1 - even) * loss / mean for row, loss in losses.items()}
    found: dict[int, float] = {}
    while sizes:
        unit = (DRAWN - len(found)) / sum(sizes.values())
        certain = [row for row, size in sizes.items() if size * unit > 1]
        if not certain:
            return found | {row: size * unit for row, size in sizes.items()}
        for row in certain:
            found[row] = 1.0
            del sizes[row]
    return found


def check_policy(framework: Any, reports: Reports, number: int) -> None:
    """A drawn epoch has half of the rows, each weighted by the last losses of all ranks; a run goes on as it would.

    Where all processes go on from the state of one, the losses of the epoch that was cut off are lost.
    """
    ranks, n, full = joined(framework, reports, number), framework.rows, framework.full
    lossless = framework.own_states or len(ranks) == 1
    cut, done = place(framework, reports, number) if number == RESUMED else (EPOCHS, 0)
    repeats, last = BATCH * len(ranks) * (len(ranks) > 1), dict[int, float]()
    sets = []
    for epoch in range(EPOCHS):
        rows, weights = rows_of(ranks, epoch), dict.fromkeys(range(n), 1.0)
        assert len({len(rank[epoch]) for rank in ranks}) == 1
        if epoch < POLICY.score_epochs:
            assert set(rows) == set(range(n))
        else:
            weights = {row: DRAWN / n / chance for row, chance in chances(last).items()}
            dropped = DRAWN % (BATCH * len(ranks)) if framework is BY_NAME["Timm"] else 0
            assert len(set(rows)) == DRAWN - dropped
            assert len(rows) - (n if full else len(set(rows))) <= repeats
            sets.append(frozenset(rows))
        owner: dict[int, int] = {}  # of a row that several ranks were given, the lowest one's losses count
        losses: dict[int, list[float]] = defaultdict(list)
        for rank, steps in enumerate(epochs[epoch] for epochs in ranks):
            for step, entries in enumerate(steps):
                factors = [norm / error / weights[row] for row, error, _, norm in entries if error > 1e-3]
                np.testing.assert_allclose(factors, factors[:1] * len(factors), rtol=2e-3)
                if epoch == cut and step < done and not lossless:
                    continue
                real = n - BATCH * (step * len(ranks) + rank) if full else BATCH  # the others fill up a batch
                for row, _, loss, _ in entries[: max(real, 0)]:
                    if owner.setdefault(row, rank) == rank and (full or not losses[row]):
                        losses[row].append(loss)
        last |= {row: sum(found) / len(found) for row, found in losses.items()}
    assert len(set(sets)) == len(sets)  # no epoch has the rows of another
    if number == RESUMED and framework.rest:
        undisturbed = joined(framework, reports, WHOLE)
        if not lossless:
            for epoch in range(cut + 1):
                assert order_of(undisturbed, epoch) == order_of(ranks, epoch)
            return
        for before, after in zip(undisturbed, ranks, strict=True):
            for epoch in range(EPOCHS):
                assert rows_of([before], epoch) == rows_of([after], epoch)


def runs_under_a_policy(name: str, request: Any) -> Iterator[Reports]:
    """In one process, and where it may run in several, in two."""
    if name != "RayTrain":
        yield request.getfixturevalue("alone")(name)
    if BY_NAME[name].several is not None:
        yield request.getfixturevalue("together")(name, request)


# -- the claims ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "column"), CLAIMS)
def test_claim(name: str, column: str, request: Any, record_property: Any) -> None:
    framework = BY_NAME[name]
    for package in framework.packages:
        pytest.importorskip(package)
    if column == "policies":
        for reports in runs_under_a_policy(name, request):
            for number in (WHOLE, RESUMED):
                check_policy(framework, reports, number)
        record_property("claim", f"{name}, {column}")
        return
    numbers = {"resume": (1, 2), "several processes": (0, 1, 2)}.get(column, (0,))
    if column == "several processes" or name == "RayTrain":  # what one worker of it does, two of them do as well
        reports = request.getfixturevalue("together")(name, request)
        assert not isinstance(reports[0], str), reports[0]
    else:
        reports = request.getfixturevalue("alone")(name)
    for number in numbers:
        if column != "one line":
            check_scores(framework, reports, number)
        check_rows(framework, reports, number)
    record_property("claim", f"{name}, {column}")


def test_refusal_in_several_processes(together: Any, request: Any, record_property: Any) -> None:
    pytest.importorskip("accelerate")
    for refused in together("Dispatched", request):
        assert refused.startswith(DISPATCHED.error.__name__)
        assert DISPATCHED.message in refused
    record_property("claim", f"refused: {DISPATCHED.case}")


@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
def test_refusal(refusal: Any, record_property: Any) -> None:
    for package in refusal.packages:
        pytest.importorskip(package)
    with pytest.raises(refusal.error) as caught:
        refusal.run()
    assert refusal.message in str(caught.value)
    record_property("claim", f"refused: {refusal.case}")


# -- the table -------------------------------------------------------------------------------------------------------


def test_the_committed_table_makes_these_claims() -> None:
    expected = compatibility.without_versions(compatibility.table(dict.fromkeys(compatibility.packages(), "0")))
    page = compatibility.PAGE.read_text(encoding="utf-8")
    assert compatibility.without_versions(compatibility.between_markers(page)) == expected


def test_a_claim_whose_test_has_not_passed_is_not_written(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{compatibility.BEGIN}\n{compatibility.END}\nafter\n")
    with pytest.raises(SystemExit, match="PyTorch, resume"):
        compatibility.write(page, passed=compatibility.wanted() - {"PyTorch, resume"})
    assert compatibility.between_markers(page.read_text()) == ""
    compatibility.write(page, passed=compatibility.wanted())
    assert "| Accelerate |" in compatibility.between_markers(page.read_text())
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("after\n")


def test_each_framework_fills_every_column() -> None:
    for framework in FRAMEWORKS:
        assert set(compatibility.cells(framework)) == set(COLUMNS)
