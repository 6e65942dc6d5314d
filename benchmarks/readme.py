"""Put the tables of results/ between the markers that name them, in the README, here and in docs/.

python benchmarks/readme.py            # write
python benchmarks/readme.py --check    # exit 1, naming the pages, where one is not what the results say
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
RATIOS = FOLDER / "results/ratios.md"
PAGES = (FOLDER / "README.md", FOLDER.parent / "README.md", FOLDER.parent / "docs/when-it-pays.md")
_MARKED = re.compile(r"(<!-- (results/[\w/-]+\.md) -->\n).*?(<!-- / -->)", re.DOTALL)


def filled(page: str) -> str:
    """The page with each table as its file has it now, without the file's own title."""

    def of(found: re.Match[str]) -> str:
        text = (FOLDER / found[2]).read_text(encoding="utf-8")
        return found[1] + re.sub(r"\A# .*\n", "", text).strip() + "\n" + found[3]

    return _MARKED.sub(of, page)


def ratios() -> str:
    """The most telling ratios of the raw results, each of two arms that took turns in one run."""
    step = _result("step")["ResNet-18, 32"]["arms"]["scoring"]
    update = {arm: each["us_a_step"] for arm, each in _result("tracker")["update"]["128 × 10"].items()}
    tracker = update["ScoreTracker, EL2N and forgetting"]
    sampler = _result("sampler")["sizes"]["10000000"]
    epochs = {arm["arm"]: arm["ratio"] for arm in _result("shards")["epochs"] if arm["keep"] == 0.5}
    seconds = {arm: each["seconds"] for arm, each in _result("selection")["sizes"]["100000000"]["top"].items()}
    low, high = step["interval"]
    rows: list[tuple[str, float, str]] = [
        (
            "a training step of ResNet-18, 32 images: with scoring ÷ without",
            step["ratio"],
            f" ({low:.2f} … {high:.2f})",
        ),
        ("scoring 128 × 10 logits ÷ `cross_entropy`'s forward", tracker / update["cross_entropy"], ""),
        ("a row of the sampler, of 10⁷, ÷ `RandomSampler`", sampler["PrunedSampler"]["times_peer"], ""),
        ("an epoch of local tar shards at keep 0.5 ÷ webdataset's full one", epochs["IndexedShards"], ""),
        ("the hardest half of 10⁸ rows, file to file, ÷ polars", seconds["prunesampler"] / seconds["polars"], ""),
    ]
    lines = [f"| {what} | {ratio:.2f}{more} |" for what, ratio, more in rows]
    return "\n".join(["| time | ratio |", "| --- | ---: |", *lines, ""])


def _result(name: str) -> Any:
    return json.loads((FOLDER / f"results/{name}.json").read_text(encoding="utf-8"))


if __name__ == "__main__":
    check, stale = "--check" in sys.argv[1:], []
    for path in (RATIOS, *PAGES):  # the ratios first, as a page shows them
        found = path.read_text(encoding="utf-8")
        text = ratios() if path == RATIOS else filled(found)
        if check and text != found:
            stale.append(str(path))
        elif text != found:
            path.write_text(text, encoding="utf-8")
    if stale:
        sys.exit(f"not as the results are: {', '.join(stale)}")
