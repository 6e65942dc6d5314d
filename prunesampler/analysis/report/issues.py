"""The page of suspects: images whose label is likely wrong, to be judged one by one and exported."""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prunesampler._format import counted, percent
from prunesampler._version import __version__
from prunesampler.analysis.audit import LabelIssues
from prunesampler.analysis.report.plots import class_name

if TYPE_CHECKING:  # which needs torch
    from prunesampler.analysis.images import Pictures

SHOWN = 500
"""Suspects on a page, the likeliest."""
_CLASSES = 20
_DECISIONS = ("wrong", "right", "unsure")


def issues_page(issues: LabelIssues, *, name: str, pictures: Pictures | None = None, limit: int = SHOWN) -> str:
    """An HTML document that loads nothing else; text from files is escaped, and only its own script may run.

    ``pictures`` hold images of the first ``limit`` rows of the issues.
    """
    issues_names = issues.names | ({} if pictures is None else pictures.names)
    script, style = (_resource(f"issues.{kind}") for kind in ("js", "css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    parts = [
        f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Likely wrong labels in {_text(name)} – prunesampler</title>
<link rel="icon" href="data:,">
<style>
{_resource("style.css")}{style}</style>
</head>
<body data-scores="{_text(issues.table.digest)}">""",
        *_head(issues, name),
        "<main>",
        *_classes(issues, issues_names),
        *_groups(issues, issues_names, pictures, limit),
        "</main>",
        *([_BAR] if len(issues) else []),
        f"<footer>prunesampler {_text(__version__)}</footer>",
        f"<script>{script}</script>" if len(issues) else "",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


_BAR = """<div class="bar"><span id="count" role="status"></span>
<button type="button" id="export">Export decisions.csv</button></div>"""


def _resource(name: str) -> str:
    return importlib.resources.files("prunesampler.analysis.report").joinpath(name).read_text(encoding="utf-8")


def _text(value: object) -> str:
    return html.escape(str(value))


def _head(issues: LabelIssues, name: str) -> Iterator[str]:
    facts = {"labels wrong, about": percent(issues.noise_rate.rate)}
    if issues.noise_rate.low == issues.noise_rate.low:
        low, high = percent(issues.noise_rate.low), percent(issues.noise_rate.high)
        facts["within"] = f"{low.removesuffix(' %')} to {high}"
    facts |= {"flagged": f"{len(issues):,}", "of rows": f"{len(issues.table):,}"}
    cards = "".join(f"<div><dt>{_text(key)}</dt><dd>{_text(value)}</dd></div>" for key, value in facts.items())
    notes = "".join(f'<section class="case"><p>{_text(note)}</p></section>' for note in issues.notes)
    yield f"""<header>
<h1>Likely wrong labels</h1>
<p class="soft">{_text(name)}; flagged from a probability of {issues.threshold:g} on, ranked by {_text(issues.by)},
method {_text(issues.method)}.</p>
<dl class="facts">{cards}</dl>
{notes}</header>"""


def _classes(issues: LabelIssues, names: dict[int, str]) -> Iterator[str]:
    classes = sorted(issues.per_class, key=lambda each: (-each.flagged, each.label))
    shown = [each for each in classes if each.flagged][:_CLASSES]
    if not shown:
        yield "<p>No label is likely wrong.</p>"
        return
    title = "Classes" if len(shown) == len(classes) else f"The {counted(len(shown), 'class', 'classes')} flagged most"
    rows = "".join(
        f"<tr><td>{_text(class_name(each.label, names))}</td><td>{each.rows:,}</td><td>{each.flagged:,}</td>"
        f"<td>{percent(each.rate)}</td></tr>"
        for each in shown
    )
    yield f"""<details><summary>{title}</summary><div class="scroll"><table>
<thead><tr><th>given label</th><th>rows</th><th>flagged</th><th>wrong, about</th></tr></thead>
<tbody>{rows}</tbody></table></div></details>"""


def _groups(issues: LabelIssues, names: dict[int, str], pictures: Pictures | None, limit: int) -> Iterator[str]:
    if len(issues) > limit:
        yield f'<p class="soft">The likeliest {limit:,} of {len(issues):,} are shown.</p>'
    columns = (issues.rows, issues.keys, issues.labels, issues.suggested_labels, issues.scores, issues.probabilities)
    suspects = list(zip(*(list(column[:limit]) for column in columns), strict=True))
    pairs: dict[tuple[int, int], list[tuple[object, ...]]] = {}
    for suspect in suspects:
        pairs.setdefault((int(suspect[2]), int(suspect[3])), []).append(suspect)
    for label, suggested in sorted(pairs, key=lambda pair: -len(pairs[pair])):
        given, other = class_name(label, names), "?" if suggested < 0 else class_name(suggested, names)
        group = pairs[label, suggested]
        yield f"""<section class="pair"><h2>{_text(given)} <span class="soft">→ {_text(other)}?</span>
<small>{len(group):,}</small>
<span class="all">all: {" ".join(f'<button type="button" data-all="{each}">{each}</button>' for each in _DECISIONS)}
</span></h2>
<div class="grid suspects">"""
        yield from (_suspect(each, given, other, pictures) for each in group)
        yield "</div></section>"


def _suspect(suspect: tuple[object, ...], given: str, other: str, pictures: Pictures | None) -> str:
    row, key, label, suggested, _, probability = suspect
    shown = str(row) if key is None else str(key)
    image = f'<div class="none">{_text(shown)}</div>'
    if pictures is not None:
        uri = pictures.uris[int(str(row))]
        small = ' class="small"' if uri.startswith("data:image/png") else ""
        image = f'<img{small} loading="lazy" src="{_text(uri)}" alt="row {row}, given {_text(given)}">'
    choices = "".join(
        f'<label><input type="radio" name="d{row}" value="{each}"><span>{each}</span></label>' for each in _DECISIONS
    )
    kept = "" if key is None else f' data-key="{_text(key)}"'
    guess = "" if int(str(suggested)) < 0 else suggested
    likely = "&gt;99 %" if float(str(probability)) > 0.99 else f"{float(str(probability)):.0%}".replace("%", " %")
    question = f"row {row}: is {_text(given)} wrong?"
    return (
        f'<figure data-row="{row}"{kept} data-label="{label}" data-suggested="{guess}">{image}'
        f'<figcaption><b>{_text(given)}</b><br>{_text(other)}? <span title="probability that the label is wrong">'
        f'{likely}</span><br><span class="key" title="{_text(shown)}">{_text(shown)}</span>'
        f'</figcaption><fieldset aria-label="{question}">{choices}</fieldset></figure>'
    )
