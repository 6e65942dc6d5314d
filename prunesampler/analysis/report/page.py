"""The report: one HTML page that loads nothing else."""

from __future__ import annotations

import html
import importlib.resources
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from prunesampler._format import number, percent
from prunesampler._version import __version__
from prunesampler.analysis.advice import LOST, Case, Judgement, hardest_cells
from prunesampler.analysis.audit import noticed
from prunesampler.analysis.images import Pictures
from prunesampler.analysis.report.plots import class_name, class_plot, density_plot, distribution_plot
from prunesampler.analysis.statistics import Figures, Survival, distribution, figures, kept_in, ranked, survival
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.dataset_names import named_classes
from prunesampler.tables.score_table import ScoreTable

if TYPE_CHECKING:  # which needs torch; scores alone do not
    from prunesampler.selection.near_duplicates import SimilarPairs

SHOWN = 20
"""Images of each kind: hardest, median, easiest."""
_MOST_CLASSES = 12
# Nothing may be fetched and nothing may run, whatever the names in the files are.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(
    table: ScoreTable,
    judgement: Judgement,
    *,
    name: str,
    coreset: Coreset | None = None,
    pictures: Pictures | None = None,
    pairs: Sequence[SimilarPairs] | None = None,
) -> str:
    """An HTML document about a table of scores; text from files is escaped, and nothing is fetched or run.

    ``name`` is that of the table's file; ``pictures`` hold images of the rows of :func:`pictured`, and of the ``pairs``
    of similar rows if there are any.
    """
    kept = None if coreset is None else kept_in(coreset, table)
    survivors = None if kept is None or table.labels is None else survival(table.labels, kept)
    found = figures(table)
    names = (pictures.names if pictures else None) or named_classes(table)
    parts = [
        _head(name, found, judgement, coreset),
        "<main>",
        *_label_noise(table, name),
        *_advice(judgement),
        *_distributions(table, found, judgement.by, kept),
        *_classes(table, found, judgement.by, survivors, names),
        *_pictures(table, judgement, pictures),
        *_similar(pairs, pictures),
        *_hardest(judgement, names),
        *_provenance(table, coreset),
        "</main>",
        f"<footer>prunesampler {_text(__version__)}</footer></html>",
    ]
    return "\n".join(parts) + "\n"


def pictured(table: ScoreTable, by: str) -> dict[str, list[int]]:
    """The rows whose images are shown: the hardest, those around the median, and the easiest, each hardest first."""
    order = table.rows[ranked(table, by)]
    middle = max(0, (len(order) - SHOWN) // 2)
    parts = {"hardest": order[:SHOWN], "median": order[middle : middle + SHOWN], "easiest": order[-SHOWN:]}
    return {kind: rows.tolist() for kind, rows in parts.items()}


def _text(value: object) -> str:
    return html.escape(str(value))


def _head(name: str, found: Figures, judgement: Judgement, coreset: Coreset | None) -> str:
    style = importlib.resources.files("prunesampler.analysis.report").joinpath("style.css").read_text(encoding="utf-8")
    facts = {"rows": f"{found.rows:,}"}
    if found.classes is not None:
        facts["classes"] = f"{sum(each.label is not None for each in found.classes):,}"
    if coreset is not None:
        facts["kept"] = percent(coreset.keep)
    shares = {"learned": found.learned, "never forgotten": found.never_forgotten}
    shares |= {"never learned": found.never_learned, "superfluous": judgement.superfluous}
    facts |= {name: percent(share) for name, share in shares.items() if share is not None}
    if judgement.reliability is not None:
        facts["reliability"] = f"{judgement.reliability.reliability:.2f}"
    cards = "".join(f"<div><dt>{_text(key)}</dt><dd>{_text(value)}</dd></div>" for key, value in facts.items())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(name)} – prunesampler</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<header>
<h1>{_text(name)}</h1>
<p class="soft">Scores of {found.rows:,} of {found.num_rows:,} rows; ranked by {_text(judgement.by)}.</p>
<dl class="facts">{cards}</dl>
</header>"""


def _label_noise(table: ScoreTable, name: str) -> Iterator[str]:
    if wrong := noticed(table, name):
        yield "<h2>Labels</h2>"
        yield f'<section class="case"><p>{_text(wrong[0])}</p><pre>{_text(wrong[1])}</pre></section>'


def _advice(judgement: Judgement) -> Iterator[str]:
    yield "<h2>Should this be pruned?</h2>"
    if (found := judgement.reliability) is not None:
        of = "odd and even scoring epochs" if found.between == "halves" else "runs"
        yield (
            f'<p class="soft">Reliability of the scores: {found.reliability:.2f} '
            f"(rank correlation of {of} {found.correlation:.2f}).</p>"
        )
    for case in judgement.cases:
        control = "\n".join(case.control) if case.gone else ""
        yield (
            f'<section class="case {_text(case.verdict.split()[0])}"><h3>keep {_text(case.keep)}: {_gone(case)}</h3>'
            f"<p>{_text(case.advice)}</p>" + (f"<pre>{_text(control)}</pre>" if control else "") + "</section>"
        )


def _gone(case: Case) -> str:
    parts = [f"{case.gone:,} rows would be removed"]
    if case.learned_for_good is not None:
        parts.append(f"{percent(case.learned_for_good)} of them learned for good")
    if case.superfluous is not None:
        parts.append(f"{percent(case.superfluous)} superfluous")
    if case.cost is not None and case.cost.break_even is not None:
        parts.append(f"breaks even in epoch {case.cost.break_even}")
    return ", ".join(parts)


def _distributions(table: ScoreTable, found: Figures, by: str, kept: Any) -> Iterator[str]:
    yield "<h2>Scores</h2>"
    yield '<div class="plots">'
    for each in found.scores:
        if not each.counts:
            continue
        caption = f"{each.name}: {each.scored:,} rows with a score, {each.unscored:,} without"
        caption += f"; {each.infinite:,} never learned, not shown" if each.infinite else ""
        yield _figure(distribution_plot(each, None if kept is None else table.column(each.name)[kept]), caption)
    finite = distribution(table, by).counts
    if "forgetting" in table.directions and by != "forgetting" and finite and distribution(table, "forgetting").scored:
        caption = f"Rows by forgetting events and {by}; the stronger the colour, the more of them"
        yield _figure(density_plot(table.column("forgetting"), table.column(by), by), caption)
    yield "</div>"


def _figure(svg: str, caption: str) -> str:
    return f"<figure>{svg}<figcaption>{_text(caption)}</figcaption></figure>"


def _classes(
    table: ScoreTable, found: Figures, by: str, survivors: Sequence[Survival] | None, names: Mapping[int, str]
) -> Iterator[str]:
    if found.classes is None:
        return
    yield "<h2>Classes</h2>"
    if survivors is not None:
        lost = sum(each.ratio < LOST for each in survivors)
        caption = f"{lost:,} of {len(survivors):,} classes keep less than half of what all rows keep"
        yield f'<div class="plots">{_figure(class_plot(survivors, names), caption)}<div>'
    shown = found.classes
    if len(shown) > _MOST_CLASSES:
        hardest = sorted(shown, key=lambda each: each.easiness(by, table.directions[by]))
        shown = tuple(hardest[:_MOST_CLASSES])
        yield f"<h3>The {len(shown)} hardest of {len(found.classes):,} classes by mean {_text(by)}</h3>"
    scores = [each.name for each in found.scores]
    rows = [
        [class_name(each.label, names), f"{each.rows:,}", percent(each.share), *(number(each.means[n]) for n in scores)]
        for each in shown
    ]
    yield _table(["class", "rows", "share", *(f"mean {name}" for name in scores)], rows)
    if survivors is not None:
        yield "</div></div>"


def _pictures(table: ScoreTable, judgement: Judgement, pictures: Pictures | None) -> Iterator[str]:
    if pictures is None:
        return
    scores = table.column(judgement.by)
    yield "<h2>Images</h2>"
    for kind, rows in pictured(table, judgement.by).items():
        yield f"<h3>{kind} by {_text(judgement.by)}</h3>"
        yield '<div class="grid">'
        for row, place in zip(rows, np.searchsorted(table.rows, rows).tolist(), strict=True):
            score = number(float(scores[place]))
            label = None if table.labels is None or table.labels[place] < 0 else int(table.labels[place])
            name = class_name(label, pictures.names)
            alt = f"{kind}: row {row}, {name}, {judgement.by} {score}"
            image = _image(pictures.uris[row], alt)
            yield f"<figure>{image}<figcaption><b>{_text(name)}</b><br>{_text(score)} · {row}</figcaption></figure>"
        yield "</div>"


def _similar(pairs: Sequence[SimilarPairs] | None, pictures: Pictures | None) -> Iterator[str]:
    """At each similarity how many rows have a neighbour above it, and the least similar ones of these pairs."""
    if pairs is None:
        return
    yield "<h2>Similar rows</h2>"
    yield (
        '<p class="soft">By the cosine of their features. The lowest similarity whose pairs are still duplicates is '
        "the threshold to deduplicate by.</p>"
    )
    for each in pairs:
        yield f"<h3>above {each.similarity:g}: {percent(each.share)} of the rows have such a neighbour</h3>"
        yield '<div class="grid">'
        for first, second, similarity in each.pairs:
            images = (
                "" if pictures is None else "".join(_image(pictures.uris[row], f"row {row}") for row in (first, second))
            )
            yield f"<figure>{images}<figcaption>{similarity:.3f} · {first}, {second}</figcaption></figure>"
        yield "</div>"


def _image(uri: str, alt: str) -> str:
    small = ' class="small"' if uri.startswith("data:image/png") else ""
    return f'<img{small} src="{_text(uri)}" alt="{_text(alt)}">'


def _hardest(judgement: Judgement, names: Mapping[int, str]) -> Iterator[str]:
    rows = hardest_cells(judgement, str, lambda label: class_name(label, names))
    yield f"<h2>Hardest rows by {_text(judgement.by)}</h2>"
    yield _table(["row", "key", "label", judgement.by, "forgetting events"], rows, text=(1, 2))


def _provenance(table: ScoreTable, coreset: Coreset | None) -> Iterator[str]:
    yield "<h2>Provenance</h2>"
    whole = {"fingerprint": table.fingerprint, "digest": table.digest}
    yield _list("Scores", {**whole, **table.protocols, **table.provenance})
    if coreset is not None:
        yield _list("Coreset", {"rows": len(coreset), "digest": coreset.digest, **coreset.selection})


def _list(title: str, entries: Mapping[str, Any]) -> str:
    shown = "".join(
        f"<dt>{_text(name)}</dt><dd>{_text(value if isinstance(value, str) else json.dumps(value))}</dd>"
        for name, value in entries.items()
    )
    return f'<h3>{title}</h3><dl class="provenance">{shown}</dl>'


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[int] = ()) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        marks = [' class="text"' if place in text else "" for place in range(len(cells))]
        return "".join(f"<{tag}{mark}>{_text(cell)}</{tag}>" for cell, mark in zip(cells, marks, strict=True))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    head = f"<thead><tr>{line(headings, 'th')}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>{body}</tbody></table></div>'
