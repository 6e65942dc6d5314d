"""What a first run says: the line at the switch, what is missing at the end, and why nothing was scored."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import prunesampler as ps
from prunesampler._logging import _OwnHandler, log
from prunesampler.errors import ArgumentError, BindingError, StateError
from prunesampler.training.run import _tell_what_is_missing
from tests.helpers.attached import BATCH, EPOCHS, N, Net, make_loader, scored, started

SCRIPT = """
import logging
from tests.helpers.attached import EPOCHS, scored
assert scored(save_dir="run")[0].pruning.phase == "pruned"
logging.basicConfig(format="%(name)s|%(message)s")  # from now on the application has the lines
loader, _ = scored(epochs=EPOCHS - 1, save_dir="other")
assert loader.pruning.phase == "scoring"
"""


def test_the_switch_is_one_line_by_default_and_the_end_says_what_is_missing(tmp_path: Path) -> None:
    root = str(Path(ps.__file__).parents[1])
    environment = {"PYTHONPATH": root, "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    switch, end = done.stderr.splitlines()
    assert switch == "prunesampler: training on 28 of 40 rows (top by el2n), written to run"
    assert end.startswith("prunesampler|the process ends with 2 of 3 scoring epochs begun, so no rows were selected")
    assert "nothing was written to other: train on" in end


@pytest.mark.parametrize(("rank", "lines"), [(0, 1), (1, 0)])
def test_of_ranks_that_were_spawned_the_first_alone_tells(
    rank: int, lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(log, "handlers", [])
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    for level in (logging.INFO, logging.WARNING):  # a warning is each rank's own
        _OwnHandler().emit(log.makeRecord(log.name, level, "", 0, "training on 2 of 4 rows", (), None))
    assert len(capsys.readouterr().err.splitlines()) == lines + 1


def test_the_end_is_silent_where_a_state_was_saved(caplog: pytest.LogCaptureFixture) -> None:
    loader, _ = scored(epochs=1)
    _tell_what_is_missing()
    assert "1 of 3 scoring epochs begun" in caplog.text
    loader.pruning.state_dict()
    caplog.clear()
    _tell_what_is_missing()
    assert caplog.text == ""


def passes(loader: Any, model: Any, call: Any, count: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(count):
        for x, y in loader:
            optimizer.zero_grad()
            cross_entropy(call(x), y).backward()
            optimizer.step()


@pytest.mark.parametrize(("evaluates", "why"), [(False, r"call model\(x\), not model\.forward"), (True, "eval mode")])
@pytest.mark.parametrize("batch_size", [BATCH, N])
def test_a_trained_model_that_was_not_seen_is_an_error_after_one_pass(
    evaluates: bool, why: str, batch_size: int
) -> None:
    model = Net()
    loader, _ = started(make_loader(batch_size=batch_size), model)
    model.train(not evaluates)
    with pytest.raises(BindingError, match=why):
        passes(loader, model, model if evaluates else model.forward, 1)


def test_a_model_that_nobody_calls_is_told_before_the_second_pass(caplog: pytest.LogCaptureFixture) -> None:
    loader, _ = started()
    other = Net()
    passes(loader, other, other, 1)
    assert caplog.text == ""
    passes(loader, other, other, 2)
    assert caplog.text.count("neither called nor trained: give it the one that the loop calls") == 1


def test_a_look_at_the_data_and_a_model_that_is_trained_elsewhere_are_no_error() -> None:
    model = Net()
    loader, trainer = started(None, model)
    next(iter(loader))
    with loader.pruning.paused():
        passes(make_loader(), model, model, 1)
    for _ in loader:
        pass
    for _ in range(EPOCHS):
        trainer.epoch(loader)
    assert loader.pruning.phase == "pruned"


def test_folders_are_numbered_and_replaced_on_demand(tmp_path: Path) -> None:
    pattern = str(tmp_path / "runs/of-{n}")
    for number in (1, 2):
        loader, _ = scored(save_dir=pattern)
        assert loader.pruning.table == ps.load(tmp_path / f"runs/of-{number}")
    resumed, _ = started(save_dir=pattern, resume=True)
    assert resumed.pruning.phase == "pruned"
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["of-1", "of-2"]
    with pytest.raises(ArgumentError, match="in its last part"):
        started(save_dir=str(tmp_path / "{n}/run"))

    folder = tmp_path / "runs/of-1"
    before = ps.load(folder)
    with pytest.raises(StateError, match="overwrite=True to replace"):
        started(save_dir=folder)
    loader, trainer = started(save_dir=folder, overwrite=True, lr=0.1)
    assert ps.load(folder) == before  # until there are new ones
    for _ in range(EPOCHS):
        trainer.epoch(loader)
    assert ps.load(folder) == loader.pruning.table != before
    with pytest.raises(ArgumentError, match="overwrite must be False with resume=True"):
        started(save_dir=folder, overwrite=True, resume=True)


def test_a_schedule_of_scoring_epochs_alone_is_told(caplog: pytest.LogCaptureFixture) -> None:
    loader, _ = started()
    assert loader.pruning.total_steps(EPOCHS + 1) == EPOCHS * 7 + 5
    assert caplog.text == ""
    loader.pruning.total_steps(EPOCHS)
    assert "total_steps(3): all of these are scoring epochs" in caplog.text


def test_the_handle_says_where_it_stands_in_words_and_figures() -> None:
    loader, trainer = started()
    assert loader.pruning.metrics() == {"cost": 0, "kept": 1}
    for _ in range(2):
        trainer.epoch(loader)
    assert repr(loader.pruning).startswith("Pruning(phase='scoring', epochs='2 of 3 scoring epochs begun', policy=")
    found, table = loader.pruning.metrics(), loader.pruning.tracker.table()
    presented, events = trainer.journal.seen, 0
    for shown in presented.values():
        right = [correct for _, correct in shown]
        events += sum(a and not b for a, b in itertools.pairwise(right))
    assert found["cost"] == 2
    assert found["forgetting_rate"] == events / (2 * N)
    assert found["learned"] == np.mean([any(correct for _, correct in shown) for shown in presented.values()])
    assert found["el2n/p50"] == pytest.approx(np.median(table["el2n"]))
    assert -1 <= found["el2n/split_half"] <= 1
    for _ in range(3):
        trainer.epoch(loader)
    assert loader.pruning.metrics()["cost"] == pytest.approx(3 + 2 * 0.7)
    assert loader.pruning.metrics()["kept"] == 0.7
    assert "<td>28 of 40 rows</td>" in loader.pruning._repr_html_()


def test_how_much_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("prunesampler")
    before = logger.level
    try:
        ps.set_verbosity("error")
        assert not logger.isEnabledFor(logging.WARNING)
    finally:
        logger.setLevel(before)
    with pytest.raises(ArgumentError, match=r"got 'warn'; did you mean 'warning'\?"):
        ps.set_verbosity("warn")  # type: ignore[arg-type]
