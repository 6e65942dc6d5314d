"""What condensed images are worth: each method beside random rows, herding and k-center of the same size, and all rows.

    python benchmarks/condensation.py --out benchmarks/results/condensation.json
    python benchmarks/condensation.py --cifar10 DIR --out benchmarks/results/condensation-cifar10.json
    python benchmarks/condensation.py --table benchmarks/results/condensation.json

Digits are scikit-learn's, 8 × 8, split as the demo splits them. Every set is trained on as ``evaluate`` does it, by the
network and for the epochs that the file names, under the same augmentation (without flips on digits), DC's too. What
is not as published (iterations, rates, loops, widths) stands in the file with each method. ``--split`` takes other test
rows: rates were tried on split 1. With ``--cifar10``, DM at 10 images a class alone.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import circumstances, make_parser, save_report

from prunesampler.condensation import CondensedDataset, condense, evaluate
from prunesampler.condensation.condense import METHODS

KINDS = "color_crop_cutout_scale_rotate"
LOOPS = {"outer": 3, "inner": 5}
DIGITS: dict[str, dict[str, Any]] = {
    "dm": {"iterations": 200, "learning_rate": 20.0, "augment": KINDS},
    "dc": {"iterations": 30, "init": "real", "method_options": LOOPS},
    "dsa": {"iterations": 30, "augment": KINDS, "method_options": LOOPS},
    "idm": {"iterations": 120, "learning_rate": 20.0, "augment": KINDS, "method_options": {"queue": 20, "steps": 2}},
    "cafe": {"iterations": 20, "augment": KINDS, "method_options": {"window": 3, "most": 5}},
}
NETWORK = {"width": 32}
BESIDE = ("random", "herding", "k_center")


def digits(split: int) -> tuple[Any, Any]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    scans = load_digits()
    parts = train_test_split(np.arange(len(scans.target)), test_size=0.25, stratify=scans.target, random_state=split)
    images, labels = torch.tensor(scans.images / 16, dtype=torch.float32)[:, None], torch.tensor(scans.target)
    train, test = ((images[rows], labels[rows]) for rows in parts)
    return train, test


def cifar10(root: Path) -> tuple[Any, Any]:
    from prunesampler.analysis.images import read_cifar10

    train, test = (read_cifar10(root, part) for part in ("train", "test"))  # type: ignore[arg-type]
    return train, test


def figures(results: Any) -> dict[str, list[float]]:
    return {each.images: each.accuracies for each in results}


def measured(
    train: Any, test: Any, method: str, per_class: int, options: dict[str, Any], network: dict[str, Any], given: Any
) -> dict[str, Any]:
    began = time.perf_counter()
    made = condense(train, per_class, method, network_options=network, progress=False, **options)
    seconds = time.perf_counter() - began
    shown = CondensedDataset(
        made.stored,
        made.stored_labels,
        mean=made.normalization.mean.flatten(),
        std=made.normalization.std.flatten(),
        augment=given["augment"],
        parts=made.parts,
        provenance=made.provenance,
    )
    results = evaluate(
        shown, test, seeds=given["seeds"], epochs=given["epochs"], network_options=network, progress=False
    )
    return {"seconds": seconds, "made": made.provenance, "accuracies": figures(results)["condensed"]}


def controls(train: Any, test: Any, per_class: int, network: dict[str, Any], given: Any, all_epochs: int) -> Any:
    images, labels = train
    rows = torch.cat([(labels == label).nonzero()[:per_class, 0] for label in range(10)])
    values = images[rows].float() / (255 if images.dtype == torch.uint8 else 1)
    whole = images[:: max(1, len(images) // 10_000)].float() / (255 if images.dtype == torch.uint8 else 1)
    mean, std = whole.mean((0, 2, 3)), whole.std((0, 2, 3))
    holder = CondensedDataset(values, labels[rows], mean=mean, std=std, augment=given["augment"])
    options: dict[str, Any] = {"train": train, "seeds": given["seeds"], "network_options": network, "progress": False}
    found = figures(evaluate(holder, test, beside=BESIDE, epochs=given["epochs"], **options))
    if all_epochs:
        found |= figures(evaluate(holder, test, beside=("all",), epochs=all_epochs, **options))
    del found["condensed"]
    return found


def table(report: dict[str, Any]) -> list[str]:
    sizes = sorted(report["sizes"], key=int)
    names = list(dict.fromkeys(name for size in sizes for name in report["sizes"][size]))
    lines = [
        f"Accuracy on {report['data']}, in percent: mean ± standard deviation of {report['seeds']} networks.",
        "",
        "| images | iterations | seconds | " + " | ".join(f"{size} a class" for size in sizes) + " |",
        "| --- " * (3 + len(sizes)) + "|",
    ]

    def accuracy(arm: dict[str, Any] | None) -> str:
        if arm is None:
            return ""
        return f"{100 * np.mean(arm['accuracies']):.1f} ± {100 * np.std(arm['accuracies'], ddof=1):.1f}"

    for name in names:
        arms = [report["sizes"][size].get(name) for size in sizes]
        made = [a for a in arms if a and "made" in a]
        iterations = f"{made[0]['made']['iterations']}" if made else ""
        seconds = " / ".join(f"{a['seconds']:.0f}" for a in made)
        shown = {"k_center": "k-center", "all": "all rows"}.get(name, name.upper() if made else name)
        lines.append(f"| {shown} | {iterations} | {seconds} | " + " | ".join(map(accuracy, arms)) + " |")
    return lines


def save(report: dict[str, Any], out: Path | None) -> None:
    """Write the report; what the file has of other runs is kept."""
    if out is not None and out.exists():
        before = json.loads(out.read_text())["sizes"]
        sizes = {size: before.get(size, {}) | arms for size, arms in report["sizes"].items()}
        report = {**report, "sizes": before | sizes}
    save_report(report, out, table(report))


def main() -> None:
    parser = make_parser(__doc__, table)
    parser.add_argument("--cifar10", type=Path, metavar="DIR")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=["dm", "dsa", "idm", "cafe", "dc"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 10], help="images a class")
    parser.add_argument("--iterations", type=int, help="of each method, instead of its own")
    parser.add_argument("--split", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    given = {"seeds": args.seeds, "epochs": args.epochs, "augment": "dsa" if args.cifar10 else KINDS}
    network: dict[str, Any] = NETWORK
    configured = DIGITS
    if args.cifar10:
        train, test = cifar10(args.cifar10)
        name = f"CIFAR-10, {len(test[1])} test images"
        args.methods, args.sizes = ["dm"], [10]
        configured = {"dm": {"iterations": 200, "learning_rate": 10.0, "batch_size": 64}}
    else:
        train, test = digits(args.split)
        name = f"scikit-learn's digits, {len(test[1])} test images"
    if args.smoke:
        given |= {"seeds": 2, "epochs": 2}
        configured = {name: {**each, "iterations": 2} for name, each in configured.items()}
        train, test = ((images[:300], labels[:300]) for images, labels in (train, test))
    if args.iterations:
        configured = {name: {**each, "iterations": args.iterations} for name, each in configured.items()}
    report: dict[str, Any] = {**circumstances(), "data": name, **given, "network": {"convnet": network}, "sizes": {}}
    for size in args.sizes:
        arms = report["sizes"][str(size)] = {}
        for method in args.methods:
            arms[method] = measured(train, test, method, size, configured[method], network, given)
            print(size, method, arms[method]["accuracies"], f"{arms[method]['seconds']:.0f} s", flush=True)
            save(report, args.out)
        every = 0 if args.cifar10 or size == 1 else max(1, args.epochs // 5)
        for arm, accuracies in controls(train, test, size, network, given, every).items():
            arms[arm] = {"accuracies": accuracies, **({"epochs": every} if arm == "all" else {})}
            print(size, arm, accuracies, flush=True)
        save(report, args.out)
    print("\n".join(table(report)) if args.out is None else json.dumps({"written": str(args.out)}))


if __name__ == "__main__":
    main()
