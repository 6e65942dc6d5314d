"""A rank that dies or hangs ends the others with an error, within their process group's timeout."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import distributed_c10d

import prunesampler as ps
from prunesampler.tracking.ranks import Group
from prunesampler.training.run_folder import RunFolder
from tests.helpers.rankruns import Run
from tests.helpers.ranks import outlive

EPOCHS = 2


def before(kind: type, method: str, act: Callable[[], None]) -> None:
    plain = getattr(kind, method)

    def acting(*args: Any, **kwargs: Any) -> Any:
        act()
        return plain(*args, **kwargs)

    setattr(kind, method, acting)


def wait_at_most(seconds: float) -> None:
    """From now on: starting three processes takes a busy machine longer."""
    set_timeout = getattr(
        distributed_c10d, "set_timeout", distributed_c10d._set_pg_timeout
    )  # older torch has the latter
    for group in list(distributed_c10d._world.pg_map):
        set_timeout(timedelta(seconds=seconds), group)


def train(rank: int, world_size: int, folder: str, dies: int, when: str, options: dict[str, Any]) -> dict[str, Any]:
    def end() -> None:
        os.kill(os.getpid(), signal.SIGSTOP if when == "hangs at the merge" else signal.SIGKILL)

    run = Run(rank, world_size, rows=40, batch=4, keep=0.5, score_epochs=EPOCHS, save_dir=Path(folder), **options)
    error: Exception | None = None
    try:
        for epoch in range(EPOCHS + 1):
            if rank != dies and epoch == 1:
                wait_at_most(4 if "hangs" in when else 20)
            if rank == dies and epoch == 1:
                if "merge" in when:
                    before(Group, "owners", end)
                elif when == "at the switch":
                    before(RunFolder, "conclude", end)
            inside = rank == dies and epoch == 1 and when == "inside an epoch"
            run.epoch(epoch, after=lambda done, inside=inside: end() if inside and done == 2 else None)
    except Exception as raised:
        error = raised
    return {
        "error": f"{type(error).__name__}: {error}",
        "ours": isinstance(error, ps.RankError),
        "phase": run.loader.pruning.phase,
        "files": sorted(name for name in os.listdir(folder) if name != ".lock"),
    }


@pytest.mark.parametrize(
    ("dies", "when", "options"),
    [
        (1, "inside an epoch", {"wrap": ""}),
        (2, "inside an epoch", {"wrap": "ddp"}),
        (1, "at the merge", {"wrap": "ddp"}),
        (0, "at the merge", {"wrap": "", "on_error": "train_on_all"}),
        (0, "at the switch", {"wrap": ""}),
        (1, "hangs at the merge", {"wrap": ""}),
    ],
    ids=str,
)
def test_the_others_end_too(dies: int, when: str, options: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        others = outlive(3, train, folder, dies, when, options, dies=dies)
    for found in others:
        assert found is not None, "it hangs"
        if when == "inside an epoch" and options["wrap"] == "ddp":
            assert found["error"] != "NoneType: None"  # torch's own: the gradients meet before we do
        else:
            assert found["ours"], found["error"]
            assert "another rank has died" in found["error"]
        assert found["phase"] == "scoring"
        assert found["files"] == []
