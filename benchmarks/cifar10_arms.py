"""The arms of the experiment, and what each is trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.utils.data import Sampler

from prunesampler.sampling.sampler import PrunedSampler
from prunesampler.selection.select import select
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.score_table import ScoreTable

Budget = Literal["epochs", "steps"]

# The hardest share that is left out, to be chosen between on the validation split.
OFFSETS = {"stratified": (0.0, 0.1, 0.2), "window": (0.1, 0.3)}
TUNING_SEED = 100
VALIDATION_SHARE = 0.1
BY_SCORE = {
    "el2n-top": ("el2n", "top"),
    "el2n-stratified": ("el2n", "stratified"),
    "el2n-window": ("el2n", "window"),
    "forgetting": ("forgetting", "top"),
}
TUNED = {"el2n-stratified": "stratified", "el2n-window": "window", "attach": "stratified"}
ALL = ("random", "fresh", "el2n-stratified", "auto", "attach", "el2n-top", "forgetting", "el2n-window")


@dataclass(frozen=True)
class Arm:
    """One training run.

    Attributes:
        name: ``score`` (trains as far as the scores are taken), ``full``, ``random`` (one subset), ``fresh`` (a new
            random subset each epoch), a key of ``BY_SCORE``, ``auto`` (keep="auto"), ``attach`` (scores and prunes
            on the way), ``attach-auto``, or ``tune`` (on the validation split).
        keep: fraction of the rows.
        budget: as many passes as the full run, so fewer steps, or as many steps, so more passes.
        seed: of weights, order and augmentation.
        length: of the full run's schedule, 1 being the full run.
        network: which of the recipe's.
        method, offset: of ``tune``.
    """

    name: str
    keep: float = 1.0
    budget: Budget = "epochs"
    seed: int = 0
    length: float = 1.0
    network: str = ""
    method: str = ""
    offset: float | None = None

    @property
    def id(self) -> str:
        parts = [self.name, self.network, self.method]
        parts += [f"keep{self.keep:g}"] if self.keep < 1 else []
        parts += [f"offset{self.offset:g}"] if self.offset is not None else []
        parts += [f"length{self.length:.3f}"] if self.length != 1 else []
        parts += [f"equal-{self.budget}"] if self.keep < 1 or "auto" in self.name else []
        return "_".join([part for part in parts if part] + [f"seed{self.seed}"])

    @property
    def needs(self) -> list[Arm]:
        """Arms that must be finished before this one can begin."""
        if self.name == "tune":
            return [Arm("score")]
        scores = [Arm("score", seed=self.seed)] if self.name in (*BY_SCORE, "auto") else []
        return scores + (tuning(self.keep, TUNED[self.name]) if self.name in TUNED else [])


def tuning(keep: float, method: str) -> list[Arm]:
    return [Arm("tune", keep, seed=TUNING_SEED, method=method, offset=offset) for offset in OFFSETS[method]]


def plan(
    names: Sequence[str], keeps: Sequence[float], budgets: Sequence[Budget], seeds: Sequence[int], scoring: float
) -> list[Arm]:
    """Everything to run, the most telling first, so that a time budget cuts off the end.

    Args:
        names: of ``ALL``, the most telling first; full data always runs.
        keeps: fractions, the most telling first.
        budgets: likewise.
        seeds: likewise.
        scoring: cost of the scores, as a share of the full run.
    """
    arms = [Arm(name, seed=seed) for seed in seeds for name in ("full", "score")]
    for budget in budgets:
        for keep in keeps:
            unscored, scored = (keep, keep + scoring) if budget == "epochs" else (1.0, 1 + scoring)
            arms += [Arm("full", seed=seed, length=round(unscored, 3)) for seed in seeds]
            for name in names:
                for seed in seeds:
                    arm = Arm("auto", seed=seed) if name == "auto" else Arm(name, keep, budget, seed)
                    arms += [*arm.needs, arm]
            arms += [Arm("full", seed=seed, length=round(scored, 3)) for seed in seeds]
    arms += [Arm("score", network="transfer")]
    arms += [Arm("attach-auto", budget="steps", seed=seed) for seed in seeds]
    return list(dict.fromkeys(arms))


class FreshSubsets(Sampler[int]):
    """A new random subset of ``kept`` rows on every pass (RS2, arXiv 2305.18424, with replacement between passes)."""

    def __init__(self, num_rows: int, kept: int, seed: int) -> None:
        self.num_rows, self.kept = num_rows, kept
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(self.num_rows, generator=self.generator)[: self.kept].tolist()

    def __len__(self) -> int:
        return self.kept


def coreset_of(arm: Arm, online: ScoreTable, rescored: ScoreTable, offset: float | None) -> Coreset:
    """What a static arm is trained on.

    Args:
        arm: selects by score or by keep="auto", or tunes, and then from the rows to fit alone.
        online: scores as the training batches passed, with forgetting events.
        rescored: EL2N in eval mode without augmentation.
        offset: as chosen on the validation split.
    """
    if arm.name == "auto":
        return select(online, keep="auto")
    if arm.name == "tune":
        rows = fitting_rows(rescored.num_rows)[0].numpy()
        return select(rescored, keep=arm.keep, method=arm.method, offset=offset, eligible=rows)  # type: ignore[arg-type]
    by, method = BY_SCORE[arm.name]
    table = online if by == "forgetting" else rescored
    return select(table, keep=arm.keep, by=by, method=method, offset=offset, seed=arm.seed)


def fitting_rows(num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows to train on and rows to validate on, always the same."""
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(TUNING_SEED))
    held_out = round(VALIDATION_SHARE * num_rows)
    return order[held_out:].sort().values, order[:held_out].sort().values


def sampler_of(arm: Arm, num_rows: int, coreset: Coreset | None) -> Sampler[int]:
    if arm.name == "fresh":
        return FreshSubsets(num_rows, round(arm.keep * num_rows), arm.seed)
    return PrunedSampler(num_rows, seed=arm.seed, coreset=coreset)
