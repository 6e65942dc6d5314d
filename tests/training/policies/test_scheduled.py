from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import DataLoader

import prunesampler as ps
from tests.helpers.attached import check_run_resumes
from tests.helpers.rankruns import rows_of_epochs
from tests.helpers.ranks import run_ranks
from tests.helpers.training import Journal, Leaky, Net, Trainer

N, BATCH = 20, 4


def attached(path: Path, n: int = N, shuffle: bool = False, **options: Any) -> tuple[Any, Trainer]:
    model = Net()
    loader = DataLoader(Leaky(n), batch_size=BATCH, shuffle=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ps.PruneSamplerWarning)  # of the length
        return ps.attach(loader, model, policy=ps.Scheduled(path, shuffle), **options), Trainer(model, Journal())


def test_epochs_read_what_was_written_down_in_its_order_and_begin_again(tmp_path: Path) -> None:
    epochs = [list(range(10, 0, -1)), [4, 8, 5, 7, 6], [19]]
    ps.Schedule(epochs, num_rows=N).save(tmp_path / "s.parquet")
    loader, trainer = attached(tmp_path / "s.parquet")
    assert loader.pruning.total_steps(5) == 3 + 2 + 1 + 3 + 2
    for epoch in range(5):
        trainer.epoch(loader)
        assert trainer.journal.epochs[epoch] == epochs[epoch % 3]


def test_a_schedule_without_an_order_of_its_own_is_shuffled_anew_each_epoch(tmp_path: Path) -> None:
    ps.Schedule([range(10)], num_rows=N).save(tmp_path / "s.parquet")
    loader, trainer = attached(tmp_path / "s.parquet", shuffle=True)
    for _ in range(3):
        trainer.epoch(loader)
    epochs = trainer.journal.epochs[:3]
    assert all(sorted(rows) == list(range(10)) for rows in epochs)
    assert len({*map(tuple, epochs), tuple(range(10))}) == 4


def test_a_run_resumes_inside_a_schedule(tmp_path: Path) -> None:
    ps.Schedule([list(range(10, 0, -1)), [4, 8, 5, 7, 6, 19]], num_rows=N).save(tmp_path / "s.parquet")
    check_run_resumes(lambda: attached(tmp_path / "s.parquet"), 3)


def test_ranks_take_turns_in_the_order_of_the_schedule(tmp_path: Path) -> None:
    ps.Schedule([[9, 8, 1, 0, 5, 2], [3, 7]], num_rows=N).save(tmp_path / "s.parquet")
    options = {"policy": ps.Scheduled(tmp_path / "s.parquet")}
    assert run_ranks(2, rows_of_epochs, N, 2, 2, options) == [[[9, 1, 5], [3]], [[8, 0, 2], [7]]]


def test_a_schedule_of_another_dataset_is_refused_at_attach(tmp_path: Path) -> None:
    ps.Schedule([[0, 1]], num_rows=N + 1).save(tmp_path / "longer.parquet")
    ps.Schedule([[0, 1]], num_rows=N, fingerprint="another").save(tmp_path / "another.parquet")
    ps.Schedule([[0, 1]], num_rows=N, fingerprint="mine").save(tmp_path / "mine.parquet")
    for name in ("longer", "another"):
        with pytest.raises(ps.MismatchError, match="draws from a dataset"):
            attached(tmp_path / f"{name}.parquet")
    attached(tmp_path / "mine.parquet", fingerprint="mine")
    with pytest.raises(FileNotFoundError):
        ps.Scheduled(tmp_path / "nothing.parquet")


def test_a_plan_names_what_the_schedule_holds(tmp_path: Path) -> None:
    plans = []
    for name, rows in (("a", [0, 1]), ("b", [0, 1]), ("c", [0, 2])):
        ps.Schedule([rows], num_rows=3).save(tmp_path / f"{name}.parquet")
        plans.append(ps.Scheduled(tmp_path / f"{name}.parquet").to_dict())
    assert plans[0] == plans[1] != plans[2]
    assert ps.Scheduled(tmp_path / "c.parquet").draw(7, None, np.arange(3), 0).rows.tolist() == [0, 2]
