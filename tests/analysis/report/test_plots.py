from __future__ import annotations

import re
import sys
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from prunesampler.analysis.report.plots import class_name, class_plot, density_plot, distribution_plot
from prunesampler.analysis.statistics import distribution, survival
from prunesampler.errors import UnsupportedError
from prunesampler.tables.score_table import ScoreTable

NASTY = "</svg><script>alert(1)</script>$x$ -- \x1b 漢"


def parsed(svg: str) -> ElementTree.Element:
    """The drawing as XML; what an HTML parser knows of itself is declared for it."""
    return ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1))


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in parsed(svg).iter("text")]


def heights(svg: str, colour: str) -> list[float]:
    """Of the outline filled or drawn in a colour, the distinct distances from its base, in its order."""
    (path,) = [e for e in parsed(svg).iter("path") if f"{colour}" in e.get("style", "")][:1]
    ys = [float(y) for _, y in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path.get("d", ""))]
    return [max(ys) - y for y in ys]


def test_a_distribution_is_drawn_to_scale_in_the_colours_of_the_page() -> None:
    table = ScoreTable({"count": [0, 0, 0, 0, 1, 2, 2]})
    svg = distribution_plot(distribution(table, "count"), np.array([0.0, 0.0, np.inf]))
    steps = heights(svg, "fill: var(--accent)")
    drawn = [height for height in dict.fromkeys(round(height / max(steps), 3) for height in steps) if height]
    assert drawn == [1.0, 0.25, 0.5]
    assert "var(--kept)" in svg
    assert "currentColor" in svg
    assert "#00000" not in svg
    assert "kept" in texts(svg)
    assert "kept" not in texts(distribution_plot(distribution(table, "count"), None))


def test_drawings_hold_no_foreign_text_no_ids_twice_and_no_addresses() -> None:
    scores = np.linspace(0, 1, 50)
    table = ScoreTable({NASTY: scores}, labels=np.arange(50) % 5)
    drawings = [
        distribution_plot(distribution(table, NASTY), scores[:9]),
        density_plot(np.arange(50.0) % 4, scores, NASTY),
        class_plot(survival(np.arange(50) % 5, scores > 0.3), {1: NASTY}),
    ]
    for svg in drawings:
        assert parsed(svg).get("role") == "img"
        assert parsed(svg).get("aria-label")
        assert "<script" not in svg
        assert "\x1b" not in svg
        assert "http" not in svg
        assert svg.count("</svg>") == 1
    ids = [found for svg in drawings for found in re.findall(r'\bid="([^"]*)"', svg)]
    assert len(ids) == len(set(ids))
    assert drawings[0] == distribution_plot(distribution(table, NASTY), scores[:9])


def test_the_density_has_a_cell_for_each_place_that_is_taken() -> None:
    forgetting = np.array([0, 0, 3, np.inf, np.nan, 1])
    score = np.array([0.1, 0.1, 0.5, 0.9, 0.9, np.nan])
    svg = density_plot(forgetting, score, "el2n")
    cells = [e for e in parsed(svg).iter("path") if "fill: var(--accent)" in e.get("style", "")]
    assert len(cells) == 3
    assert sum("opacity" not in cell.get("style", "") for cell in cells) == 1  # the one with two rows is full
    assert {"0", "3", "never", "learned"} <= set(" ".join(texts(svg)).split())
    assert "≥ 20" in texts(density_plot(np.array([0.0, 50.0]), np.array([0.5, 0.5]), "el2n"))


def test_few_classes_are_bars_and_many_a_line() -> None:
    labels = np.arange(100) % 4
    few = texts(class_plot(survival(labels - 1, labels == 0), {0: "cat", 2: "an extremely long name of a class"}))
    assert {"no label", "cat", "1", "an extremely long name of a…"} <= set(few)
    many = class_plot(survival(np.arange(200), np.arange(200) % 2 == 0), {})
    assert any(text.startswith("200 classes") for text in texts(many))
    assert class_name(None, {}) == "no label"


def test_single_values_and_other_settings_of_matplotlib_are_no_trouble() -> None:
    before = dict(matplotlib.rcParams)
    distribution_plot(distribution(ScoreTable({"loss": [0.5]}), "loss"), np.array([0.5]))
    density_plot(np.array([np.inf]), np.array([0.5]), "loss")
    assert dict(matplotlib.rcParams) == before


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'prunesampler\[report\]'"):
        density_plot(np.array([0.0]), np.array([0.5]), "loss")
