"""Bytes a row, and how fast scores and coresets are written and read, beside Feather, numpy's files and plain Parquet.

    python benchmarks/files.py --out benchmarks/results/files.json
    python benchmarks/files.py --table benchmarks/results/files.json

Scores are row, EL2N, forgetting events, presentations and learned; a coreset is half of the rows, drawn at random.
Reading ends with numpy arrays. Arms take turns; the median round counts, read right after it was written. What is read
is compared with what was written. ``prunesampler`` proves on reading that a file is what was written, by a SHA-256 of
all values, and checks the values; ``prunesampler, read by pyarrow`` reads the same file and proves nothing, as no
other arm does.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
from common import circumstances, make_parser, save_report
from selection import column

from prunesampler import Coreset, ScoreTable
from prunesampler.tables.parquet import ROW_GROUP

ROWS = 10_000_000

Columns = dict[str, np.ndarray[Any, Any]]


def scores_of(rows: int) -> Columns:
    names = ("row", "el2n", "forgetting_events", "learned", "presentations")
    groups = range(-(-rows // ROW_GROUP))
    return {name: np.concatenate([column(name, rows, group) for group in groups]) for name in names}


def coreset_of(rows: int) -> Columns:
    kept = np.random.default_rng(0).permutation(rows)[: rows // 2]
    return {"row": np.sort(kept)}


def save_ours(columns: Columns, num_rows: int, path: Path) -> None:
    if "el2n" not in columns:
        return Coreset(columns["row"], num_rows=num_rows).save(path)
    scores = {"el2n": columns["el2n"]}
    counts = {name: values for name, values in columns.items() if name not in ("row", "el2n")}
    ScoreTable(scores, rows=columns["row"], num_rows=num_rows, **counts).save(path)  # type: ignore[arg-type]


def load_ours(columns: Columns, path: Path) -> Columns:
    return (ScoreTable if "el2n" in columns else Coreset).load(path)._columns()


def save_numpy(save: Any, columns: Columns, path: Path) -> None:
    with path.open("wb") as file:
        save(file, **columns)


def arrays(table: pa.Table) -> Columns:
    return {name: table[name].to_numpy() for name in table.column_names}


Save = Callable[[Columns, int, Path], Any]
Load = Callable[[Columns, Path], Columns]

ARMS: dict[str, tuple[Save | None, Load]] = {
    "prunesampler": (save_ours, load_ours),
    "prunesampler, read by pyarrow": (
        None,
        lambda columns, path: arrays(pq.read_table(path)),
    ),  # what the last one wrote
    "Feather, lz4": (
        lambda columns, rows, path: feather.write_feather(pa.table(columns), path, "lz4"),
        lambda columns, path: arrays(feather.read_table(path)),
    ),
    "Feather, zstd": (
        lambda columns, rows, path: feather.write_feather(pa.table(columns), path, "zstd"),
        lambda columns, path: arrays(feather.read_table(path)),
    ),
    "numpy, savez": (
        lambda columns, rows, path: save_numpy(np.savez, columns, path),
        lambda columns, path: dict(np.load(path)),
    ),
    "numpy, savez_compressed": (
        lambda columns, rows, path: save_numpy(np.savez_compressed, columns, path),
        lambda columns, path: dict(np.load(path)),
    ),
    "Parquet, as pyarrow writes it": (
        lambda columns, rows, path: pq.write_table(pa.table(columns), path),
        lambda columns, path: arrays(pq.read_table(path)),
    ),
}


def compare(columns: Columns, num_rows: int, rounds: int, folder: Path) -> dict[str, Any]:
    runs: dict[str, dict[str, list[float]]] = {name: {"write": [], "read": []} for name in ARMS}
    sizes = {}
    path = folder / "file"
    for number in range(rounds + 1):
        for name, (save, load) in ARMS.items():
            start = time.perf_counter()
            if save is not None:
                save(columns, num_rows, path)
                middle = time.perf_counter()
            else:
                middle = start
            found = load(columns, path)
            end = time.perf_counter()
            sizes[name] = path.stat().st_size
            for each, values in columns.items():
                assert np.array_equal(found[each], values), (name, each)
            del found
            if number:  # the first warms up
                runs[name]["write"] += [] if save is None else [middle - start]
                runs[name]["read"].append(end - middle)
    beside = min(statistics.median(runs[name]["read"]) for name in ARMS if name.startswith("Feather"))
    return {
        name: {
            "bytes_a_row": round(sizes[name] / num_rows, 3),
            "write_ns_a_row": round(statistics.median(its["write"]) / num_rows * 1e9, 1) if its["write"] else None,
            "read_ns_a_row": round(statistics.median(its["read"]) / num_rows * 1e9, 1),
            "read_spread": [round(pick(its["read"]) / num_rows * 1e9, 1) for pick in (min, max)],
            "read_times_feather": round(statistics.median(its["read"]) / beside, 2),
        }
        for name, its in runs.items()
    }


def table(report: dict[str, Any]) -> list[str]:
    lines = []
    for kind in ("scores", "coreset"):
        lines += [
            f"| {kind}, N = {report['rows']:,} | bytes a row of N | write, ns | read, ns | × the faster Feather |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for name, run in report[kind].items():
            written = "" if run["write_ns_a_row"] is None else f"{run['write_ns_a_row']:.1f}"
            read = f"{run['read_ns_a_row']:.1f} | {run['read_times_feather']:.2f}"
            lines.append(f"| {name} | {run['bytes_a_row']:.3f} | {written} | {read} |")
        lines.append("")
    return lines[:-1]


def main() -> None:
    parser = make_parser(__doc__, table)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if given.smoke:
        given.rows, given.rounds = 20_000, 1
    report = {**circumstances("numpy", "pyarrow"), "rows": given.rows}
    with tempfile.TemporaryDirectory() as folder:
        for kind, columns in (("scores", scores_of(given.rows)), ("coreset", coreset_of(given.rows))):
            report[kind] = compare(columns, given.rows, given.rounds, Path(folder))
    save_report(report, given.out, table(report))
    print("\n".join(table(report)))


if __name__ == "__main__":
    main()
