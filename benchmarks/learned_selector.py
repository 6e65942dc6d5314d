"""A selector that learns from measured subsets (InstructionGPT-4), beside random rows and single indicators.

    python benchmarks/learned_selector.py --out benchmarks/results/learned-selector.json
    python benchmarks/learned_selector.py --table benchmarks/results/learned-selector.json

Handwritten digits (scikit-learn), 1,000 to select from, of which a share (``--noise``) has a wrong label; 400 for
validation, the other 397 for the test. Indicators: EL2N and margin of a network that was trained on all 1,000 rows for
ten epochs, density (mean cosine to the ten nearest rows, by pixels) and label agreement (the share of these that bear
the same label). ``--subsets`` random subsets of 100 rows are trained on and validated; the selector then keeps 100 rows
in 10 clusters. Every arm is trained on ``--seeds`` times, and tested: the mean and its standard error.
"""

from __future__ import annotations

import statistics
import warnings
from typing import Any

import numpy as np
import torch
from common import circumstances, make_parser, save_report
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import prunesampler as ps

ROWS, VALIDATION, KEPT, NEIGHBOURS = 1000, 400, 100, 10


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def trained(x: Tensor, y: Tensor, seed: int, steps: int, batch: int = 32) -> nn.Module:
    model, generator = network(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        rows = torch.randint(len(x), (batch,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model.eval()


def indicators(x: Tensor, y: Tensor) -> ps.ScoreTable:
    table = ps.score(
        trained(x, y, 0, 10 * len(x) // 32), DataLoader(TensorDataset(x, y), 250), scores=("el2n", "margin")
    )
    unit = nn.functional.normalize(x)
    cosine, near = (unit @ unit.T - 2 * torch.eye(len(x))).topk(NEIGHBOURS)
    agreement = (y[near] == y[:, None]).float().mean(1)
    return table.replace(
        scores={**table.scores, "density": cosine.mean(1).numpy(), "agreement": agreement.numpy()},
        directions={**table.directions, "agreement": "lower"},
    )


def run(noise: float, subsets: int, seeds: int, seed: int) -> dict[str, Any]:
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    x = torch.tensor(images[order], dtype=torch.float32) / 8 - 1
    y = torch.tensor(labels[order])
    rest, test = slice(ROWS, ROWS + VALIDATION), slice(ROWS + VALIDATION, None)
    wrong = rng.random(ROWS) < noise
    y[:ROWS][wrong] = (y[:ROWS][wrong] + torch.tensor(rng.integers(1, 10, wrong.sum()))) % 10

    def accuracy(rows: Any, where: slice, seed: int) -> float:
        with torch.no_grad():
            answers = trained(x[rows], y[rows], seed, 150)(x[where]).argmax(1)
        return float((answers == y[where]).float().mean())

    table = indicators(x[:ROWS], y[:ROWS])
    drawn = [rng.choice(ROWS, KEPT, replace=False) for _ in range(subsets)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ps.PruneSamplerWarning)
        selector = ps.fit_selector(table, drawn, [accuracy(rows, rest, each) for each, rows in enumerate(drawn)])
    found: dict[str, list[float]] = {}
    wrong_kept: dict[str, float] = {}
    for each in range(seeds):
        options: dict[str, Any] = {"seed": each, "class_balanced": True}
        arms = {
            "random": ps.select(table, KEPT, method="random", seed=each),
            "learned": selector.select(table, KEPT, features=x[:ROWS], clusters=10, seed=each),
            "agreement alone": ps.select(table, KEPT, "agreement", "bottom", **options),
            "EL2N alone, easiest": ps.select(table, KEPT, "el2n", "bottom", **options),
            "EL2N alone, stratified": ps.select(table, KEPT, "el2n", **options),
        }
        for arm, coreset in arms.items():
            found.setdefault(arm, []).append(accuracy(coreset.rows, test, 1000 + each))
            wrong_kept[arm] = wrong_kept.get(arm, 0) + float(wrong[coreset.rows].mean()) / seeds
    return {
        "noise": noise,
        "subsets": subsets,
        "r_squared": selector.r_squared,
        "p_value": selector.p_value,
        "warned": bool(caught),
        "weights": selector.weights,
        "arms": {
            arm: [statistics.fmean(each), statistics.stdev(each) / len(each) ** 0.5, wrong_kept[arm]]
            for arm, each in found.items()
        },
    }


def table(report: dict[str, Any]) -> list[str]:
    lines = ["| wrong labels | subsets | leave-one-out R² | p | arm | test accuracy, % | wrong labels kept |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for each in report["runs"]:
        head = f"| {each['noise']:.0%} | {each['subsets']} | {each['r_squared']:.2f} | {each['p_value']:.3f}"
        for arm, (mean, error, kept) in each["arms"].items():
            lines.append(f"{head} | {arm} | {100 * mean:.1f} ± {100 * error:.1f} | {kept:.0%} |")
            head = "| | | | "
    return lines


def main() -> None:
    parser = make_parser(__doc__, table)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.3])
    parser.add_argument("--subsets", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    noise, subsets, seeds = ([0.3], 6, 2) if args.smoke else (args.noise, args.subsets, args.seeds)
    runs = [run(each, subsets, seeds, seed=0) for each in noise]
    report = {**circumstances("numpy", "sklearn"), "runs": runs}
    print("\n".join(table(report)))
    save_report(report, args.out, table(report))


if __name__ == "__main__":
    main()
