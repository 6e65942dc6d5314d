"""The page of suspects: what it shows, that nothing but its own script can run, and what a browser exports."""

from __future__ import annotations

import base64
import hashlib
import html
import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prunesampler as ps
from prunesampler.analysis.images import Pictures
from prunesampler.analysis.report.issues import issues_page
from tests.analysis.report.test_page import ATTACK, CHROMIUM, PIXEL, Tags, browse
from tests.analysis.test_audit import audited

KEYS = [f'{ATTACK}"{row},\n{row}' for row in range(600)]


@pytest.fixture(scope="module")
def issues() -> ps.LabelIssues:
    return ps.audit(audited(keys=KEYS, provenance={"classes": ["cat", ATTACK, "eel"], "true": []}))


def whole_page(issues: ps.LabelIssues, **options: Any) -> str:
    pictures = Pictures({}, dict.fromkeys(issues.rows.tolist(), PIXEL))
    return issues_page(issues, name=ATTACK, **{"pictures": pictures, **options})


def figures(text: str) -> list[dict[str, str]]:
    return [attributes for tag, attributes in Tags(text).tags if tag == "figure"]  # type: ignore[misc]


def test_every_suspect_is_shown_once_by_pairs_of_labels(issues: ps.LabelIssues) -> None:
    text = whole_page(issues)
    shown = figures(text)
    assert sorted(int(each["data-row"]) for each in shown) == sorted(issues.rows)
    suggested = dict(zip(issues.rows.tolist(), issues.suggested_labels.tolist(), strict=True))
    for each in shown:
        row = int(each["data-row"])
        assert each["data-key"] == KEYS[row]
        assert int(each["data-suggested"]) == suggested[row]
    pairs = [(each["data-label"], each["data-suggested"]) for each in shown]
    changes = 1 + sum(a != b for a, b in itertools.pairwise(pairs))
    assert changes == len(set(pairs)) == len(issues.confusions)
    assert sum(tag == "img" for tag, _ in Tags(text).tags) == len(issues)
    assert sum(tag == "input" for tag, _ in Tags(text).tags) == 3 * len(issues)


def test_a_limit_shows_the_likeliest(issues: ps.LabelIssues) -> None:
    text = whole_page(issues, limit=7)
    assert {int(each["data-row"]) for each in figures(text)} == set(issues.rows[:7].tolist())
    assert f"likeliest 7 of {len(issues)}" in text


def test_only_its_own_script_may_run_and_text_is_no_markup(issues: ps.LabelIssues) -> None:
    text = whole_page(issues)
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (
        attributes["content"]
        for _, attributes in Tags(text).tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    for tag, attributes in Tags(text).tags:
        assert not {name for name in attributes if name.startswith("on")}
        assert (attributes.get("src") or "data:").startswith("data:")
        assert tag not in ("iframe", "object", "embed")


def test_without_pictures_keys_are_shown_and_without_suspects_there_is_nothing_to_export(
    issues: ps.LabelIssues,
) -> None:
    assert "<img" not in whole_page(issues, pictures=None).replace("&lt;img", "")
    clean = whole_page(ps.audit(audited(noise=0.0)))
    assert "No label is likely wrong" in clean
    assert "<script" not in clean
    assert "<button" not in clean


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look at the page with")
def test_what_a_browser_exports_is_read_by_relabel(issues: ps.LabelIssues, tmp_path: Path) -> None:
    text = whole_page(issues)
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    # The same script, and clicks in the place of somebody's: its hash is another one, so the policy goes.
    clicks = """
      document.querySelectorAll("figure[data-row]")[0].querySelector("input[value=wrong]").click();
      document.querySelectorAll("figure[data-row]")[1].querySelector("input[value=right]").click();
      document.querySelectorAll(".pair")[1].querySelector("[data-all=unsure]").click();
      document.title = document.getElementById("count").textContent;
      document.body.innerHTML = "<pre id=out></pre>"; document.getElementById("out").textContent = exported();
    """
    text = re.sub(r"<meta http-equiv[^>]*>", "", text).replace(script, script + clicks)
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    dom = browse(tmp_path, "--dump-dom", (tmp_path / "page.html").as_uri()).stdout
    exported = html.unescape(re.search(r'<pre id="out">(.*?)</pre>', dom, flags=re.DOTALL)[1])  # type: ignore[index]
    (tmp_path / "decisions.csv").write_text(exported, encoding="utf-8")
    order = [int(each["data-row"]) for each in figures(whole_page(issues))]
    found = ps.relabel(tmp_path / "decisions.csv", issues.table, unsure="drop")
    assert found.changed.tolist() == [order[0]]
    second = issues.confusions[1]
    of_pair = (issues.labels == second.label) & (issues.suggested_labels == second.suggested_label)
    assert found.dropped.tolist() == sorted(issues.rows[of_pair])
    assert np.flatnonzero(found.labels != issues.table.labels).tolist() == [order[0]]
    assert f"{2 + second.flagged} of {len(issues)} decided" in dom
