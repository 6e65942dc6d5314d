from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import prunesampler as ps
from prunesampler.analysis.audit import COLUMNS, Confusion, NoiseRate
from prunesampler.errors import ArgumentError, UnsupportedError
from prunesampler.selection.label_errors import Evidence, LabelErrors

N, C = 600, 3


def audited(noise: float = 0.2, rows: int = N, **options: Any) -> ps.ScoreTable:
    """Scores of a model that is sure of what an image shows, and nearly always right."""
    rng = np.random.default_rng(0)
    true, wrong = rng.integers(0, C, rows), rng.random(rows) < noise
    labels = np.where(wrong, (true + 1) % C, true)
    sure = rng.uniform(0.6, 1, rows)
    columns = {
        "labels": labels,
        "suggested_label": np.where(wrong, true, (true + 2) % C),
        "signed_confidence": np.where(wrong, -sure, sure),
        "presentations": np.full(rows, 6),
        "keys": [f"{row}.png" for row in range(rows)],
        "protocols": {"el2n": {"kind": "online", "epochs": 6}},
        "provenance": {"classes": ["cat", "dog", "eel"], "true": true.tolist()},
    }
    return ps.ScoreTable({"el2n": np.where(wrong, 0.4 + sure, 1 - sure)}, **(columns | options))


@pytest.fixture(scope="module")
def table() -> ps.ScoreTable:
    return audited()


@pytest.fixture(scope="module")
def issues(table: ps.ScoreTable) -> ps.LabelIssues:
    return ps.audit(table)


def test_the_flagged_rows_come_with_what_they_should_be(table: ps.ScoreTable, issues: ps.LabelIssues) -> None:
    true = np.array(table.provenance["true"])
    assert set(issues.rows.tolist()) == set(np.flatnonzero(table.labels != true).tolist())
    frame = issues.to_pandas()
    assert tuple(frame.columns) == COLUMNS
    assert (frame.suggested_label == true[frame.row]).all()
    assert (frame.label == table.labels[frame.row]).all()
    assert (frame.key == [f"{row}.png" for row in frame.row]).all()
    assert frame["rank"].tolist() == list(range(1, len(issues) + 1))
    assert (np.diff(frame.probability) <= 0).all()
    assert frame.probability.min() >= issues.threshold == 0.5
    assert issues.noise_rate.low < len(issues) / N < issues.noise_rate.high


def test_all_has_every_row_and_flagged_rows_come_first(issues: ps.LabelIssues) -> None:
    every = issues.all()
    assert sorted(every.rows) == list(range(N))
    assert every.rows[: len(issues)].tolist() == issues.rows.tolist()
    assert every.noise_rate == issues.noise_rate


def test_classes_and_confusions_are_counted(table: ps.ScoreTable, issues: ps.LabelIssues) -> None:
    expected = np.zeros((C, C), int)
    for label, suggested in zip(issues.labels, issues.suggested_labels, strict=True):
        expected[label, suggested] += 1
    assert table.labels is not None
    for each in issues.per_class:
        assert each.name == ["cat", "dog", "eel"][each.label]
        assert each.rows == (table.labels == each.label).sum()
        assert each.flagged == expected[each.label].sum()
        assert each.rate == pytest.approx(each.flagged / each.rows, abs=0.05)
    assert sum(each.rate * each.rows for each in issues.per_class) / N == pytest.approx(issues.noise_rate.rate)
    assert {(each.label, each.suggested_label): each.flagged for each in issues.confusions} == {
        (label, (label + 2) % C): expected[label, (label + 2) % C] for label in range(C)
    }
    flagged = [each.flagged for each in issues.confusions]
    assert flagged == sorted(flagged, reverse=True)
    matrix = issues.confusion_matrix()
    np.testing.assert_allclose(matrix.sum(1), np.bincount(table.labels))
    np.testing.assert_allclose(matrix, expected + np.diag(np.bincount(table.labels) - expected.sum(1)), atol=12)


def test_files_hold_the_same(issues: ps.LabelIssues, tmp_path: Path) -> None:
    issues.save(tmp_path / "issues.csv")
    issues.save(tmp_path / "issues.parquet")
    with open(tmp_path / "issues.csv", newline="") as file:
        lines = list(csv.reader(file))
    assert tuple(lines[0]) == COLUMNS
    assert [int(line[0]) for line in lines[1:]] == issues.rows.tolist()
    assert [float(line[5]) for line in lines[1:]] == issues.probabilities.tolist()
    assert pq.read_table(tmp_path / "issues.parquet").equals(issues.to_arrow())
    with pytest.raises(ArgumentError, match=r"^path must end"):
        issues.save(tmp_path / "issues.txt")


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"protocols": {"el2n": {"kind": "online", "epochs": 2}}}, "Scored over 2 epochs"),
        ({"signed_confidence": np.where(np.arange(N) < 5, np.nan, 0.9)}, "5 rows could not be judged"),
        ({"signed_confidence": np.full(N, 0.9)}, "The labels may all be right"),
        ({"labels": np.where(np.arange(N) < 5, 7, np.arange(N) % 3)}, "1 class has fewer than 20 rows"),
    ],
)
def test_notes_say_what_limits_the_answer(changes: dict[str, Any], note: str) -> None:
    assert any(each.startswith(note) for each in ps.audit(audited(**changes)).notes)


def test_nothing_limits_a_clear_answer() -> None:
    assert ps.audit(audited(rows=6000)).notes == ()


def test_a_method_may_be_a_function_a_name_or_none_that_is_known(table: ps.ScoreTable) -> None:
    def half(evidence: Evidence) -> LabelErrors:
        probability = np.arange(len(evidence.labels)) / len(evidence.labels)
        return LabelErrors(probability, probability, 0.5, 0.4, 0.6, 0)

    found = ps.audit(table, method=half, threshold=0.99)
    assert found.rows.tolist() == list(range(N - 1, N - 7, -1))
    assert found.noise_rate == NoiseRate(0.5, 0.4, 0.6)
    assert str(found.noise_rate) == "50 % (40 % to 60 %)"
    mixed = ps.audit(audited(suggested_label=None, signed_confidence=None), method="mixture")
    assert mixed.noise_rate.rate == pytest.approx(0.2, abs=0.03)
    assert set(mixed.suggested_labels.tolist()) == {-1}
    assert mixed.confusions[0] == Confusion(mixed.confusions[0].label, -1, mixed.confusions[0].flagged)
    for wrong in ("magic", 3, lambda evidence: None):
        with pytest.raises(ArgumentError, match=r"^method "):
            ps.audit(table, method=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("threshold", {"threshold": 0}),
        ("threshold", {"threshold": 1.01}),
        ("by", {"by": "loss"}),
        ("probabilities", {"probabilities": np.ones((N, C))}),
        ("probabilities", {"method": "confident_learning"}),
        ("probabilities", {"method": "confident_learning", "probabilities": np.ones((N - 1, C))}),
    ],
)
def test_wrong_arguments(table: ps.ScoreTable, argument: str, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument} "):
        ps.audit(table, **options)


def test_confident_learning_says_what_it_needs(table: ps.ScoreTable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.count", None)
    with pytest.raises(UnsupportedError, match="pip install cleanlab"):
        ps.audit(table, method="confident_learning", probabilities=np.full((N, C), 1 / C))


def test_confident_learning_is_cleanlabs(table: ps.ScoreTable) -> None:
    filters = pytest.importorskip("cleanlab.filter")
    true = np.array(table.provenance["true"])
    probabilities = np.full((N, C), 0.05)
    probabilities[np.arange(N), true] = 0.9
    found = ps.audit(table, method="confident_learning", probabilities=probabilities)
    assert set(found.rows) == set(np.flatnonzero(filters.find_label_issues(table.labels, probabilities, n_jobs=1)))


def test_a_table_that_says_nothing_of_classes_is_refused() -> None:
    with pytest.raises(ArgumentError, match="must hold the column suggested_label"):
        ps.audit(audited(suggested_label=None))
    with pytest.raises(ArgumentError, match="must hold the column label"):
        ps.audit(ps.ScoreTable({"el2n": [0.1, 0.2]}))


def test_aum_flags_what_lies_below_the_threshold_samples_of_another_run() -> None:
    rng, fake = np.random.default_rng(0), 4
    wrong = np.arange(1000) % 10 == 0
    labels, margin = np.arange(1000) % 4, np.where(wrong, -3, 3) + 0.5 * rng.normal(size=1000)
    runs = []
    for part in range(2):
        sample = np.arange(1000) % 5 == part
        columns = {"margin": np.where(sample, -2 + 0.5 * rng.normal(size=1000), margin)}
        runs.append(
            ps.ScoreTable(
                columns, labels=np.where(sample, fake, labels), suggested_label=(labels + 1) % 4, keys=np.arange(1000)
            )
        )
    issues = ps.audit(runs, method="aum")
    assert issues.rows.tolist() == sorted(np.flatnonzero(wrong), key=lambda row: issues.rows.tolist().index(row))
    assert set(issues.rows.tolist()) == set(np.flatnonzero(wrong).tolist())
    assert issues.labels.tolist() == labels[issues.rows].tolist()
    assert issues.noise_rate.rate == pytest.approx(0.1)
    limit = np.quantile(runs[0].scores["margin"][np.arange(1000) % 5 == 0], 0.99)
    nearest = issues.all().probabilities[issues.all().rows == 1][0]
    assert (nearest > 0.5) == (margin[1] < limit)
    alone = ps.audit(runs[0], method="aum")
    assert set(alone.all().rows.tolist()) == set(np.flatnonzero(np.arange(1000) % 5 != 0).tolist())
    for refused in ([], [runs[0], audited()], runs[0].replace(labels=labels)):
        with pytest.raises(ArgumentError, match=r"^table "):
            ps.audit(refused if isinstance(refused, list) else [refused, audited()], method="aum")
    with pytest.raises(ArgumentError, match='several are for method="aum"'):
        ps.audit(runs)
