"""What befalls a run ends in the run as it would have been or in one clear error, never in a bad file."""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler, Subset

import prunesampler as ps
from prunesampler.tables.parquet import write_columns
from tests.helpers.attached import EPOCHS, N, attach, make_loader
from tests.helpers.ranks import run_ranks
from tests.helpers.training import Journal, Leaky, Net, Trainer
from tests.training.test_handle import STEPS_SCORED, Run, finished

KINDS = {"scores.parquet": ps.ScoreTable, "coreset.parquet": ps.Coreset}
FORK = multiprocessing.get_context("fork")


def check_files(folder: Path, *, unfinished: bool = False) -> None:
    """Every file of ours reads and verifies, and there is no other; ``unfinished`` ones only where a writer died."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.name.startswith(".lock"):  # of a run that has not written yet
            continue
        if path.name in KINDS:
            KINDS[path.name].load(path)
        else:
            assert unfinished, path
            assert path.name.startswith(".")
            assert path.name.endswith(".tmp")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    list(Run(loop_skips=True, save_dir=folder).steps())
    return folder


# -- SIGKILL ---------------------------------------------------------------------------------------------------


def in_a_process(function: Callable[..., None], *args: Any) -> Any:
    process = FORK.Process(target=function, args=args)
    process.start()
    return process


def switch(folder: Path, checkpoint: Any, operation: int, cut_off: tuple[str, int] | None) -> None:
    """Go on to the first pruned steps, and die at an operation on the files, or at a byte that is written to one."""
    torch.set_num_threads(1)
    operations = itertools.count(1)

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.mkdir") or not str(args[0]).startswith(str(folder)):
            return
        if next(operations) == operation:
            os.kill(os.getpid(), signal.SIGKILL)
        if cut_off is not None and event == "open" and Path(str(args[0])).name.startswith("." + cut_off[0]):
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel kills in the middle of a write
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (cut_off[1], resource.RLIM_INFINITY))

    sys.addaudithook(watch)
    run = Run(loop_skips=True, save_dir=folder, resume=True)
    run.restore(checkpoint)
    assert len(list(itertools.islice(run.steps(), 3))) == 3


def test_killed_at_any_operation_or_byte_of_the_switch_the_run_goes_on_as_if_nothing_had_been(
    tmp_path: Path, run_dir: Path
) -> None:
    whole = Run(loop_skips=True)
    steps = whole.steps()
    list(itertools.islice(steps, STEPS_SCORED))
    checkpoint, expected, files = whole.checkpoint(), list(steps), contents(run_dir)
    died, left = 0, set()

    def dies(number: int, operation: int, cut_off: tuple[str, int] | None) -> bool:
        folder = tmp_path / f"{number}" / "run"
        process = in_a_process(switch, folder, checkpoint, operation, cut_off)
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL if cut_off is None else -signal.SIGXFSZ)
        check_files(folder, unfinished=True)
        left.add(
            tuple(
                sorted(
                    path.name.split(".")[1 if path.name[0] == "." else 0]
                    for path in folder.glob("*.*")
                    if not path.name.startswith(".lock")
                )
            )
        )
        resumed = Run(loop_skips=True, save_dir=folder, resume=True)
        resumed.restore(checkpoint)
        assert list(resumed.steps()) == expected, (operation, cut_off)
        assert finished(resumed) == finished(whole)
        assert contents(folder) == files
        return process.exitcode != 0

    while dies(died, died + 1, None):
        died += 1
    assert died > 8
    for name in KINDS:
        for size in (0, 5, len(files[name]) // 2, len(files[name]) - 1):
            died += 1
            assert dies(died, 0, (name, size))
    # nothing; scores cut off; scores alone; a coreset cut off beside them; both
    assert left == {(), ("scores",), ("coreset", "scores")}


def test_a_worker_that_is_killed_ends_the_pass_and_the_run_goes_on_from_its_checkpoint() -> None:
    whole = Run(loop_skips=True, workers=2)
    expected = list(whole.steps())
    for at in (3, STEPS_SCORED + 2):
        run, checkpoints = Run(loop_skips=True, workers=2), []
        with pytest.raises(RuntimeError, match=r"DataLoader worker .* (killed|exited)"):
            for _ in run.steps():
                checkpoints.append(run.checkpoint())
                if len(checkpoints) == at:
                    for worker in multiprocessing.active_children():
                        os.kill(worker.pid or 0, signal.SIGKILL)
                        worker.join(30)
        resumed = Run(loop_skips=True, workers=2)
        resumed.restore(checkpoints[-1])
        assert list(resumed.steps()) == expected[len(checkpoints) :]
        assert finished(resumed) == finished(whole)


def test_a_loader_that_is_dropped_ends_at_once_with_its_workers_and_its_hook() -> None:
    """Not at the next garbage collection, where torch waits five seconds for each worker."""
    model = Net()
    gc.disable()
    try:
        loader = attach(make_loader(num_workers=1, persistent_workers=True), model)
        for x, _ in loader:
            model(x)
        worker, end = multiprocessing.active_children()[0], weakref.ref(loader)
        del loader
        assert end() is None
        assert not model._forward_hooks
        assert not worker.is_alive()
    finally:
        gc.enable()


def train_rank(rank: int, world_size: int, folder: str, fault: tuple[str, int] | None) -> None:
    """One of several ranks with a checkpoint after each epoch; rank 0 may kill itself at an operation or a step."""
    torch.set_num_threads(1)
    path, operations = Path(folder), itertools.count(1)

    def watch(event: str, args: tuple[Any, ...]) -> None:
        ours = event in ("open", "os.rename", "os.remove") and str(args[0]).startswith(f"{folder}/run")
        if ours and fault == ("operation", next(operations)):
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    store = dist.FileStore(f"{folder}/store_{fault}", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    model = DistributedDataParallel(Net())
    sampler = DistributedSampler(range(N), num_replicas=world_size, rank=rank, seed=2)
    loader = attach(make_loader(sampler=sampler, shuffle=None), model, save_dir=path / "run", resume=True)
    trainer = Trainer(model, Journal())
    done = [e for e in range(EPOCHS + 2) if all((path / f"{e}_{r}.pt").exists() for r in range(world_size))]
    if done:
        state = torch.load(path / f"{done[-1]}_{rank}.pt", weights_only=True)
        model.load_state_dict(state["model"])
        loader.pruning.load_state_dict(state["pruning"])
    for epoch in range(len(done), EPOCHS + 2):
        sampler.set_epoch(epoch)
        trainer.model.train()
        for number, batch in enumerate(loader):
            trainer.step(batch)
            if fault == ("step", epoch * 100 + number) and rank == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        trainer.journal.end_epoch()
        dist.barrier()
        (path / f"{epoch}_{rank}.json").write_text(json.dumps(trainer.journal.epochs[-2]))
        torch.save({"model": model.state_dict(), "pruning": loader.pruning.state_dict()}, path / f"{epoch}_{rank}.pt")
    dist.barrier()


def all_ranks(folder: Path, fault: tuple[str, int] | None) -> None:
    """Two ranks to their end; where one dies, the other is killed too."""
    ranks = [in_a_process(train_rank, rank, 2, str(folder), fault) for rank in range(2)]
    ranks[0].join()
    if fault is not None:
        assert ranks[0].exitcode == -signal.SIGKILL
        with suppress(ProcessLookupError):
            os.kill(ranks[1].pid or 0, signal.SIGKILL)
    ranks[1].join()
    if fault is None:
        assert [process.exitcode for process in ranks] == [0, 0]


def test_all_ranks_killed_they_go_on_and_one_process_alone_takes_up_what_they_left(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    all_ranks(tmp_path / "whole", None)
    files = contents(tmp_path / "whole" / "run")
    # Operations of rank 0: it probes the folder, removes a coreset, opens, renames and syncs the scores, the coreset.
    for number, fault in enumerate([("step", 101), ("operation", 5), ("operation", 8), ("step", EPOCHS * 100 + 1)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        all_ranks(folder, fault)
        check_files(folder / "run", unfinished=True)
        all_ranks(folder, None)
        assert contents(folder / "run") == files
        for name in (f"{epoch}_{rank}.json" for epoch in range(EPOCHS + 2) for rank in range(2)):
            assert (folder / name).read_text() == (tmp_path / "whole" / name).read_text(), (fault, name)

    alone = attach(make_loader(), Net(), save_dir=tmp_path / "whole" / "run", resume=True)
    assert alone.pruning.phase == "pruned"
    assert alone.pruning.coreset == ps.Coreset.load(tmp_path / "whole" / "run" / "coreset.parquet")
    assert sorted(int(row) for x, _ in alone for row in x[:, 0]) == alone.pruning.coreset.rows.tolist()
    assert contents(tmp_path / "whole" / "run") == files


# -- disks -----------------------------------------------------------------------------------------------------


@contextmanager
def limited(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes: writes fail for everybody, root too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 16 pages."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={16 * resource.getpagesize()}", "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@contextmanager
def full(disk: Path, pages: int) -> Iterator[None]:
    """So many pages are left on the disk."""
    free = os.statvfs(disk)
    with open(disk / "ballast", "wb") as file:
        file.write(bytes((free.f_bavail - pages) * free.f_frsize))
    try:
        yield
    finally:
        (disk / "ballast").unlink()


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


@contextmanager
def gone(folder: Path) -> Iterator[None]:
    shutil.rmtree(folder)
    try:
        yield
    finally:
        folder.mkdir()


def check_outlived(folder: Path, fault: Callable[[], Any], reason: str, left: list[str]) -> None:
    """The switch fails as long as the fault lasts, then the same run goes on, and so does one from its checkpoint."""
    expected = list(Run(loop_skips=True).steps())
    run = Run(loop_skips=True, save_dir=folder)
    seen, running = [], run.steps()
    seen += itertools.islice(running, STEPS_SCORED)
    checkpoint = run.checkpoint()
    with fault():
        for attempt in (running, run.steps()):
            with pytest.raises(ps.WriteError, match=rf"{folder}/\w+\.parquet cannot be written: {reason}"):
                next(attempt)
            run.epoch, run.done = EPOCHS, 0  # the error came at the end of a pass, then before the next
            assert run.loader.pruning.phase == "scoring"
            assert sorted(path.name for path in folder.glob("*.parquet")) == left
    check_files(folder)
    seen += run.steps()
    resumed = Run(loop_skips=True, save_dir=folder, resume=True)
    assert seen == expected
    check_files(folder)
    files = contents(folder)
    assert set(files) == set(KINDS)
    resumed.restore(checkpoint)
    assert list(resumed.steps()) == expected[STEPS_SCORED:]
    assert finished(resumed) == finished(run)
    assert contents(folder) == files


@pytest.mark.parametrize("size", [0, 5, 4000])
def test_writes_that_fail_are_an_error_and_the_run_outlives_it(tmp_path: Path, size: int) -> None:
    check_outlived(tmp_path / "run", lambda: limited(size), "File too large", [])


def test_a_folder_that_vanishes_and_returns(tmp_path: Path) -> None:
    check_outlived(tmp_path / "run", lambda: gone(tmp_path / "run"), "No such file", [])


@pytest.mark.parametrize(("pages", "left"), [(0, []), (1, []), (2, ["scores.parquet"])])
def test_a_full_disk(disk: Path, pages: int, left: list[str]) -> None:
    check_outlived(disk / "run", lambda: full(disk, pages), "No space left on device", left)


def test_a_disk_that_turns_read_only(disk: Path) -> None:
    check_outlived(disk / "run", lambda: read_only(disk), "Read-only file system", [])


@pytest.mark.parametrize(("fault", "reason"), [(lambda disk: full(disk, 0), "No space"), (read_only, "Read-only")])
def test_a_disk_that_cannot_be_written_is_known_before_any_work(disk: Path, fault: Any, reason: str) -> None:
    (disk / "run").mkdir()
    with fault(disk), pytest.raises(ps.WriteError, match=rf"{disk}/run cannot be written: {reason}"):
        attach(make_loader(), Net(), save_dir=disk / "run")
    assert not list((disk / "run").iterdir())


def test_a_full_disk_can_fall_back_to_all_rows(tmp_path: Path) -> None:
    run = Run(loop_skips=True, save_dir=tmp_path / "run", on_error="train_on_all")
    steps = run.steps()
    seen = list(itertools.islice(steps, STEPS_SCORED))
    with limited(5), pytest.warns(ps.PruneSamplerWarning, match=r"scores.parquet cannot be written: File too large"):
        seen += steps
    assert len(seen) == 2 * STEPS_SCORED
    assert not list((tmp_path / "run").iterdir())


def full_disk(rank: int, world_size: int, folder: str) -> dict[str, Any]:
    """Rank 0 cannot write at the end of the scoring, and can at the beginning of the next epoch."""
    model = DistributedDataParallel(Net())
    sampler = DistributedSampler(range(N), num_replicas=world_size, rank=rank, seed=2)
    loader = attach(make_loader(sampler=sampler, shuffle=None), model, save_dir=f"{folder}/{rank}")
    trainer = Trainer(model, Journal())
    message = ""
    for epoch in range(EPOCHS + 1):
        sampler.set_epoch(epoch)
        with limited(5 if rank == 0 and epoch == EPOCHS - 1 else resource.RLIM_INFINITY):
            try:
                trainer.epoch(loader)
            except ps.WriteError as error:
                message = str(error)
                trainer.journal.end_epoch()
    kept = loader.pruning.coreset.rows.tolist()
    return {"message": message, "epochs": trainer.journal.epochs[:-1], "kept": kept}


def test_a_disk_of_rank_0_that_is_full_is_an_error_of_all_ranks_and_all_outlive_it(tmp_path: Path) -> None:
    first, second = run_ranks(2, full_disk, str(tmp_path))
    assert first["message"] == second["message"] == f"{tmp_path}/0/scores.parquet cannot be written: File too large"
    assert first["kept"] == second["kept"] == sorted(first["epochs"][-1] + second["epochs"][-1])
    check_files(tmp_path / "0")
    assert set(contents(tmp_path / "0")) == set(KINDS)
    assert not (tmp_path / "1").exists()


# -- files and states of others, and datasets that changed -------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


def make_newer(path: Path) -> None:
    content = path.read_bytes()
    assert content.count(b'"format":1') == 1
    path.write_bytes(content.replace(b'"format":1', b'"format":9'))


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def of_other_rows(path: Path) -> None:
    {"scores.parquet": ps.ScoreTable({"el2n": [0.5] * 9}), "coreset.parquet": ps.Coreset([1, 2], num_rows=9)}[
        path.name
    ].save(path)


DAMAGES: dict[str, tuple[Callable[[Path], Any], Any, str | None]] = {
    "cut short": (cut, ps.CorruptFileError, "damaged"),
    "empty": (lambda path: path.write_bytes(b""), ps.CorruptFileError, "damaged"),
    "flipped in its first page": (lambda path: flip(path, 0.02), ps.CorruptFileError, None),
    "flipped in its last byte": (lambda path: flip(path, 1), ps.CorruptFileError, None),
    "of a newer version": (make_newer, ps.MismatchError, "has format 9"),
    "of somebody else": (lambda path: path.write_bytes(b"PAR1" + bytes(500) + b"PAR1"), ps.CorruptFileError, None),
    "of another kind": (
        lambda path: write_columns(path, {"kind": "x"}, {"row": np.arange(3)}),
        ps.MismatchError,
        "holds",
    ),
    "a folder": (make_folder, IsADirectoryError, None),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_was_damaged_is_refused_and_left_as_it_is(
    run_dir: Path, tmp_path: Path, name: str, damage: str
) -> None:
    change, error, match = DAMAGES[damage]
    shutil.copytree(run_dir, tmp_path / "run")
    change(tmp_path / "run" / name)
    before = contents(tmp_path / "run")
    with pytest.raises(error, match=match) as caught:
        attach(make_loader(), Net(), save_dir=tmp_path / "run", resume=True)
    assert str(tmp_path / "run" / name) in str(caught.value)
    assert contents(tmp_path / "run") == before


def test_a_coreset_that_is_missing_or_of_other_scores_is_selected_again(run_dir: Path, tmp_path: Path) -> None:
    for number, change in enumerate([Path.unlink, of_other_rows]):
        folder = tmp_path / str(number)
        shutil.copytree(run_dir, folder)
        change(folder / "coreset.parquet")
        (folder / ".coreset.parquet.0123456789abcdef.tmp").write_bytes(b"PAR1")
        assert attach(make_loader(), Net(), save_dir=folder, resume=True).pruning.phase == "pruned"
        assert contents(folder) == contents(run_dir)


class Listed(Leaky):
    """Its rows have paths."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(len(names))
        self.samples = names


NAMES = [f"{i}.jpg" for i in range(N)]
CHANGES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "one row more": (lambda: Leaky(N), lambda: Leaky(N + 1)),
    "one row less": (lambda: Leaky(N), lambda: Leaky(N - 1)),
    "other labels": (lambda: Leaky(N), lambda: Leaky(N, seed=1)),
    "another order": (lambda: Listed(NAMES), lambda: Listed(NAMES[::-1])),
    "a file renamed": (lambda: Listed(NAMES), lambda: Listed([*NAMES[:-1], "new.jpg"])),
    "another subset": (lambda: Subset(Leaky(50), range(N)), lambda: Subset(Leaky(50), range(1, N + 1))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_dataset_that_changed_is_refused(tmp_path: Path, change: str) -> None:
    before, after = CHANGES[change]
    loader = attach(make_loader(before()), model := Net(), save_dir=tmp_path)
    trainer = Trainer(model, Journal())
    states = []
    for _ in range(EPOCHS + 1):
        trainer.epoch(loader)
        states.append(loader.pruning.state_dict())
    files = contents(tmp_path)
    for options in ({}, {"keep": 0.4}):
        with pytest.raises(ps.MismatchError, match=r"this (one|dataset) has"):
            attach(make_loader(after()), Net(), save_dir=tmp_path, resume=True, **options)
        assert contents(tmp_path) == files
    for state in states[:1] + states[-1:]:
        other = attach(make_loader(after()), Net())
        with pytest.raises(ps.StateError, match=r"num_rows|fingerprint"):
            other.pruning.load_state_dict(state)
        assert other.pruning.phase == "scoring"
    with pytest.raises(ps.MismatchError):
        attach(make_loader(after()), Net(), coreset=tmp_path / "coreset.parquet")


def test_a_state_of_another_coreset_than_the_one_that_is_given_is_refused() -> None:
    def given(rows: list[int]) -> Any:
        return attach(make_loader(), Net(), coreset=ps.Coreset(rows, num_rows=N))

    state = given([1, 5, 7]).pruning.state_dict()
    given([1, 5, 7]).pruning.load_state_dict(state)
    for foreign in (state, attach(make_loader(), Net()).pruning.state_dict()):
        other = given([1, 5, 8])
        with pytest.raises(ps.StateError, match="not saved on the coreset"):
            other.pruning.load_state_dict(foreign)
        assert other.pruning.coreset.rows.tolist() == [1, 5, 8]


# -- clocks ----------------------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_changes_no_byte(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(Run(loop_skips=True).steps())
    backwards = itertools.count(2e9, -3600.0)
    monkeypatch.setattr(time, "time", lambda: next(backwards))
    monkeypatch.setattr(time, "time_ns", lambda: int(next(backwards) * 1e9))
    run = Run(loop_skips=True, save_dir=tmp_path)
    steps = run.steps()
    seen = list(itertools.islice(steps, STEPS_SCORED + 3))
    for path in tmp_path.iterdir():
        os.utime(path, (4e9, 4e9))  # written in the future, as the next run sees it
    resumed = Run(loop_skips=True, save_dir=tmp_path, resume=True)
    resumed.restore(run.checkpoint())
    assert seen + list(resumed.steps()) == expected
    assert contents(tmp_path) == contents(run_dir)
