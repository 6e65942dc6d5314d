"""All that only a GPU can show, in nine minutes at most: benchmarks/gpu.sh OUT

The tests that need a GPU; a step with attach beside the step without, eager, as CUDA graphs and compiled, with host
synchronisations and kernels; the tracker beside cross entropy; NCCL by torchrun with one rank; then CIFAR-10 with
ResNet-18, an arm after the other, for as long as there is time. Each part is a process that leaves a file in OUT and is
ended when its time is over. The same command again runs what is not done and goes on with CIFAR-10. ``gpu.json`` holds
everything, and its table is printed. Without a GPU all parts run at tiny sizes on the CPU, which shows no figures.

What a part needs and the machine lacks (pytest for the tests, a folder of CIFAR-10) it says, and is skipped.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import step_overhead
import torch
import tracker_overhead
from common import circumstances

HERE = Path(__file__).parent
BOTH_FINISH = 15.0  # seconds, for the last part to be ended and the tables to be written


@dataclass(frozen=True)
class Part:
    """A command, and how many seconds it may take.

    Attributes:
        name: its row in the table.
        command: arguments of Python.
        seconds: at most.
        done: whether there is nothing left to do.
        missing: what it needs and does not have.
    """

    name: str
    command: list[str]
    seconds: float
    done: Callable[[], bool]
    missing: str = ""


def parts(out: Path, data: Path | None, cuda: bool, epochs: int) -> list[Part]:
    """All of them, the most telling first."""
    device, smoke = ("cuda", []) if cuda else ("cpu", ["--smoke"])
    tests = ["tests/training/test_attach_devices.py", "tests/tracking/test_tracker.py", "tests/capture/test_binder.py"]
    chosen = [*tests, "-m", "gpu"] if cuda else tests[:1]
    passed, nccl = out / "tests.xml", out / "nccl" / "0.pt"
    pytest_ = ["-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", f"--junit-xml={passed}", *chosen]
    missing = [name for name in ("pytest", "pytest_timeout", "hypothesis") if importlib.util.find_spec(name) is None]
    found = [Part("tests", pytest_, 150, lambda: _green(passed), " and ".join(missing))]

    for name in step_overhead.SETTINGS["cuda"] if cuda else step_overhead.SMOKE:
        file = out / "step.json"
        given = [str(HERE / "step_overhead.py"), "--device", device, "--settings", name, "--out", str(file), *smoke]
        given += ["--minutes", "0.15"] if cuda else []
        found.append(Part(f"step: {name}", given, 75, lambda file=file, name=name: name in _read(file)))  # type: ignore[misc]

    tracker = out / "tracker.json"
    given = [str(HERE / "tracker_overhead.py"), "--device", device, "--rounds", "5", "--out", str(tracker), *smoke]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "--module"]
    found[4:4] = [  # before what is compiled
        Part("tracker", given, 60, tracker.exists),
        Part("NCCL", [*torchrun, "tests.helpers.devices", device, str(out / "nccl")], 60, nccl.exists),
    ]

    folder = out / "cifar10"
    cifar = [str(HERE / "cifar10.py"), "--data", str(data), "--out", str(folder), "--device", device]
    cifar += ["--budgets", "epochs", "--keep", "0.5", "--arms"]
    if cuda:
        cifar += ["el2n-stratified", "fresh", "random", "attach", "--recipe", "resnet18", "--epochs", str(epochs)]
        cifar += ["--processes", "3", "--hours", "HOURS"]
    else:
        cifar += ["random", "--epochs", "3", "--seeds", "1", "--hours", "0.001"]  # one arm
    kind = "ResNet-18" if cuda else "the small network"
    found.append(Part(f"CIFAR-10, {kind}", cifar, 540, lambda: False, "" if data else "--data, a folder of CIFAR-10"))
    return found


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return found


def _green(file: Path) -> bool:
    return file.exists() and 'errors="0" failures="0"' in file.read_text()


def perform(part: Part, out: Path, seconds: float) -> dict[str, Any]:
    """Run one part for so long at the most; how it ended, and the last that it said where it failed."""
    command = [sys.executable, *(f"{seconds / 3600:.4f}" if each == "HOURS" else each for each in part.command)]
    log = out / "logs" / (part.name.replace(":", "").replace(" ", "-").replace(",", "") + ".txt")
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(out / "compiled")}
    began = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command, cwd=HERE.parent, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # and what it started
                process.wait()
    state = "done" if code == 0 or (code is None and part.done()) else "out of time" if code is None else "failed"
    told = {} if state == "done" else {"said": log.read_text(errors="replace").splitlines()[-15:]}
    return {"state": state, "seconds": round(time.monotonic() - began, 1), **told}


def run(out: Path, data: Path | None, cuda: bool, minutes: float, epochs: int, only: list[str]) -> dict[str, Any]:
    until = time.monotonic() + 60 * minutes - BOTH_FINISH
    for folder in ("logs", "nccl"):
        (out / folder).mkdir(exist_ok=True)
    report = {**circumstances("numpy", "pyarrow"), "dry": not cuda, "parts": _read(out / "gpu.json").get("parts", {})}
    for part in parts(out, data, cuda, epochs):
        if only and not part.name.lower().startswith(tuple(only)):
            continue
        seconds = min(part.seconds, until - time.monotonic()) if cuda else 600  # a busy machine is no failure
        if part.missing:
            report["parts"][part.name] = {"state": f"skipped: needs {part.missing}", "seconds": 0.0}
        elif part.done() and report["parts"].get(part.name, {}).get("state") == "done":
            continue
        elif seconds < 10:
            report["parts"].setdefault(part.name, {"state": "no time left", "seconds": 0.0})
        else:
            print(f"{part.name} …", file=sys.stderr, flush=True)
            report["parts"][part.name] = perform(part, out, seconds)
        (out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    report |= {"step": _read(out / "step.json"), "tracker": _read(out / "tracker.json")}
    report["cifar10"] = {file.stem: _read(file) for file in sorted((out / "cifar10").glob("*.json"))}
    (out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def table(report: dict[str, Any]) -> list[str]:
    lines = [f"{report['machine']}; torch {report['versions']['torch']}.", ""]
    if report["dry"]:
        lines = ["No GPU here: tiny sizes on the CPU, so that these are no figures.", "", *lines]
    lines += ["| part | seconds | |", "| --- | ---: | --- |"]
    lines += [f"| {name} | {part['seconds']:.0f} | {part['state']} |" for name, part in report["parts"].items()]
    for name, of in (("step", step_overhead.table), ("tracker", tracker_overhead.table)):
        lines += ["", *of(report[name])] if report[name] else []
    if report["cifar10"]:
        lines += ["", "| arm | accuracy, % | steps | seconds |", "| --- | ---: | ---: | ---: |"]
    for name, arm in report["cifar10"].items():
        accuracy = f"{100 * arm['accuracy']:.2f}" if "accuracy" in arm else "–"
        lines.append(f"| {name} | {accuracy} | {arm['steps']} | {arm['seconds']:.0f} |")
    for name, part in report["parts"].items():
        if "said" in part:
            lines += ["", f"{name}, {part['state']}:", *(f"    {line}" for line in part["said"])]
    return lines


def unpack(wheels: Path, folder: Path) -> None:
    """Put the packages of a folder of wheels on the path of this process and those that it starts."""
    if not folder.exists():
        names = sorted({file.name.split("-")[0] for file in wheels.glob("*.whl")})
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--find-links", str(wheels)]
        subprocess.run([*command, "--target", str(folder), *names], check=True)
    sys.path.append(str(folder))
    os.environ["PYTHONPATH"] = f"{os.environ.get('PYTHONPATH', '')}:{folder}"


def write_noise(folder: Path) -> Path:
    """A folder of CIFAR-10 that holds a few images of noise."""
    (folder / "cifar-10-batches-bin").mkdir(parents=True, exist_ok=True)
    for name in ("data_batch_1", "test_batch"):
        records = np.random.default_rng(0).integers(256, size=(200, 3073), dtype=np.uint8)
        records[:, 0] = np.arange(200) % 10
        records.tofile(folder / "cifar-10-batches-bin" / f"{name}.bin")
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder; of an earlier run: goes on")
    parser.add_argument("--data", type=Path, default=os.environ.get("PRUNESAMPLER_DATA"), help="a folder of CIFAR-10")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels of what is not installed")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--epochs", type=int, default=30, help="of CIFAR-10's full run, of which the recipe has 200")
    parser.add_argument("--parts", nargs="+", default=[], help="only these, by the beginnings of their names")
    given = parser.parse_args()
    cuda, out = torch.cuda.is_available(), given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if given.wheels:
        unpack(given.wheels.resolve(), out / "packages")
    data = Path(given.data).resolve() if given.data else None
    if not cuda:
        print("no GPU here: a dry run of everything at tiny sizes on the CPU", file=sys.stderr)
        shutil.rmtree(out / "cifar10", ignore_errors=True)
        data = write_noise(out / "noise")
    only = [each.lower() for each in given.parts]
    report = run(out, data, cuda, given.minutes, given.epochs, only)
    lines = table(report)
    (out / "gpu.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    sys.exit(any(part["state"] == "failed" for part in report["parts"].values()))


if __name__ == "__main__":
    main()
