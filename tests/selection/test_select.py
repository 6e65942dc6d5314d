from __future__ import annotations

import json
import math
import warnings
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from prunesampler.analysis.audit import audit
from prunesampler.errors import ArgumentError, PruneSamplerWarning
from prunesampler.selection.select import Selection, resolve_keep, select
from prunesampler.selection.superfluous import THRESHOLD
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable

METHODS: tuple[Any, ...] = ("stratified", "top", "bottom", "window", "random")
quiet = pytest.mark.filterwarnings("ignore::prunesampler.errors.PruneSamplerWarning")


def el2n_like(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(n) ** 3 * math.sqrt(2)


# -- how many -----------------------------------------------------------------------------------------------------


@given(keep=st.floats(0, 1, exclude_min=True), n=st.integers(1, 10**9))
def test_a_fraction_is_rounded(keep: float, n: int) -> None:
    assert resolve_keep(keep, n) == max(1, round(keep * n))


def test_numbers_and_fractions() -> None:
    assert resolve_keep(2, 2) == 2
    assert resolve_keep(1.0, 9) == 9
    assert resolve_keep(0.5, 50_001) == 25_000
    assert resolve_keep(1e-9, 10) == 1
    assert resolve_keep(np.float32(0.5), 10) == 5  # type: ignore[arg-type]
    assert resolve_keep(np.int64(7), 10) == 7


@pytest.mark.parametrize("keep", [0, 0.0, 1, -0.5, 1.01, 2.0, math.nan, math.inf, True, False, "0.5", None, 11, -3])
def test_what_keep_is_not(keep: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^keep must be"):
        resolve_keep(keep, 10)


# -- which ---------------------------------------------------------------------------------------------------------


def test_stratified_keeps_few_of_the_many_easy_and_all_of_the_rare() -> None:
    scores = np.concatenate([np.linspace(0, 0.01, 900), np.linspace(0.5, 1, 100)])
    kept = select(ScoreTable({"el2n": scores}), 200, offset=0.0).rows
    assert (kept >= 900).sum() == 100


def test_random_is_uniform_over_seeds_and_reads_no_scores() -> None:
    table = ScoreTable({"el2n": [0.0, math.nan, 2.0, 1.0, 5.0]})
    counts = np.zeros(5)
    for seed in range(600):
        coreset = select(table, 2, by="whatever", method="random", seed=seed, unscored="drop")
        counts[coreset.rows] += 1
    expected = 600 * 2 / 5
    assert (((counts - expected) ** 2) / expected).sum() < 18  # χ² with 4 degrees of freedom, p = 0.001
    assert coreset.selection["unscored"] == 0
    assert coreset.selection["threshold"] is None


@pytest.mark.parametrize("method", ["stratified", "top", "bottom", "window"])
@quiet
def test_the_direction_of_margin(method: Any) -> None:
    scores = el2n_like(200)
    table = ScoreTable({"el2n": scores, "margin": -scores})
    assert select(table, 0.4, "margin", method).rows.tolist() == select(table, 0.4, "el2n", method).rows.tolist()
    other = ScoreTable({"margin": scores}, directions={"margin": "higher"})
    assert select(other, 0.4, "margin", method).rows.tolist() == select(table, 0.4, "el2n", method).rows.tolist()


@quiet
def test_never_learned_ranks_highest_by_forgetting() -> None:
    table = ScoreTable(
        {}, forgetting_events=[3, 0, 9, 0, 1], learned=[True, False, True, True, True], presentations=[9, 9, 9, 9, 0]
    )
    assert select(table, 2, "forgetting", "top", unscored="drop").rows.tolist() == [1, 2]
    assert select(table, 2, "forgetting", "bottom", unscored="drop").rows.tolist() == [0, 3]
    coreset = select(table, 3, "forgetting", "window", offset=1)
    assert coreset.rows.tolist() == [0, 2, 4]  # 1 is left out as the hardest; 4 was never presented
    assert coreset.selection["threshold"] == [3, 9]


def test_never_learned_rows_are_a_stratum_of_their_own() -> None:
    events, learned = np.arange(100) % 5, np.arange(100) % 10 > 0
    kept = select(ScoreTable({}, forgetting_events=events, learned=learned), 60, "forgetting", offset=0.0).rows
    assert (~learned[kept]).sum() == 10


# -- ties ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@quiet
def test_ties_do_not_lose_classes_of_class_sorted_data(method: Any) -> None:
    labels = np.repeat(np.arange(10), 100)
    for scores in (np.zeros(1000), np.tile(np.arange(4.0), 250)):
        kept = select(ScoreTable({"el2n": scores}, labels=labels), 0.3, method=method, seed=1).rows
        assert np.bincount(labels[kept], minlength=10).min() >= 12  # 30 are expected, ±4


@quiet
def test_ties_follow_the_seed_and_not_the_place() -> None:
    table = ScoreTable({"el2n": np.zeros(100)})
    sets = {tuple(select(table, 30, method="top", seed=seed).rows.tolist()) for seed in range(20)}
    assert len(sets) == 20
    rows = np.random.default_rng(0).permutation(100)
    shuffled = ScoreTable({"el2n": np.zeros(100)}, rows=rows, num_rows=100)
    assert select(shuffled, 30, method="top") == select(table, 30, method="top")


@pytest.mark.parametrize("method", METHODS)
@quiet
def test_where_a_row_stands_does_not_matter(method: Any) -> None:
    rows, scores = np.random.default_rng(0).permutation(300)[:100], np.round(el2n_like(100), 1)
    table = ScoreTable({"el2n": scores}, rows=rows, num_rows=300)
    alone = ScoreTable({"el2n": scores[::-1]}, rows=rows[::-1], num_rows=300)
    assert select(table, 40, method=method) == select(alone, 40, method=method)


@quiet
def test_the_selection_is_fixed_for_ever() -> None:
    table = ScoreTable({"el2n": np.arange(40) % 4 / 4})
    assert {method: select(table, 7, method=method, seed=5).rows.tolist() for method in METHODS} == {
        "stratified": [10, 21, 22, 24, 33, 34, 36],
        "top": [3, 11, 19, 23, 27, 35, 39],
        "bottom": [0, 4, 8, 12, 16, 28, 32],
        "window": [3, 11, 19, 23, 27, 35, 39],
        "random": [10, 18, 22, 24, 34, 35, 39],
    }


# -- classes ------------------------------------------------------------------------------------------------------


@quiet
def test_a_rare_class_survives_a_global_top() -> None:
    labels = np.array([0] * 90 + [1] * 6 + [2] * 4)
    scores = np.where(labels == 0, 1 + np.arange(100), 0.001 * np.arange(100))
    table = ScoreTable({"el2n": scores}, labels=labels)
    assert set(labels[select(table, 30, method="top").rows]) == {0}
    kept = select(table, 30, method="top", min_per_class=5).rows
    assert np.bincount(labels[kept]).tolist() == [21, 5, 4]
    assert kept[labels[kept] == 1].tolist() == [91, 92, 93, 94, 95]  # the hardest of its class
    assert kept[labels[kept] == 0].tolist() == list(range(69, 90))


def test_floors_that_cannot_be_met() -> None:
    table = ScoreTable({"el2n": np.arange(40.0)}, labels=np.arange(40) % 10)
    with pytest.raises(ArgumentError, match="min_per_class needs 40 rows of 10 classes, keep gives 39, got 5"):
        select(table, 39, min_per_class=5)
    assert len(select(table, 40, min_per_class=5)) == 40
    assert np.bincount(np.arange(40)[select(table, 10, min_per_class=1).rows] % 10).tolist() == [1] * 10


@pytest.mark.parametrize("option", [{"class_balanced": True}, {"min_per_class": 1}])
def test_classes_need_labels(option: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=f"{next(iter(option))} needs a table with labels"):
        select(ScoreTable({"el2n": [0.1, 0.2]}), 0.5, **option)


# -- rows without a score, eligible rows --------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["stratified", "top", "bottom", "window"])
@quiet
def test_unscored_rows_are_kept_and_counted_or_dropped(method: Any) -> None:
    scores = el2n_like(100)
    scores[[3, 50, 97]] = np.nan
    table = ScoreTable({"el2n": scores})
    coreset = select(table, 0.2, method=method)
    assert {3, 50, 97} <= set(coreset.rows.tolist())
    assert coreset.selection["unscored"] == 3
    dropped = select(table, 0.2, method=method, unscored="drop")
    assert len(dropped) == 20
    assert not {3, 50, 97} & set(dropped.rows.tolist())
    assert dropped.selection["unscored"] == 0
    with pytest.raises(ArgumentError, match="at most the 97 rows with a score"):
        select(table, 98, method=method, unscored="drop")


def test_too_many_without_a_score_are_warned_about() -> None:
    scores = np.full(100, np.nan)
    scores[:10] = 0.5
    with pytest.warns(PruneSamplerWarning, match="none of the 50 kept rows has a score"):
        coreset = select(ScoreTable({"el2n": scores}), 0.5)
    assert coreset.selection["threshold"] is None
    assert (coreset.rows >= 10).all()


def test_keep_is_a_share_of_the_eligible_rows() -> None:
    table = ScoreTable({"el2n": np.arange(100.0)}, labels=np.arange(100) // 50, keys=[f"k{i}" for i in range(100)])
    coreset = select(table, 0.7, method="top", eligible=range(0, 100, 10))
    assert coreset.rows.tolist() == [30, 40, 50, 60, 70, 80, 90]
    assert coreset.keys == [f"k{i}" for i in coreset.rows]
    assert coreset.selection["eligible"] == 10
    assert coreset.num_rows == 100
    again = select(table, 0.7, method="top", eligible=np.arange(0, 100, 10)[::-1].repeat(2))
    assert again == coreset


@pytest.mark.parametrize("eligible", [[], [5], [-1], [12], [0.0], [True]])
def test_eligible_rows_are_rows_of_the_table(eligible: Any) -> None:
    table = ScoreTable({"el2n": [0.1, 0.2, 0.3]}, rows=[0, 4, 9], num_rows=12)
    with pytest.raises(ArgumentError, match=r"^eligible must"):
        select(table, 0.5, eligible=eligible)


# -- as many as are of use ----------------------------------------------------------------------------------------


def scored_twice(n: int = 60, seed: int = 0, **columns: Any) -> ScoreTable:
    generator = np.random.default_rng(seed)
    score, spread = generator.random(n) * 0.3, generator.random(n) * 0.2
    score[[3, n - 1]], spread[[3, 5]] = np.nan, np.nan
    events, learned = generator.integers(0, 2, n), generator.random(n) < 0.9
    scores = {"el2n": score, "el2n_spread": spread}
    return ScoreTable(scores, **{"forgetting_events": events, "learned": learned, **columns})


def useless(table: ScoreTable, threshold: float) -> set[int]:
    """The rule, row by row in plain Python."""
    gone = set()
    assert table.forgetting_events is not None
    assert table.learned is not None
    for place, row in enumerate(table.rows.tolist()):
        higher = float(table.scores["el2n"][place]) + float(table.scores["el2n_spread"][place]) / 2
        if table.learned[place] and table.forgetting_events[place] == 0 and higher <= threshold:
            gone.add(row)
    return gone


@pytest.mark.parametrize("threshold", [None, 0.05, 0.2, 1])
def test_auto_removes_the_superfluous_rows_and_no_others(threshold: Any) -> None:
    rows = np.random.default_rng(1).permutation(90)[:60]
    table = scored_twice(rows=rows, num_rows=90)
    limit = THRESHOLD if threshold is None else threshold
    gone = useless(table, limit)
    assert gone
    coreset = select(table, "auto", threshold=threshold)
    assert coreset.rows.tolist() == sorted(set(rows.tolist()) - gone)
    assert coreset.selection == {
        "options": {**Selection(0.5).to_dict(), "keep": "auto", "threshold": limit},
        "eligible": 60,
        "kept": 60 - len(gone),
        "superfluous": len(gone),
        "unscored": 2,
        "offset": None,
        "threshold": coreset.selection["threshold"],
    }
    eligible = sorted(rows.tolist())[::2]
    part = select(table, "auto", threshold=threshold, eligible=eligible)
    assert part.rows.tolist() == sorted(set(eligible) - gone)
    assert part.selection["superfluous"] == len(set(eligible) & gone)


def test_auto_leaves_at_least_one_row() -> None:
    easy = ScoreTable(
        {"el2n": [0.01] * 4, "el2n_spread": [0.0] * 4},
        forgetting_events=[0] * 4,
        learned=[True] * 4,
        labels=[0, 0, 1, 1],
    )
    with pytest.raises(ArgumentError, match="threshold must leave one of the 4 eligible rows"):
        select(easy, "auto", threshold=0.1)
    assert len(select(easy, "auto", min_per_class=1)) == 2
    assert select(easy, "auto", threshold=0.001).rows.tolist() == [0, 1, 2, 3]


def each_alone(refused: dict[str, tuple[Any, ...]]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, {name: value}) for name, values in refused.items() for value in values]


NOT_WITH_AUTO: dict[str, tuple[Any, ...]] = {
    "keep": ("all",),
    "method": ("top", "random"),
    "offset": (0.1, 0),
    "class_balanced": (True,),
    "unscored": ("drop",),
    "strata": (10,),
    "threshold": (0, math.nan, "low"),
    "by": ("forgetting", "el2n_spread", "loss"),
    "min_per_class": (0,),
    "seed": (-1,),
}


@pytest.mark.parametrize(
    ("argument", "options"), [*each_alone(NOT_WITH_AUTO), ("threshold", {"threshold": 0.1, "keep": 0.5})]
)
def test_what_auto_does_not_go_with(argument: str, options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError) as caught:
        Selection(**{"keep": "auto", **options})(scored_twice(labels=[0] * 60))
    assert caught.value.argument == argument


@pytest.mark.parametrize(
    ("argument", "columns", "options"),
    [
        ("keep", {"suggested_label": [1]}, {}),
        ("keep", {"labels": [0], "signed_confidence": [0.5]}, {}),
        ("threshold", {}, {"threshold": 0.0}),
        ("threshold", {}, {"threshold": 1.5}),
        ("method", {}, {"method": "top"}),
        ("offset", {}, {"offset": 0.1}),
        ("by", {"labels": [0], "signed_confidence": [0.5], "suggested_label": [1]}, {"by": "loss"}),
    ],
)
def test_what_clean_does_not_go_with(argument: str, columns: dict[str, Any], options: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=f"^{argument} "):
        Selection(**{"keep": "clean", **options})(ScoreTable({"el2n": [0.5]}, **columns))


def test_clean_looks_at_eligible_rows_alone() -> None:
    rng = np.random.default_rng(1)
    labels, wrong = np.arange(400) % 4, np.arange(400) % 5 == 0
    table = ScoreTable(
        {"el2n": np.where(wrong, 1.2, 0.2) + 0.1 * rng.random(400)},
        labels=labels,
        suggested_label=(labels + 1) % 4,
        signed_confidence=np.where(wrong, -1, 1) * rng.uniform(0.7, 1, 400),
    )
    coreset = select(table, "clean", eligible=np.arange(200))
    assert coreset.rows.tolist() == [row for row in range(200) if not wrong[row]]
    rate = audit(table.only(np.arange(200))).noise_rate
    assert coreset.selection["noise_rate"] == [rate.rate, rate.low, rate.high]


def test_clean_leaves_none_out_where_most_labels_look_wrong() -> None:
    labels, noise = np.arange(400) % 4, np.arange(400) / 400
    columns = {"labels": labels, "suggested_label": (labels + 1) % 4}
    table = ScoreTable({"el2n": 0.7 + 0.1 * noise}, signed_confidence=-0.5 - 0.4 * noise, **columns)
    with pytest.warns(PruneSamplerWarning, match="100% of the labels look wrong"):
        assert select(table, "clean").rows.tolist() == list(range(400))


def test_auto_is_a_value_too() -> None:
    selection = Selection("auto")
    assert selection.threshold == THRESHOLD
    assert Selection(**json.loads(json.dumps(selection.to_dict()))) == selection == Selection(np.str_("auto"))  # type: ignore[arg-type]
    assert selection.check(10) is None
    selection.warn(10)
    assert Selection("auto", threshold=np.float32(0.25)).to_dict()["threshold"] == 0.25  # type: ignore[arg-type]


# -- options, provenance, warnings --------------------------------------------------------------------------------


REFUSED: dict[str, tuple[Any, ...]] = {
    "keep": (1, 11),
    "method": ("topk",),
    "by": ("loss", None, "forgetting"),
    "offset": (1.0, -0.1, -1, 10, math.nan, True, "0.1"),
    "class_balanced": (1,),
    "min_per_class": (0, 1.5),
    "seed": (-1, 0.5, None, True),
    "unscored": ("first",),
    "strata": (0, 10_001),
}
NO_OFFSET = [("offset", {"offset": 0.1, "method": "top"}), ("offset", {"offset": 0, "method": "random"})]


@pytest.mark.parametrize(("argument", "options"), [*each_alone(REFUSED), *NO_OFFSET])
def test_options_that_are_refused(argument: str, options: dict[str, Any]) -> None:
    table = ScoreTable({"el2n": np.arange(10.0)}, labels=[0] * 10)
    with pytest.raises(ArgumentError) as caught:
        Selection(**({"keep": 0.5} | options))(table)
    assert caught.value.argument == argument


def test_options_are_a_value() -> None:
    selection = Selection(np.float64(0.5), offset=np.int64(3), seed=np.int32(4))  # type: ignore[arg-type]
    assert Selection(**selection.to_dict()) == selection
    assert Selection(**json.loads(json.dumps(selection.to_dict()))) == selection
    assert selection.check(100) == 50
    with pytest.raises(ArgumentError, match="offset must be below the number of eligible rows, 3"):
        selection.check(3)
    with pytest.raises(ArgumentError, match="keep must be at most"):
        Selection(200).check(100)
    table = ScoreTable({"el2n": np.arange(10.0)})
    assert selection(table) == select(table, 0.5, offset=3, seed=4)


def test_what_a_coreset_says_of_its_making() -> None:
    table = ScoreTable({"el2n": np.arange(100.0)}, fingerprint="size:100", shards=["a"] * 100)
    coreset = select(table, 0.5, method="window", offset=0.1, seed=7)
    assert isinstance(coreset, Coreset)
    assert coreset.scores_digest == table.digest
    assert coreset.fingerprint == "size:100"
    assert coreset.shard_column.to_pylist() == ["a"] * 50
    assert coreset.weights is None
    assert coreset.selection == {
        "options": Selection(0.5, method="window", offset=0.1, seed=7).to_dict(),
        "eligible": 100,
        "kept": 50,
        "unscored": 0,
        "offset": 0.1,
        "threshold": [40, 89],
    }


def test_default_offsets() -> None:
    table = ScoreTable({"el2n": np.arange(1000.0)})
    for keep, left_out in ((1.0, 0), (0.7, 36), (0.5, 100), (0.3, 196)):
        coreset = select(table, keep)
        assert coreset.selection["offset"] == pytest.approx(0.4 * (1 - keep) ** 2)
        assert abs(999 - coreset.rows.max() - left_out) <= 3
    assert select(table, 0.5, method="window").rows.tolist() == list(range(490, 990))
    assert select(table, 0.5, method="bottom").selection["offset"] is None


def test_top_warns_below_six_tenths_and_points_at_its_caller() -> None:
    table = ScoreTable({"el2n": np.arange(100.0)})
    for call in (
        lambda: select(table, 0.59, method="top"),
        lambda: select(table, 59, method="top"),
        lambda: select(table, 0.5, method="top", eligible=range(50)),
    ):
        with pytest.warns(PruneSamplerWarning, match="stratified") as caught:
            call()
        assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        select(table, 0.6, method="top")
        select(table, 0.1, method="bottom")
        select(table, 0.1)


@quiet
def test_the_global_generators_are_left_alone() -> None:
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    for method in METHODS:
        select(ScoreTable({"el2n": el2n_like(50)}), 0.5, method=method)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002
