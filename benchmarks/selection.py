"""Selecting from a file of scores into a coreset's file, beside numpy, pandas, polars and DuckDB.

    python benchmarks/selection.py --sizes 10000000 --out benchmarks/results/selection.json
    python benchmarks/selection.py --sizes 1000000000 --methods top --arms prunesampler --folder /data/scores
    python benchmarks/selection.py --table benchmarks/results/selection.json

Half of the rows are kept: the hardest (top), the hardest but for 1 % (window), drawn from 50 strata without the hardest
10 % (stratified), or drawn from all (random). Every figure comes from a process of its own, the median of three below
10⁸ rows; time is from opening the file of scores to the coreset's file, memory the most that the process held, in all
and above its imports. The answer is checked afterwards by yet another process: the number of rows, their order, and
that nothing harder, or no other number of a stratum, was to be kept. A file of scores is read right after it was
written, or read before. ``prunesampler, unchecked`` leaves out the digest, which proves that the file is what was
written; no other arm proves anything. A peer gets ``--memory`` and ``--minutes`` and is shown with its error if that
does not do. ``--out`` adds to what the file holds of other sizes, methods and arms; ``--folder`` keeps the scores.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import circumstances, make_parser, megabytes, reset_peak, save_report

from prunesampler.selection.engine import Threads
from prunesampler.selection.select import Selection, select_file
from prunesampler.selection.stratified import even_sizes
from prunesampler.tables.parquet import ROW_GROUP, Parts, content_digest, to_arrow, write_parts
from prunesampler.tables.score_file import ScoreFile

SIZES = [10_000_000, 100_000_000, 1_000_000_000]
ONCE_FROM = 100_000_000
STRATA = 50
OFFSETS = {"top": 0.0, "window": 0.01, "stratified": 0.1, "random": 0.0}

Rows = np.ndarray[Any, Any]


# -- the scores --------------------------------------------------------------------------------------------------


def column(name: str, rows: int, group: int) -> Rows:
    """A row group's values: EL2N skewed towards easy rows, few forgetting events, nearly all learned."""
    start = group * ROW_GROUP
    length = min(ROW_GROUP, rows - start)
    generator = np.random.default_rng([len(name), group])
    if name == "row":
        return np.arange(start, start + length)
    if name == "el2n":
        return np.float32(1.4) * np.square(generator.random(length, np.float32))
    if name == "forgetting_events":
        bits = generator.integers(0, 256, length, np.uint8)
        return np.where(bits < 200, 0, bits & 7).astype(np.int32)
    if name == "learned":
        return generator.integers(0, 256, length, np.uint8) > 5
    return np.full(length, 10, np.int32)


def write_scores(path: Path, rows: int) -> None:
    names = ("row", "el2n", "forgetting_events", "learned", "presentations")
    groups = range(-(-rows // ROW_GROUP))
    directions = {"el2n": "higher", "forgetting": "higher"}
    empty: dict[str, Any] = {"fingerprint": None, "protocols": {}, "provenance": {}}
    metadata = {"kind": "scores", "num_rows": rows, "directions": directions, **empty}

    def read(name: str) -> Iterator[Rows]:
        return (column(name, rows, group) for group in groups)

    digest = content_digest(metadata, {name: Parts(rows, functools.partial(read, name)) for name in names})
    parts = (pa.table({name: to_arrow(column(name, rows, group)) for name in names}) for group in groups)
    write_parts(path, metadata, digest, parts)


# -- arms: a file of scores, a method and a file to write ----------------------------------------------------------


def ours(scores: Path, method: str, out: Path) -> None:
    offset = OFFSETS[method] or None
    with Threads() as threads:
        select_file(threads.map, scores, out, Selection(0.5, method=method, offset=offset, strata=STRATA))


def unchecked(scores: Path, method: str, out: Path) -> None:
    ScoreFile.verify = lambda file: None  # type: ignore[method-assign]
    ours(scores, method, out)


def reading(scores: Path, method: str, out: Path) -> None:
    for _ in pq.ParquetFile(scores).iter_batches(columns=["el2n"]):
        pass


def counts_of(rows: int, method: str) -> tuple[int, int]:
    """How many of the hardest are left out, and how many are kept."""
    return int(OFFSETS[method] * rows), rows // 2


def save(rows: Any, out: Path) -> None:
    pq.write_table(pa.table({"row": rows}), out)


def of_numpy(scores: Path, method: str, out: Path) -> None:
    rows = pq.read_metadata(scores).num_rows
    left_out, keep = counts_of(rows, method)
    if method == "random":
        found = np.random.default_rng(0).choice(rows, keep, replace=False, shuffle=False)
        found.sort()
        return save(found, out)
    el2n = pq.read_table(scores, columns=["el2n"])["el2n"].to_numpy()
    kept = np.ones(rows, np.bool_)
    if left_out:
        kept[np.argpartition(el2n, rows - left_out)[rows - left_out :]] = False
    if method == "stratified":
        stratum = strata(el2n, float(el2n.min()), float(el2n[kept].max()))
        order = np.random.default_rng(0).permutation(rows)
        order = order[kept[order]]
        order = order[np.argsort(stratum[order], kind="stable")]
        sizes = np.bincount(stratum[kept], minlength=STRATA)
        wanted = even_sizes(sizes.tolist(), keep)
        starts = np.cumsum(sizes) - sizes
        found = np.concatenate([order[at : at + size] for at, size in zip(starts, wanted, strict=True)])
        found.sort()
        return save(found, out)
    places = np.flatnonzero(kept)
    kept[places[np.argpartition(el2n[places], len(places) - keep)[: len(places) - keep]]] = False
    save(np.flatnonzero(kept), out)


def strata(el2n: Rows, low: float, high: float) -> Rows:
    return np.minimum((el2n.astype(np.float64) - low) / (high - low) * STRATA, STRATA - 1).astype(np.uint8)


def of_pandas(scores: Path, method: str, out: Path) -> None:
    import pandas as pd

    table = pd.read_parquet(scores, columns=["row"] if method == "random" else ["row", "el2n"])
    left_out, keep = counts_of(len(table), method)
    if method == "random":
        return save(np.sort(table["row"].sample(keep, random_state=0).to_numpy()), out)
    if left_out:
        table = table.drop(table["el2n"].nlargest(left_out).index)
    if method == "stratified":
        table["stratum"] = strata(table["el2n"].to_numpy(), table["el2n"].min(), table["el2n"].max())
        wanted = even_sizes(table["stratum"].value_counts(sort=False).sort_index().tolist(), keep)
        drawn = [
            part["row"].sample(wanted[at], random_state=0) for at, (_, part) in enumerate(table.groupby("stratum"))
        ]
        return save(np.sort(pd.concat(drawn).to_numpy()), out)
    save(np.sort(table["row"].loc[table["el2n"].nlargest(keep).index].to_numpy()), out)


def of_polars(scores: Path, method: str, out: Path) -> None:
    import polars as pl

    table = pl.read_parquet(scores, columns=["row"] if method == "random" else ["row", "el2n"])
    left_out, keep = counts_of(len(table), method)

    def hardest(table: Any, count: int) -> Any:
        """Whether a row is among the hardest: nth_element, and of those at the cut the first."""
        cut = table["el2n"].quantile((len(table) - count) / (len(table) - 1), "nearest")
        above = table["el2n"] > cut
        tied = table["el2n"] == cut
        return above | (tied & (tied.cum_sum() <= count - above.sum()))

    if method == "random":
        table = table.sample(keep, seed=0).sort("row")
    elif method == "top":
        table = table.filter(hardest(table, keep))
    else:
        table = table.filter(~hardest(table, left_out))
        if method == "window":
            table = table.filter(hardest(table, keep))
        else:
            low, high = table["el2n"].cast(pl.Float64).min(), table["el2n"].cast(pl.Float64).max()
            share = (pl.col("el2n").cast(pl.Float64) - low) / (high - low) * STRATA
            table = table.with_columns(share.clip(0, STRATA - 1).cast(pl.UInt8).alias("stratum"))
            sizes = table.group_by("stratum").len().sort("stratum")["len"].to_list()
            wanted = pl.Series(even_sizes(sizes, keep), dtype=pl.UInt32)
            place = pl.int_range(pl.len(), dtype=pl.UInt32).shuffle(seed=0).over("stratum")
            table = table.with_columns(place.alias("place")).filter(pl.col("place") < wanted.gather(table["stratum"]))
    table.select("row").write_parquet(out)


def of_duckdb(scores: Path, method: str, out: Path) -> None:
    import duckdb

    given = duckdb.connect()
    given.execute(f"SET temp_directory = '{out.parent}/duckdb'")
    limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
    if limit != resource.RLIM_INFINITY:
        given.execute(f"SET memory_limit = '{int(limit * 0.8 / 2**20)}MiB'")
    rows = pq.read_metadata(scores).num_rows
    left_out, keep = counts_of(rows, method)
    given.execute(f"CREATE VIEW scores AS SELECT row, el2n, hash(row) AS lot FROM '{scores}'")

    def one(query: str) -> Any:
        row = given.execute(query).fetchone()
        assert row is not None
        return row[0]

    def highest(column: str, count: int) -> str:
        """The condition for being among the highest: quantile_disc, and of those at the cut the first."""
        kind = "FLOAT" if column == "el2n" else "UBIGINT"
        cut = one(f"SELECT quantile_disc({column}, {(rows - count + 0.5) / rows!r}) FROM scores")
        above = one(f"SELECT count(*) FROM scores WHERE {column} > {cut!r}::{kind}")
        last = one(
            f"SELECT max(row) FROM (SELECT row FROM scores WHERE {column} = {cut!r}::{kind} "
            f"ORDER BY row LIMIT {count - above})"
        )
        return f"({column} > {cut!r}::{kind} OR ({column} = {cut!r}::{kind} AND row <= {last}))"

    if method == "random":
        query = f"SELECT row FROM scores WHERE {highest('lot', keep)}"
    elif method == "top":
        query = f"SELECT row FROM scores WHERE {highest('el2n', keep)}"
    elif method == "window":
        inner, outer = highest("el2n", left_out), highest("el2n", left_out + keep)
        query = f"SELECT row FROM scores WHERE {outer} AND NOT {inner}"
    else:
        inner = highest("el2n", left_out)
        low, high = given.execute(f"SELECT min(el2n), max(el2n) FROM scores WHERE NOT {inner}").fetchone()  # type: ignore[misc]
        stratum = f"least((el2n::DOUBLE - {low!r}) / {high - low!r} * {STRATA}, {STRATA - 1})"
        rest = f"SELECT row, lot, floor({stratum})::UTINYINT AS stratum FROM scores WHERE NOT {inner}"
        sizes = given.execute(f"SELECT stratum, count(*) FROM ({rest}) GROUP BY 1 ORDER BY 1").fetchall()
        wanted = even_sizes([size for _, size in sizes], keep)
        values = ", ".join(f"({each}, {size})" for (each, _), size in zip(sizes, wanted, strict=True))
        query = (
            f"SELECT row FROM (SELECT row, stratum, row_number() OVER (PARTITION BY stratum ORDER BY lot) AS place "
            f"FROM ({rest})) JOIN (VALUES {values}) AS wanted(stratum, size) USING (stratum) WHERE place <= size "
            f"ORDER BY row"
        )
    given.execute(f"COPY ({query}) TO '{out}' (FORMAT parquet)")


ARMS: dict[str, Callable[[Path, str, Path], None]] = {
    "prunesampler": ours,
    "prunesampler, unchecked": unchecked,
    "reading the column": reading,
    "numpy": of_numpy,
    "pandas": of_pandas,
    "polars": of_polars,
    "DuckDB": of_duckdb,
}
IMPORTS = {"pandas": "pandas", "polars": "polars", "DuckDB": "duckdb"}


# -- measuring ---------------------------------------------------------------------------------------------------


def measure(name: str, method: str, scores: Path, out: Path, memory: float) -> dict[str, float]:
    """One selection, in this process."""
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 2**30),) * 2)
    if name in IMPORTS:
        __import__(IMPORTS[name])
    pa.table({"row": np.arange(1)})  # imports pandas, where there is one
    before = reset_peak()
    start = time.perf_counter()
    ARMS[name](scores, method, out)
    seconds = time.perf_counter() - start
    peak = megabytes()
    return {"seconds": round(seconds, 3), "megabytes": round(peak), "above_imports": round(peak - before)}


def check(method: str, scores: Path, out: Path) -> None:
    el2n = pq.read_table(scores, columns=["el2n"])["el2n"].to_numpy()
    left_out, keep = counts_of(len(el2n), method)
    rows = pq.read_table(out, columns=["row"])["row"].to_numpy()
    assert len(rows) == keep, (len(rows), keep)
    assert rows[0] >= 0
    assert rows[-1] < len(el2n)
    assert (rows[1:] > rows[:-1]).all()
    if method == "random":
        assert abs(float(rows.mean()) / len(el2n) - 0.5) < 2 / keep**0.5
        return
    kept = np.zeros(len(el2n), np.bool_)
    kept[rows] = True
    scored = el2n[kept]
    if method == "top":
        assert np.count_nonzero(el2n > scored.min()) <= keep  # none that is harder is left, but for ties at the cut
        assert el2n[~kept].max() <= scored.min()
    elif method == "window":
        assert np.count_nonzero(el2n > scored.max()) <= left_out <= np.count_nonzero(el2n >= scored.max())
        assert np.count_nonzero(el2n > scored.min()) <= left_out + keep <= np.count_nonzero(el2n >= scored.min())
        between = (el2n > scored.min()) & (el2n < scored.max())
        assert (kept >= between).all()
    else:
        cut = np.partition(el2n, len(el2n) - left_out - 1)[len(el2n) - left_out - 1]
        rest = el2n <= cut
        sizes = np.bincount(strata(el2n[rest], float(el2n.min()), float(cut)), minlength=STRATA)
        sizes[-1] -= int(rest.sum()) - (len(el2n) - left_out)  # ties at the cut
        found = np.bincount(strata(scored, float(el2n.min()), float(cut)), minlength=STRATA)
        assert found.tolist() == even_sizes(sizes.tolist(), keep), (found, sizes)


def in_a_process(given: argparse.Namespace, task: str, name: str, method: str, scores: Path, out: Path) -> Any:
    limit = 60 * given.minutes
    command = [sys.executable, __file__, "--one", task, name, method, str(scores), str(out)]
    try:
        done = subprocess.run([*command, "--memory", str(given.memory)], capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {given.minutes:g} minutes"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"killed by signal {-done.returncode}"])[-1]}
    return json.loads(done.stdout)


def compare(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for rows in given.sizes:
        scores = folder / f"scores-{rows}.parquet"
        if not scores.exists():
            write_scores(scores, rows)
        sized = found[str(rows)] = {"megabytes_of_scores": round(scores.stat().st_size / 2**20)}
        for method in given.methods:
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in given.arms}
            for _ in range(1 if rows >= ONCE_FROM else given.repetitions):
                for name, its in runs.items():
                    if its and "error" in its[-1]:
                        continue
                    out = folder / "coreset.parquet"
                    run = in_a_process(given, "measure", name, method, scores, out)
                    if "error" not in run and out.exists() and not its:
                        wrong = in_a_process(given, "check", name, method, scores, out)
                        run |= {"error": f"wrong: {wrong['error']}"} if "error" in wrong else wrong
                    out.unlink(missing_ok=True)
                    its.append(run)
            sized[method] = {name: _median(its) for name, its in runs.items()}
            print(rows, method, json.dumps(sized[method]), file=sys.stderr, flush=True)
    return found


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    if "error" in runs[-1]:
        return {"error": runs[-1]["error"]}
    figures = {key: statistics.median(run[key] for run in runs) for key in ("seconds", "megabytes", "above_imports")}
    return {**figures, "spread": sorted({run["seconds"] for run in runs}), **{"coreset_megabytes": runs[0].get("out")}}


def table(report: dict[str, Any]) -> list[str]:
    lines = [
        "| rows | method | arm | seconds | × prunesampler | memory, MB | of it above imports |",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for rows, methods in sorted(report["sizes"].items(), key=lambda each: int(each[0])):
        for method in OFFSETS:
            arms = methods.get(method, {})
            for name in [name for name in ARMS if name in arms]:
                run, beside = arms[name], arms.get("prunesampler", {}).get("seconds")
                start = f"| {int(rows):,} | {method} | {name} |"
                if "error" in run:
                    lines.append(f"{start} fails: {run['error'][:90]} | | | |")
                    continue
                times = f"{run['seconds'] / beside:.2f}" if beside else ""
                memory = f"{run['megabytes']:,.0f} | {run['above_imports']:,.0f}"
                lines.append(f"{start} {run['seconds']:.2f} | {times} | {memory} |")
    return lines


def main() -> None:
    parser = make_parser(__doc__, table)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--methods", nargs="+", choices=OFFSETS, default=list(OFFSETS))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--memory", type=float, default=16.0, help="GiB of data that a process may hold")
    parser.add_argument("--minutes", type=float, default=4.0, help="that a process may take")
    parser.add_argument("--folder", type=Path, help="where the scores lie, or will; else in a temporary folder")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        task, name, method, scores, out = given.one
        if task == "check":
            check(method, Path(scores), Path(out))
            print(json.dumps({"out": round(os.stat(out).st_size / 2**20, 1)}))
        else:
            print(json.dumps(measure(name, method, Path(scores), Path(out), given.memory)))
        return
    if given.smoke:
        given.sizes, given.repetitions = [20_000], 1
    packages = [package for package in ("pandas", "polars", "duckdb") if _has(package)]
    report = {**circumstances("numpy", "pyarrow", *packages), "memory_limit_gib": given.memory, "sizes": {}}
    if given.out and given.out.exists():
        report["sizes"] = json.loads(given.out.read_text())["sizes"]
    with tempfile.TemporaryDirectory() as temporary:
        found = compare(given, given.folder or Path(temporary))
    for rows, methods in found.items():
        held = report["sizes"].setdefault(rows, {})
        for method, arms in methods.items():
            held[method] = {**held.get(method, {}), **arms} if isinstance(arms, dict) else arms
    save_report(report, given.out, table(report))
    print("\n".join(table(report)))


def _has(package: str) -> bool:
    try:
        __import__(package)
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    main()
