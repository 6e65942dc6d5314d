"""The table of docs/compatibility.md: each claim is a test, and each test's claim is in the table."""

from __future__ import annotations

import functools
import importlib.util
import socket
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
    SCORED,
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


def joined(framework: Any, reports: Reports, number: int) -> list[list[list[Any]]]:
    """The epochs of each rank over the run that was cut off and the one that went on from its checkpoint."""
    if number == 0:
        return [rank[0]["epochs"] for rank in reports]
    step = marks(framework, len(reports))[number - 1]
    ranks = []
    for whole, after in ((rank[0]["epochs"], rank[number]["epochs"]) for rank in reports):
        epoch, done = 0, step
        while done >= len(whole[epoch]):
            done -= len(whole[epoch])
            epoch += 1
        goes_on = framework.continues if epoch < SCORED else framework.rest
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
    return [row for rank in ranks for step in rank[epoch] for row, _, _ in step]


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


# -- the claims ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "column"), CLAIMS)
def test_claim(name: str, column: str, request: Any, record_property: Any) -> None:
    framework = BY_NAME[name]
    for package in framework.packages:
        pytest.importorskip(package)
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
