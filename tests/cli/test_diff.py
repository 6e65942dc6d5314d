from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from prunesampler._format import percent
from prunesampler.cli.app import main
from prunesampler.selection.select import select
from prunesampler.tables.agreement import overlap, spearman
from prunesampler.tables.score_table import Coreset, ScoreTable
from tests.helpers.command_line import ONLINE, assert_refused, score_table


def shown(capsys: pytest.CaptureFixture[str], a: ScoreTable | Coreset, b: ScoreTable | Coreset) -> list[str]:
    a.save("a")
    b.save("b")
    assert main(["diff", "a", "b"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return [line.strip() for line in captured.out.splitlines() if line.strip()]


def figures(found: list[str]) -> dict[str, list[str]]:
    head = next(place for place, line in enumerate(found) if line.startswith("score "))
    assert re.split(r" {2,}", found[head]) == ["score", "Spearman", "harder half", "|A − B|", "in both"]
    lines = [line.replace(" %", "%").split() for line in found[head + 2 :]]
    return {name: cells for name, *cells in lines}


def test_two_runs(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = score_table(0), score_table(1)
    found = shown(capsys, a, b)
    assert found[:4] == [
        "same dataset: 200 rows, equal fingerprints",
        *(f"{name}: same protocol" for name in ("el2n", "margin", "forgetting")),
    ]
    rows = figures(found)
    assert list(rows) == ["el2n", "margin", "forgetting"]
    for name, (correlation, halves, apart, both) in rows.items():
        left, right = a.column(name).astype(float), b.column(name).astype(float)
        assert float(correlation) == pytest.approx(spearman(left, right), abs=5e-4)
        sign = -1 if name == "margin" else 1
        assert halves == percent(overlap(sign * left, sign * right)).replace(" ", "")
        finite = np.isfinite(left) & np.isfinite(right)
        assert float(apart) == pytest.approx(np.abs(left[finite] - right[finite]).mean(), abs=5e-4)
        assert both == ("200" if name == "forgetting" else "199")


def test_a_table_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    rows = figures(shown(capsys, score_table(), score_table()))
    assert rows["el2n"] == rows["margin"] == ["1", "100%", "0", "199"]
    assert rows["forgetting"] == ["1", "100%", "0", "200"]  # ties too


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    score_table().save("scores")
    select(score_table(), keep=0.5).save("half")
    assert main(["diff", "scores", "scores", "--json"]) == main(["diff", "half", "half", "--json"]) == 0
    tables, coresets = map(json.loads, capsys.readouterr().out.splitlines())
    same = {"protocol": {}, "rows": 199, "spearman": 1, "overlap": 1, "mean_difference": 0}
    assert tables["scores"]["margin"] == same
    assert (coresets["both"], coresets["jaccard"], coresets["only_in_a"]) == (100, 1, [])


def test_differences_are_said_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    a = score_table(0)
    b = score_table(
        *(1, 100),
        scores={"el2n": np.arange(100), "loss": np.arange(100)},
        directions={"el2n": "lower"},
        protocols={"el2n": {**ONLINE, "kind": "rescored", "epochs": 1}},
    )
    found = shown(capsys, a, b)
    assert found[:5] == [
        "different datasets: number 1 has 200 rows, number 2 has 100; rows are compared by number, and may not be the "
        "same samples",
        "only in A: margin",
        "only in B: loss",
        "el2n: different protocol: kind online in A, rescored in B; epochs 5 in A, 1 in B; harder higher in A, lower "
        "in B",
        "forgetting: different protocol: kind online in A, None in B; reduction mean in A, None in B; epochs 5 in A, "
        "None in B; runs 1 in A, None in B",
    ]
    rows = figures(found)
    assert list(rows) == ["el2n", "forgetting"]
    assert float(rows["el2n"][0]) < -0.5  # hardness, not values
    found = shown(capsys, a, score_table(1, fingerprint=None))
    assert found[0] == "perhaps the same dataset: 200 rows in both, but not both files have a fingerprint"


def test_tables_without_a_row_in_common(capsys: pytest.CaptureFixture[str]) -> None:
    a = ScoreTable({"el2n": [0.5, 0.25]}, rows=[0, 1], num_rows=4)
    b = ScoreTable({"el2n": [0.5, 0.25]}, rows=[2, 3], num_rows=4)
    assert figures(shown(capsys, a, b)) == {"el2n": ["–", "–", "–", "0"]}
    nothing = figures(shown(capsys, ScoreTable({"el2n": [0.5]}), ScoreTable({"loss": [0.5]})))
    assert nothing == {}


def test_rows_are_matched_by_their_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    a = ScoreTable({"el2n": [0.0, 0.1, 0.2, 0.3]})
    b = ScoreTable({"el2n": [0.3, 0.2, 0.1]}, rows=[3, 2, 1], num_rows=4)
    assert figures(shown(capsys, a, b)) == {"el2n": ["1", "100%", "0", "3"]}


def test_names_from_a_file_steer_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    a = ScoreTable({"[red]\x1b[31mmine": [0.5, 0.25]})
    b = ScoreTable({"[red]\x1b[31mmine": [0.5, 0.25], "\x1b[2J": [0.5, 0.25]})
    found = shown(capsys, a, b)
    assert found[1] == "only in B: \\x1b[2J"
    assert list(figures(found)) == ["[red]\\x1b[31mmine"]


def test_two_coresets(capsys: pytest.CaptureFixture[str]) -> None:
    table = score_table()
    a, b = select(table, keep=0.5), select(score_table(1), keep=60, method="random")
    rows_a, rows_b = set(a.rows.tolist()), set(b.rows.tolist())
    both, only_b = rows_a & rows_b, sorted(rows_b - rows_a)
    found = shown(capsys, a, b)
    first = ", ".join(map(str, sorted(rows_a - rows_b)[:10]))
    assert found == [
        "same dataset: 200 rows, equal fingerprints",
        "different selection options: keep 0.5 in A, 60 in B; method stratified in A, random in B",
        "selected from different scores",
        f"kept: 100 rows in A, 60 in B, {len(both)} in both (by chance 30)",
        f"overlap: B keeps {percent(len(both) / 100)} of A's rows, A keeps {percent(len(both) / 60)} of B's",
        f"Jaccard: {len(both) / len(rows_a | rows_b):.3f}",
        f"only in A: {100 - len(both)} rows ({first}, …)",
        f"only in B: {len(only_b)} rows ({', '.join(map(str, only_b[:10]))}, …)",
    ]


def test_coresets_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    found = shown(capsys, Coreset([1, 2, 3], num_rows=6), Coreset([2, 3], num_rows=6))
    assert found == [
        "perhaps the same dataset: 6 rows in both, but not both files have a fingerprint",
        "same selection options",
        "kept: 3 rows in A, 2 in B, 2 in both (by chance 1)",
        "overlap: B keeps 67 % of A's rows, A keeps 100 % of B's",
        "Jaccard: 0.667",
        "only in A: 1 row (1)",
        "only in B: 0 rows",
    ]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["scores"], "Missing argument"),
        (["scores", "none"], "No such file or directory: 'none'"),
        (["text", "scores"], "text is damaged or cut short"),
        (["scores", "coreset"], "files must both hold scores, or both a coreset, got 'scores and coreset'"),
        (["coreset", "scores"], "files must both hold scores"),
    ],
)
def test_misuse_is_refused_in_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    score_table().save("scores")
    Coreset([1], num_rows=2).save("coreset")
    Path("text").write_text("row,el2n\n0,0.5\n")
    assert_refused(capsys, ["diff", *args], message)
