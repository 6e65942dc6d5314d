from __future__ import annotations

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunesampler.analysis.advice import judge
from prunesampler.analysis.images import Pictures
from prunesampler.analysis.report.page import SHOWN, page, pictured
from prunesampler.errors import MismatchError
from prunesampler.selection.select import select
from prunesampler.tables.score_table import Coreset, ScoreTable

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PIXEL = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)
ATTACK = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>&amp;"
ONLINE = {"kind": "online", "epochs": 4, "reduction": "mean", "runs": 1, "split_half": 0.8}


def scored(rows: int = 200, classes: int = 10, **changes: Any) -> ScoreTable:
    el2n = np.linspace(0, 1.3, rows)
    columns = {
        "labels": np.arange(rows) % classes,
        "forgetting_events": np.arange(rows) % 4,
        "learned": el2n < 1.2,
        "keys": [f"{ATTACK}{row}" for row in range(rows)],
        "protocols": {"el2n": ONLINE, "el2n_spread": {**ONLINE, "spread_of": "el2n"}},
        "provenance": {ATTACK: ATTACK, "scoring": {"score_epochs": 4}},
    }
    scores = {"el2n": el2n, "el2n_spread": np.full(rows, 0.01), ATTACK: -el2n}
    return ScoreTable(scores, **{**columns, **changes})


def whole_page(table: ScoreTable, **options: Any) -> str:
    rows = {row for kind in pictured(table, "el2n").values() for row in kind}
    given = {
        "name": f"{ATTACK}.parquet",
        "coreset": select(table, 0.5),
        "pictures": Pictures({0: ATTACK, 1: "truck"}, dict.fromkeys(rows, PIXEL)),
        **options,
    }
    return page(table, judge(table, [0.5, "auto"], path=f"{ATTACK}.parquet"), **given)


class Tags(HTMLParser):
    """Start tags with their attributes, and all text outside of the style."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_comes_from_files_is_text_and_nothing_else() -> None:
    found = Tags(whole_page(scored()))
    tags = {tag for tag, _ in found.tags}
    assert not tags & {"script", "iframe", "object", "embed", "base", "form"}
    attributes = {name for _, attributes in found.tags for name in attributes}
    assert not {name for name in attributes if name.startswith("on")}
    for tag, attributes in found.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("data:", "#")), (tag, attributes)
    assert found.text.count(ATTACK) >= 15
    assert not re.search(r"url\((?!#)|@import", whole_page(scored()))


def test_every_part_is_there() -> None:
    found = Tags(whole_page(scored()))
    headings = ["Should this be pruned?", "Scores", "Classes", "Images", "Hardest rows by el2n", "Provenance"]
    places = [found.text.index(f"\n{heading}\n") for heading in headings]
    assert places == sorted(places)
    counts = {tag: sum(tag == other for other, _ in found.tags) for tag in ("svg", "img", "figure")}
    assert counts == {"svg": 5, "img": 3 * SHOWN, "figure": 5 + 3 * SHOWN}
    assert all(attributes.get("alt") for tag, attributes in found.tags if tag == "img")
    assert all(attributes.get("aria-label") for tag, attributes in found.tags if tag == "svg")
    assert "hardest: row 199, 9, el2n 1.300" in {attributes.get("alt") for _, attributes in found.tags}
    assert "keep 0.5: 100 rows would be removed" in found.text
    assert "--keep 0.5 --method random --seed 0" in found.text
    assert '"method": "stratified"' in found.text


def test_pictures_are_of_the_hardest_the_median_and_the_easiest() -> None:
    found = pictured(scored(), "el2n")
    assert {kind: (rows[0], rows[-1]) for kind, rows in found.items()} == {
        "hardest": (199, 180),
        "median": (109, 90),
        "easiest": (19, 0),
    }
    margin = ScoreTable({"margin": [3.0, float("nan"), -1.0]}, num_rows=9, rows=[2, 5, 7])
    assert pictured(margin, "margin") == {kind: [7, 2] for kind in ("hardest", "median", "easiest")}


@pytest.mark.parametrize(
    "table",
    [
        ScoreTable({"loss": [0.5]}),
        ScoreTable({"loss": [0.5, float("nan")], "other": [float("nan")] * 2}, labels=[-1, -1]),
        ScoreTable({}, forgetting_events=[0, 0], learned=[False, False], labels=[0, 1]),
        scored(classes=1000, rows=2000),
    ],
)
def test_tables_of_little_and_of_much(table: ScoreTable) -> None:
    text = page(table, judge(table, [0.5]), name="scores.parquet")
    assert "Images" not in Tags(text).text
    assert len(text) < 150_000
    text = page(table, judge(table, [0.5]), name="scores.parquet", coreset=Coreset([0], num_rows=table.num_rows))
    assert ("Kept share of each class" in text) == (table.labels is not None)


def test_a_coreset_of_other_scores_is_refused() -> None:
    with pytest.raises(MismatchError, match="was not selected from these scores"):
        whole_page(scored(), coreset=Coreset([1], num_rows=300))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A page on a server of its own, and the list of what is asked of that server."""
    (tmp_path / "served").mkdir()
    (tmp_path / "served/report.html").write_text(whole_page(scored()), encoding="utf-8")
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/report.html", asked
    server.shutdown()
    thread.join()
    server.server_close()


def browse(tmp_path: Path, *args: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1100,3000", "--hide-scrollbars"]
    return subprocess.run([CHROMIUM, *flags, *args], capture_output=True, text=True, timeout=200, check=True)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look at the page with")
def test_a_browser_shows_it_fetches_nothing_and_has_no_complaint(served: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = served
    log = tmp_path / "net.json"
    done = browse(tmp_path, "--dump-dom", f"--log-net-log={log}", address)
    found = Tags(done.stdout)
    counts = {tag: sum(tag == other for other, _ in found.tags) for tag in ("svg", "img", "script")}
    assert counts == {"svg": 5, "img": 3 * SHOWN, "script": 0}
    assert "CONSOLE" not in done.stderr
    assert asked == ["/report.html"]
    events = json.loads(log.read_text())["events"]
    urls = {event["params"]["url"] for event in events if "url" in event.get("params", {})}
    foreign = {url for url in urls if url.startswith(("http", "ws", "ftp")) and "//127.0.0.1" not in url}
    assert not {url for url in foreign if "google" not in url}  # the browser's own
