"""What benchmarks share: their options, their results, and where and how the numbers came about."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "add_data",
    "circumstances",
    "make_parser",
    "megabytes",
    "reset_peak",
    "save_report",
    "skip_without_data",
    "trace_of",
]


def make_parser(
    doc: str | None, table: Callable[[dict[str, Any]], list[str]] | None = None, smoke: str | None = "tiny and once"
) -> argparse.ArgumentParser:
    """A parser with ``--out``, ``--smoke`` and, given a table, ``--table``, which prints that of a file and exits."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    beside = "; the tables are written beside it in Markdown" if table else ""
    parser.add_argument("--out", type=Path, help=f"a file of JSON{beside}")
    if smoke is not None:
        parser.add_argument("--smoke", action="store_true", help=smoke)
    if table is not None:

        class Print(argparse.Action):
            def __call__(self, parser: Any, _: Any, path: Any, option: str | None = None) -> None:
                print("\n".join(table(json.loads(path.read_text()))))
                parser.exit()

        parser.add_argument("--table", type=Path, action=Print, help="print the tables of a file of JSON")
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    """The option that says where CIFAR-10 is."""
    parser.add_argument("--data", type=Path, default=os.environ.get("PRUNESAMPLER_DATA"), help="folder of CIFAR-10")


def skip_without_data(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """End the process, and say so, where CIFAR-10 is not at hand."""
    if given.data is None:
        parser.exit(0, "skipped: no --data, and PRUNESAMPLER_DATA names no folder of CIFAR-10\n")


def save_report(report: Any, out: Path | None, lines: Sequence[str] = ()) -> None:
    """Write the report to ``out`` as JSON, and its tables beside it in Markdown; nothing without ``out``."""
    if out is not None:
        out.write_text(json.dumps(report, indent=1) + "\n")
        if lines:
            out.with_suffix(".md").write_text("\n".join(lines) + "\n")


def circumstances(*packages: str) -> dict[str, Any]:
    """The command, the machine and the versions of Python, torch and ``packages``.

    >>> circumstances("numpy")["versions"].keys()
    dict_keys(['python', 'torch', 'numpy'])
    """
    import torch  # not for processes that only measure

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    versions = {name: importlib.import_module(name).__version__ for name in ("torch", *packages)}
    return {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{os.cpu_count()} processors, {platform.machine()}, {device}, load {os.getloadavg()[0]:.1f}",
        "versions": {"python": platform.python_version(), **versions},
    }


def trace_of(work: Callable[[], object]) -> list[dict[str, Any]]:
    """The events of a trace of what ``work`` does, on the GPU too where there is one."""
    import torch

    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        work()
    with tempfile.TemporaryDirectory() as folder:
        profile.export_chrome_trace(f"{folder}/trace.json")
        events: list[dict[str, Any]] = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
        return events


def reset_peak() -> float:
    """Begin to watch the peak anew; the megabytes (2²⁰ bytes) that this process holds now. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")
    return megabytes("VmRSS")


def megabytes(field: str = "VmHWM") -> float:
    """By default the most that this process has held since :func:`reset_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} in /proc/self/status")
