"""Several ranks on this machine, talking over gloo."""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, method: str = "forkserver") -> list[Any]:
    """``function(rank, world_size, *args)`` in as many processes, each with a process group. Returns their results.

    The function has to be importable by name, and its results plain Python or tensors.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = start(world_size, folder, function, args, method)
        while not context.join():
            pass
        return results(world_size, folder)


def outlive(world_size: int, function: Callable[..., Any], *args: Any, dies: int, wait: float = 240) -> list[Any]:
    """The results of the others where the rank ``dies`` does.

    No rank is waited for longer than ``wait`` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = start(world_size, folder, function, args, "forkserver", meet=False)
        others = [process for rank, process in enumerate(context.processes) if rank != dies]
        for process in others:
            process.join(wait)
        for process in context.processes:
            process.kill()
            process.join()
        return [found for rank, found in enumerate(results(world_size, folder)) if rank != dies]


def start(world_size: int, folder: str, function: Callable[..., Any], args: Any, method: str, **options: Any) -> Any:
    given = (world_size, folder, function, args, options)
    return mp.start_processes(_rank, given, nprocs=world_size, join=False, start_method=method)


def results(world_size: int, folder: str) -> list[Any]:
    files = [Path(folder) / f"{rank}.pt" for rank in range(world_size)]
    return [torch.load(file, weights_only=True) if file.exists() else None for file in files]


def _rank(
    rank: int,
    world_size: int,
    folder: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> None:
    _alone()
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timedelta(minutes=5))
    result = function(rank, world_size, *args)
    torch.save(result, f"{folder}/{rank}.part")
    Path(f"{folder}/{rank}.part").rename(f"{folder}/{rank}.pt")
    if options.get("meet", True):
        # destroy_process_group() of torch 2.6 hangs now and then; a rank that has met the others can just end.
        dist.barrier()


def _alone() -> None:
    """As a process that torchrun starts: its workers are forked; from a forkserver of its own each imports torch."""
    torch.set_num_threads(1)
    if sys.platform == "linux":
        mp.set_start_method("fork", force=True)


def run_script(world_size: int, script: Path) -> list[str]:
    """What each process of a script prints, in the script's folder, under what torchrun tells its processes.

    They are forked from a process that has imported torch, where torchrun has each import it anew.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    given = (world_size, str(script), store.port)
    mp.start_processes(_script, given, nprocs=world_size, start_method="forkserver")
    return [script.with_suffix(f".{rank}").read_text() for rank in range(world_size)]


def _script(rank: int, world_size: int, script: str, port: int) -> None:
    _alone()
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": True}
    told = {**numbers, **store, "TORCHELASTIC_RESTART_COUNT": 0}
    os.environ.update({name: str(value) for name, value in told.items()})
    os.chdir(Path(script).parent)
    with open(Path(script).with_suffix(f".{rank}"), "w") as out, contextlib.redirect_stdout(out):
        runpy.run_path(script, run_name="__main__")
