"""Plots as SVG inside the page: they take its colours, and screen readers read their titles."""

from __future__ import annotations

import contextlib
import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from prunesampler._format import printable
from prunesampler.analysis.statistics import Distribution, Survival
from prunesampler.errors import UnsupportedError

_Array = npt.NDArray[Any]
# Placeholder colours, replaced by the page's own, which differ between light, dark and print.
_COLOURS = {"#000001": "currentColor", "#000002": "var(--accent)", "#000003": "var(--kept)", "#000004": "var(--faint)"}
_INK, _ACCENT, _KEPT, _FAINT = _COLOURS
_MOST_BARS = 40
_MOST_EVENTS = 20
_SCORE_BINS = 48
_LONGEST_NAME = 28


def distribution_plot(found: Distribution, kept: _Array | None) -> str:
    """The histogram of a score that has a finite value, and within it that of ``kept``, the kept rows' values."""
    with _figure(f"Distribution of {found.name}", (5.4, 2.3)) as (axes, done):
        axes.stairs(found.counts, found.edges, fill=True, color=_ACCENT, alpha=0.35, label="all rows")
        if kept is not None:
            counts = np.histogram(kept[np.isfinite(kept)], found.edges)[0]
            axes.stairs(counts, found.edges, color=_KEPT, linewidth=1.5, label="kept")
            axes.legend(frameon=False, labelcolor=_INK)
        axes.set_xlabel(f"{printable(found.name)} ({found.harder} is harder)")
        axes.set_ylabel("rows")
        axes.locator_params(axis="x", integer=found.edges[0] % 1 == 0.5)  # bins around whole numbers
        if found.edges[0] < found.edges[-1]:
            axes.set_xlim(found.edges[0], found.edges[-1])
    return done[0]


def density_plot(forgetting: _Array, score: _Array, name: str) -> str:
    """How many rows have so many forgetting events (infinite: never learned) and such a score, (N,) floats each."""
    known = ~np.isnan(forgetting) & np.isfinite(score)
    forgetting, score = forgetting[known], score[known]
    finite = forgetting[np.isfinite(forgetting)]
    most = int(min(finite.max(initial=0), _MOST_EVENTS))
    columns = np.minimum(np.where(np.isinf(forgetting), most + 2, forgetting), most + 2)
    columns[np.isfinite(forgetting) & (forgetting > most)] = most
    edges = np.linspace(score.min(), score.max() if score.max() > score.min() else score.min() + 1, _SCORE_BINS + 1)
    counts = np.histogram2d(columns, score, (np.arange(most + 4) - 0.5, edges))[0]
    with _figure(f"Density of {name} against forgetting events", (5.4, 2.9)) as (axes, done):
        height = edges[1] - edges[0]
        for column, row in np.argwhere(counts > 0):
            share = np.sqrt(counts[column, row] / counts.max())
            style = {"color": _ACCENT, "alpha": 0.08 + 0.92 * share, "linewidth": 0, "antialiased": False}
            axes.bar(column, height, 1, bottom=edges[row], **style)
        ticks = [tick for tick in range(most + 1) if tick % max(1, -(-most // 10)) == 0]
        labels = [f"≥ {tick}" if tick == most < finite.max(initial=0) else str(tick) for tick in ticks]
        axes.set_xticks([*ticks, most + 2], [*labels, "never\nlearned"])
        axes.set_xlim(-0.6, most + 2.6)
        axes.set_xlabel("forgetting events")
        axes.set_ylabel(printable(name))
    return done[0]


def class_plot(classes: Sequence[Survival], names: Mapping[int, str]) -> str:
    """The kept share of each class: bars where they are few, else a sorted line; ``names`` are label → name."""
    ordered = sorted(classes, key=lambda each: each.share)
    shares = [100 * each.share for each in ordered]
    mean = 100 * sum(each.kept for each in classes) / sum(each.rows for each in classes)
    few = len(classes) <= _MOST_BARS
    with _figure("Kept share of each class", (5.4, 0.7 + 0.2 * len(classes) if few else 2.4)) as (axes, done):
        dashed: Any = {"color": _INK, "linestyle": (0, (4, 3)), "linewidth": 1}
        if few:
            axes.barh(range(len(ordered)), shares, color=_KEPT, alpha=0.75, height=0.7)
            axes.invert_yaxis()
            axes.set_yticks(range(len(ordered)), [class_name(each.label, names) for each in ordered])
            axes.axvline(mean, **dashed)
            axes.set_xlabel("kept, %; dashed: all rows")
        else:
            axes.stairs(shares, fill=True, color=_KEPT, alpha=0.6)
            axes.axhline(mean, **dashed)
            axes.set_xlim(0, len(shares))
            axes.set_xlabel(f"{len(shares):,} classes, sorted by kept share; dashed: all rows")
            axes.set_ylabel("kept, %")
    return done[0]


def class_name(label: int | None, names: Mapping[int, str]) -> str:
    """The name of a class, or its number, shortened to fit."""
    name = "no label" if label is None else printable(names.get(label, label))
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


@contextlib.contextmanager
def _figure(title: str, size: tuple[float, float]) -> Iterator[tuple[Any, list[str]]]:
    """Axes to draw on, and a list that holds the SVG afterwards; matplotlib's global state stays as it is."""
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise UnsupportedError(f"the report needs matplotlib ({error}): pip install 'prunesampler[report]'") from error
    style: Any = {"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": title}
    style |= {"font.family": "sans-serif", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    style |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK)
    done: list[str] = []
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # text stays text, and the browser has the fonts
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        figure.patch.set_alpha(0)
        yield axes, done
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    done.append(_inline(file.getvalue(), title))


def _inline(svg: str, title: str) -> str:
    name = html.escape(printable(title))
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' id="[a-zA-Z0-9.]+_\d+"', "", svg)  # each plot counts from 1 again
    svg = re.sub(r"#00000[1-4]", lambda found: _COLOURS[found[0]], svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px var(--font)", svg)
    head = f'role="img" aria-label="{name}"><title>{name}</title>'
    return re.sub(r'^<svg [^>]*?(viewBox="[^"]*")[^>]*>', lambda found: f"<svg {found[1]} {head}", svg)
