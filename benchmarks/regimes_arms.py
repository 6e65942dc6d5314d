"""The regimes: what each is made from, its arms, and what an arm trains on and costs."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from policies import shrunk
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils.data import RandomSampler, WeightedRandomSampler

import prunesampler as ps
from prunesampler.cli.training import (
    Images,
    Recipe,
    accuracies,
    fast_precision,
    load_cifar10,
    loader,
    new_model,
    small,
    train,
)
from prunesampler.tables.agreement import spearman

BATCH, RATE, WIDTH = 128, 0.1, 24
FORWARD = 1 / 3  # of what a training step costs a row

Result = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much is trained on: rows before a regime changes them, passes of the full training, rows of the test."""

    rows: int = 10_000
    epochs: int = 8
    test: int = 10_000


SMOKE = Size(rows=600, epochs=2, test=200)


@dataclass(eq=False)
class Data:
    """CIFAR-10 at 16 × 16 pixels: rows to train on, others like them, and the test set, which each arm reads once."""

    train: Images
    spare: Images
    test: Images
    size: Size
    cache: Path

    @classmethod
    def load(cls, folder: Path, size: Size, cache: Path) -> Data:
        train, test = load_cifar10(folder, rows=max(3 * size.rows, size.test), quiet=True)
        train, rows = shrunk(train.subset(slice(3 * size.rows))), size.rows
        test = shrunk(test.subset(slice(size.test)))
        return cls(train.subset(slice(rows)), train.subset(slice(rows, None)), test, size, cache)


@dataclass
class Run:
    """One training of the small network, in steps; a step costs 1 whatever its rows."""

    images: Images
    steps: int
    seed: int
    recipe: Recipe = field(
        default_factory=lambda: Recipe(
            lambda sample: small(sample, WIDTH), BATCH, RATE, precision=fast_precision("cpu")
        )
    )
    policy: Any = None
    sampler: Any = None
    of: int | None = None
    model: Any = None
    batches: Any = None

    def __call__(self) -> Run:
        shown = self.images.augmented(self.seed)
        order = self.sampler or RandomSampler(shown, generator=torch.Generator().manual_seed(self.seed))
        self.batches = loader(shown, order, min(self.recipe.batch_size, len(shown) // 2))
        self.model = new_model(self.recipe.network, self.seed, self.images)
        if self.policy is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ps.PruneSamplerWarning)
                self.batches = ps.attach(self.batches, self.model, policy=self.policy, seed=self.seed)
        train(self.model, self.batches, self.recipe, self.steps, of=self.of)
        return self

    def tested(self, test: Images) -> Result:
        mean, by_class = accuracies(self.model, test, self.recipe)
        return {"accuracy": mean, "balanced": float(np.nanmean(by_class)), "worst_class": float(np.nanmin(by_class))}

    def scores(self, images: Images, names: tuple[str, ...] = ("el2n", "margin")) -> ps.ScoreTable:
        """In a pass of its own."""
        return ps.score(
            self.model, loader(images, range(len(images)), 500, drop_last=False), scores=names, progress=False
        )

    @torch.no_grad()
    def features(self, images: Images) -> Tensor:
        """(N, d) what the last layer is given."""
        body = nn.Sequential(*list(self.model)[:-1]).eval()
        return torch.cat(
            [body(inputs).float() for inputs, _ in loader(images, range(len(images)), 500, drop_last=False)]
        )


def in_order(images: Images) -> Any:
    return loader(images, range(len(images)), 500, drop_last=False)


def scored(images: Images, epochs: int, seed: int) -> Run:
    """A run of so many epochs for its scores alone, by other weights than those that are trained later."""
    steps = epochs * (len(images) // min(BATCH, len(images) // 2))
    return Run(images, steps, seed + 1000, policy=ps.PruneOnce(None, score_epochs=epochs), of=3 * steps)()


def some(count: int, of: int, seed: int) -> Tensor:
    """Random rows, ascending."""
    return torch.from_numpy(np.sort(np.random.default_rng([seed, 1]).choice(of, count, replace=False)))


# -- wrong labels ------------------------------------------------------------------------------------------------

CLEAN = ("keep clean, in one run", "keep clean, trained anew")


def wrong_labels(data: Data, name: str, seed: int, share: float) -> Result:
    """All arms cost what the full training does."""
    rng, given = np.random.default_rng([seed, 7]), data.train.targets.numpy().copy()
    wrong = np.sort(rng.permutation(len(given))[: round(share * len(given))])
    given[wrong] = (given[wrong] + rng.integers(1, 10, len(wrong))) % 10
    images = dataclasses.replace(data.train, targets=torch.from_numpy(given))
    per_epoch, epochs = len(images) // BATCH, data.size.epochs
    steps, first, kept = epochs * per_epoch, max(1, epochs // 3), round((1 - share) * len(images))
    easiest: Any = ps.Selection("clean") if name in CLEAN else ps.Selection(1 - share, method="bottom")
    rows, policy, more = torch.arange(len(images)), None, {}
    if name == "random":
        rows = some(kept, len(images), seed)
    elif name == "oracle":
        rows = torch.from_numpy(np.setdiff1d(np.arange(len(images)), wrong))
    elif name == "fresh random":
        policy = ps.RandomSubset(1 - share)
    elif name == "SmallLoss":
        policy = ps.SmallLoss(1 - share, score_epochs=first)
    elif name in ("easiest, in one run", CLEAN[0]):
        policy = ps.PruneOnce(easiest, score_epochs=first)
    elif name in ("easiest, trained anew", CLEAN[1]):
        table = scored(images, first, seed).batches.pruning.table
        rows, steps = torch.from_numpy(easiest(table).rows.copy()), steps - first * per_epoch
    run = Run(images.subset(rows), steps, seed, policy=policy)()
    if name.endswith("in one run"):
        rows = torch.from_numpy(run.batches.pruning.coreset.rows.copy())
    more["rows"], more["wrong_labels_left"] = len(rows), float(np.isin(rows.numpy(), wrong).mean())
    return {**run.tested(data.test), **more, "cost": 1.0}


# -- duplicates --------------------------------------------------------------------------------------------------


def with_duplicates(images: Images, distinct: int, total: int, seed: int) -> tuple[Images, Tensor]:
    """Rows copied up to ten times, heavy-tailed, each copy cropped and in another light; and whose copy each is."""
    rng = np.random.default_rng([seed, 11])
    copies = np.minimum(rng.zipf(1.5, distinct), 10)
    source = np.repeat(np.arange(distinct), copies - 1)
    source = np.sort(np.concatenate([np.arange(distinct), rng.permutation(source)[: total - distinct]]))
    first = np.concatenate([[True], source[1:] != source[:-1]])
    padded = images.padded[torch.from_numpy(source)].float()
    for place in np.flatnonzero(~first):
        down, across = rng.integers(-1, 2, 2)
        light = rng.uniform(0.8, 1.2), rng.uniform(-12, 12)
        padded[place] = padded[place].roll((int(down), int(across)), (0, 1)) * light[0] + light[1]
    changed = dataclasses.replace(
        images, padded=padded.clamp(0, 255).round().byte(), targets=images.targets[torch.from_numpy(source)]
    )
    return changed, torch.from_numpy(source)


def copies_of(images: Images) -> Tensor:
    """Each half a pixel off and a little brighter, which is not how :func:`with_duplicates` changes its copies."""
    padded = images.padded.float()
    padded = (padded + padded.roll(1, 1)) / 2 * 1.1
    return dataclasses.replace(images, padded=padded.clamp(0, 255).byte())


def one_of_each(features: Tensor, threshold: float) -> Tensor:
    """Rows, ascending, none of which is as similar as ``threshold`` to another that is kept before it."""
    unit, kept = normalize(features - features.mean(0)), torch.ones(len(features), dtype=torch.bool)
    for start in range(0, len(unit), 1000):
        near = (unit[start : start + 1000] @ unit.T >= threshold).numpy()
        for place, similar in enumerate(near, start):
            if kept[place]:
                kept[np.flatnonzero(similar[place + 1 :]) + place + 1] = False
    return kept.nonzero()[:, 0]


def duplicates(data: Data, name: str, seed: int) -> Result:
    """Names end in the cost, as a fraction of the full training on all copies."""
    distinct, total = 3 * data.size.rows // 10, data.size.rows
    images, source = with_duplicates(data.train, distinct, total, seed)
    what, cost = name.rsplit(", cost ", 1)
    full = data.size.epochs * (len(images) // BATCH)
    spent, rows, more = float(cost) * full, torch.arange(len(images)), {}
    if what in ("one of each", "random"):  # random: as many rows, without the cost of finding them
        steps = 2 * (len(images) // BATCH)
        proxy = Run(images, steps, seed + 1000)()
        features = proxy.features(images)
        some_rows = images.subset(slice(2000))
        pairs = [normalize(each - features.mean(0)) for each in (features[:2000], proxy.features(copies_of(some_rows)))]
        threshold = (pairs[0] * pairs[1]).sum(1).quantile(0.1).item()  # nine of ten copies of our own are as similar
        rows = one_of_each(features, threshold)
        left = len(source[rows].unique())
        more = {"threshold": threshold, "copies_left": 1 - left / len(rows), "images_lost": 1 - left / distinct}
        if what == "random":
            rows, more = some(len(rows), len(images), seed), {}
        else:
            spent -= steps + FORWARD * len(images) / BATCH
    elif what == "oracle":
        rows = torch.from_numpy(np.unique(source.numpy(), return_index=True)[1])
    run = Run(images.subset(rows), max(1, round(spent)), seed)()
    return {**run.tested(data.test), **more, "rows": len(rows), "cost": float(cost)}


# -- many runs on one set of scores ------------------------------------------------------------------------------

CONFIGURATIONS = [(rate, decay) for rate in (0.01, 0.03, 0.1, 0.3, 1.0) for decay in (1e-4, 3e-3)]


def many_runs(data: Data, name: str, seed: int) -> Result:
    """Each of ten configurations on half of the rows; the full training decides what was the best one."""
    images = data.train.subset(slice(len(data.train) // 2))
    validation, half = data.spare.subset(slice(len(images) // 2)), len(images) // 2
    full, rows = data.size.epochs * (len(images) // BATCH), torch.arange(len(images))
    steps, scoring, found = full if name == "full" else full // 2, 0.0, []
    if name == "kept":
        scoring = max(1, data.size.epochs // 5) / data.size.epochs
        table = scored(images, max(1, data.size.epochs // 5), seed).batches.pruning.table
        rows = torch.from_numpy(ps.select(table, 0.5, seed=seed).rows.copy())
    elif name == "random":
        rows = some(half, len(images), seed)
    for rate, decay in CONFIGURATIONS:
        recipe = Recipe(lambda sample: small(sample, WIDTH), BATCH, rate, decay, precision=fast_precision("cpu"))
        run = Run(images.subset(rows), steps, seed, recipe)()
        found.append((run.tested(validation)["accuracy"], run.tested(data.test)["accuracy"]))
    cost = (len(CONFIGURATIONS) * steps / full + scoring) / len(CONFIGURATIONS)
    return {"validation": [v for v, _ in found], "test": [t for _, t in found], "rows": len(rows), "cost": cost}


def judged(result: Result, full: Result) -> Result:
    """A cheap search beside the full one: rank correlation, and what its winner loses when it is trained in full."""
    winner = int(np.argmax(result["validation"]))
    reached, best = full["test"][winner], full["test"][int(np.argmax(full["validation"]))]
    ranks = spearman(np.array(result["validation"]), np.array(full["validation"]))
    return {**result, "accuracy": reached, "rank_correlation": ranks, "regret": best - reached}


# -- imbalance ---------------------------------------------------------------------------------------------------


def imbalance(data: Data, name: str, seed: int) -> Result:
    """Long-tailed, the head a hundred times the tail; half of the rows, at 0.67 of the full cost, scoring included."""
    pool, head = data.spare, data.size.rows // 5
    rng, parts = np.random.default_rng([seed, 13]), []
    for label in range(10):
        where = np.flatnonzero(pool.targets.numpy() == label)
        count = max(2, round(head * 0.01 ** (label / 9)))
        parts.append(rng.permutation(where)[: min(count, len(where))])
    images = pool.subset(torch.from_numpy(np.sort(np.concatenate(parts))))
    epochs, per_epoch = data.size.epochs, len(images) // BATCH
    first, floor = max(1, round(epochs / 6)), max(2, head // 8)
    full, steps = epochs * per_epoch, round((0.5 + first / epochs) * epochs * per_epoch)
    floors = np.minimum(np.bincount(images.targets, minlength=10), floor)
    rows, sampler, cost = torch.arange(len(images)), None, steps / full
    half = len(images) // 2
    assert floors.sum() <= half
    labels = images.targets.numpy()
    none = ps.ScoreTable({"el2n": np.zeros(len(images))}, labels=labels)
    options: Any = {
        "stratified": {},
        "stratified, class floors": {"min_per_class": floor},
        "stratified, class balanced": {"class_balanced": True},
        "random, class floors": {"min_per_class": floor, "method": "random"},
        "random": {"method": "random"},
    }.get(name)
    if name == "full":
        steps, cost = full, 1.0
    elif name == "all rows, balanced sampler":
        weights = 1 / torch.bincount(images.targets)[images.targets].double()
        sampler = WeightedRandomSampler(weights, len(images), generator=torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
    elif options is not None:
        table = none
        if options.get("method") != "random":
            table = scored(images, first, seed).batches.pruning.table
            steps -= first * per_epoch
        rows = torch.from_numpy(ps.select(table, half, seed=seed, **options).rows.copy())
    policy = ps.RandomSubset(0.5) if name == "fresh random" else None
    run = Run(images.subset(rows), steps, seed, sampler=sampler, policy=policy)()
    return {**run.tested(data.test), "rows": len(rows), "cost": cost}


# -- frozen features ---------------------------------------------------------------------------------------------

SHARES = (0.01, 0.05, 0.2)


BY_FEATURES = {"herding": "herding", "k-center": "k_center", "moderate": "moderate", "prototypes": "prototypes"}


def frozen(data: Data, name: str, seed: int) -> Result:
    """A linear and an MLP head on the features that a trained net gives of rows that it has not seen."""
    file = data.cache / f"features-{seed}-{data.size.rows}.npz"
    pool = data.spare.subset(slice(data.size.rows))
    if not file.exists():
        net = Run(data.train, data.size.epochs * (len(data.train) // BATCH), seed)()
        table = net.scores(pool, ("el2n",))
        arrays = {"pool": net.features(pool).numpy(), "test": net.features(data.test).numpy()}
        np.savez(file, **arrays, el2n=table.scores["el2n"])
    found = np.load(file)
    scale = found["pool"].std(0) + 1e-6
    features, test = found["pool"] / scale, found["test"] / scale
    labels, accuracy = pool.targets.numpy(), {}
    for share in SHARES:
        table, count = ps.ScoreTable({"el2n": found["el2n"]}, labels=labels), round(share * len(labels))
        rows = np.arange(len(labels))
        if name in BY_FEATURES:
            options: Any = {"method": BY_FEATURES[name], "features": features, "class_balanced": True}
            rows = ps.Selection(count, seed=seed, **options)(table).rows
        elif name != "full":
            method, *balanced = name.removeprefix("EL2N ").split(", ")
            rows = ps.Selection(count, method=method, class_balanced=bool(balanced), seed=seed)(table).rows
        for head in ("linear", "MLP"):
            accuracy[f"{head}, {share:.0%}"] = _head(head, features[rows], labels[rows], test, data.test.targets, seed)
    return {"accuracies": accuracy, "rows": [round(share * len(labels)) for share in SHARES], "cost": 0.0}


def _head(kind: str, x: Any, y: Any, test: Any, targets: Tensor, seed: int) -> float:
    """Its test accuracy after 300 steps of Adam on batches of at most 256."""
    x, y, test = torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(test)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden = () if kind == "linear" else (nn.Linear(x.shape[1], 128), nn.ReLU())
        head = nn.Sequential(*hidden, nn.Linear(128 if hidden else x.shape[1], 10))
        optimizer = torch.optim.AdamW(head.parameters(), 3e-3, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
        for _ in range(300):
            rows = torch.randint(len(x), (min(256, len(x)),))
            optimizer.zero_grad()
            cross_entropy(head(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return (head(test).argmax(1) == targets).double().mean().item()


# -- growing data ------------------------------------------------------------------------------------------------


def growing(data: Data, name: str, seed: int) -> Result:
    """A fifth of the rows is new; half of all rows is kept, at half of the full cost and what scoring takes."""
    images, old = data.train, 4 * len(data.train) // 5
    epochs, per_epoch = data.size.epochs, len(images) // BATCH
    full, first = epochs * per_epoch, max(1, epochs // 5)
    steps, rows, cost = full // 2, torch.arange(len(images)), 0.5
    if name in ("carried over", "scored anew"):
        # The old run is paid for: its model and its scores are there.
        scorer = scored(images.subset(slice(old)) if name == "carried over" else images, first, seed)
        if name == "carried over":
            known = scorer.scores(images.subset(slice(old))).replace(keys=np.arange(old))
            new = scorer.scores(images.subset(slice(old, None)))
            carried = known.align(np.arange(len(images)))
            el2n = np.where(np.arange(len(images)) < old, carried.scores["el2n"], np.nan)
            el2n[old:] = new.scores["el2n"]
            table = carried.replace(scores={"el2n": el2n})
            cost += FORWARD * (len(images) - old) / (epochs * len(images))
        else:
            table = scorer.scores(images)
            cost += first / epochs + FORWARD / epochs
        rows = torch.from_numpy(ps.select(table, 0.5, seed=seed).rows.copy())
    elif name == "random":
        rows = some(len(images) // 2, len(images), seed)
    elif name == "full":
        steps, cost = full, 1.0
    elif name == "shorter, by the cost of scoring anew":
        cost += first / epochs + FORWARD / epochs
        steps = round(cost * full)
    policy = ps.RandomSubset(0.5) if name == "fresh random" else None
    run = Run(images.subset(rows), steps, seed, policy=policy)()
    return {**run.tested(data.test), "rows": len(rows), "cost": cost}


# -- all of them -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Regime:
    """One line of arms.

    Attributes:
        perform: trains an arm.
        arms: their names, controls first.
        ours: those that this library is for, named beforehand.
        question: what the regime asks.
        metric: what is compared.
        longer, dearer: which arm trains on all rows at the same cost, and where one of ours costs more, which then.
        random: which arm of random rows has the same classes, by the name of ours, where that is not ``"random"``.
        oracle: which arm knows the truth.
    """

    perform: Callable[[Data, str, int], Result]
    arms: tuple[str, ...]
    ours: tuple[str, ...]
    question: str
    metric: str = "accuracy"
    longer: str = "full"
    dearer: dict[str, str] = field(default_factory=dict)
    random: dict[str, str] = field(default_factory=dict)
    oracle: str | None = None


def _wrong(share: float) -> Regime:
    ours = ("easiest, in one run", "easiest, trained anew", "SmallLoss", *CLEAN)
    arms = ("full", "random", "fresh random", "oracle", *ours)
    return Regime(
        lambda data, name, seed: wrong_labels(data, name, seed, share),
        arms,
        ours,
        f"{share:.0%} of the labels are wrong, any class",
        oracle="oracle",
    )


def _copies() -> Regime:
    arms = [f"{what}, cost {cost:g}" for cost in (0.5, 1) for what in ("full", "random", "one of each", "oracle")]
    question = "three tenths of the rows are distinct, the others their changed copies, up to nine of one"
    ours = tuple(arm for arm in arms if arm.startswith("one"))
    return Regime(duplicates, tuple(arms), ours, question, oracle="oracle")


REGIMES = {  # the cheapest first
    "frozen features": Regime(
        frozen,
        ("full", "random", "random, class balanced", *BY_FEATURES, "EL2N top", "EL2N stratified"),
        (*BY_FEATURES, "EL2N top", "EL2N stratified"),
        "heads on 1, 5 and 20 % of the rows, on features of a net that has not seen them",
        metric="accuracies",
    ),
    "imbalance": Regime(
        imbalance,
        (
            *("full", "shorter", "random", "fresh random", "random, class floors", "all rows, balanced sampler"),
            *("stratified", "stratified, class balanced", "stratified, class floors"),
        ),
        ("stratified", "stratified, class balanced", "stratified, class floors"),
        "the largest class has a hundred times the rows of the smallest; half of the rows kept; balanced accuracy",
        metric="balanced",
        longer="all rows, balanced sampler",
        random={"stratified, class floors": "random, class floors"},
    ),
    "duplicates": _copies(),
    "wrong labels, 20 %": _wrong(0.2),
    "wrong labels, 40 %": _wrong(0.4),
    "growing data": Regime(
        growing,
        (
            *("full", "shorter", "shorter, by the cost of scoring anew", "random", "fresh random"),
            *("carried over", "scored anew"),
        ),
        ("carried over", "scored anew"),
        "a fifth of the rows is new; half of all rows kept",
        longer="shorter",
        dearer={"scored anew": "shorter, by the cost of scoring anew"},
    ),
    "many runs": Regime(
        many_runs,
        ("full", "shorter", "random", "kept"),
        ("kept",),
        "ten configurations searched on half of the rows, scored once: accuracy of the winner, trained in full",
        longer="shorter",
    ),
}
