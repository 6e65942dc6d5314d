"""Where and how a benchmark's numbers came about, and how much memory they took."""

from __future__ import annotations

import importlib
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

__all__ = ["circumstances", "megabytes", "reset_peak"]


def circumstances(*packages: str) -> dict[str, Any]:
    """The command, the machine and the versions of Python, torch and ``packages``.

    >>> circumstances("numpy")["versions"].keys()
    dict_keys(['python', 'torch', 'numpy'])
    """
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()
    versions = {name: importlib.import_module(name).__version__ for name in ("torch", *packages)}
    return {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{os.cpu_count()} processors, {platform.machine()}, {device}, load {os.getloadavg()[0]:.1f}",
        "versions": {"python": platform.python_version(), **versions},
    }


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
