"""Ray on a cluster of two nodes, both on this machine: Ray Train's loaders, and files too large for one machine."""

from __future__ import annotations

import functools
import os
import shlex
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

import prunesampler as ps
from prunesampler.cli import app as cli
from prunesampler.integrations import ray as on_ray
from prunesampler.selection import radix_select
from prunesampler.shards.build import build_index
from prunesampler.shards.repack import repack
from prunesampler.tables import merge as merging
from prunesampler.tables import parquet
from tests.docs.test_docs import sections
from tests.helpers.blockfiles import saved, table
from tests.helpers.shardfiles import write_shards
from tests.helpers.training import Journal, Leaky, Net, Trainer, check_scores

N, BATCH, EPOCHS = 41, 4, 3  # 41 rows over two workers: one padding duplicate
ray = pytest.importorskip("ray")
# Ray leaves sockets, files and processes for the garbage collector to close; busy machines take minutes to start it.
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("default"),
]


# -- Ray Train ---------------------------------------------------------------------------------------------------


def train(config: dict[str, Any]) -> None:
    """What each worker does."""
    import ray.train
    from ray.train.torch import prepare_data_loader, prepare_model

    warnings.simplefilter("ignore", ps.PruneSamplerWarning)
    rank = ray.train.get_context().get_world_rank()
    model = prepare_model(Net())
    whole = ps.PrunedSampler(N, num_replicas=1)
    plain = ps.attach(DataLoader(Leaky(N), batch_size=BATCH, sampler=whole), model, score_epochs=EPOCHS)
    rebuilt = prepare_data_loader(plain)
    with pytest.raises(ps.BindingError, match="call attach after") as too_early:
        for _ in range(64):
            Trainer(model, Journal()).epoch(rebuilt)
    plain.pruning.detach()

    model = prepare_model(Net())
    loader = prepare_data_loader(DataLoader(Leaky(N), batch_size=BATCH, shuffle=True))
    sampler = loader.sampler
    folder = Path(config["folder"], str(rank))  # no shared file system
    loader = ps.attach(loader, model, keep=0.5, score_epochs=EPOCHS, save_dir=folder)
    trainer, lengths = Trainer(model, Journal()), []
    for epoch in range(EPOCHS + 2):
        sampler.set_epoch(epoch)
        trainer.journal.recording = epoch < EPOCHS
        lengths.append(0)
        for batch in loader:
            trainer.step(batch)
            lengths[-1] += 1
        trainer.journal.end_epoch()
    assert lengths[-1] == len(loader)
    page: dict[str, Any] = {"model": Net(), "dataset": Leaky(N), "epochs": 3}
    exec(config["page"], page)
    result = {
        "page": page["train"]({}),
        "epochs": trainer.journal.epochs[:-1],
        "seen": {row: list(map(list, seen)) for row, seen in trainer.journal.seen.items()},
        "lengths": lengths,
        "coreset": loader.pruning.coreset.digest,
        "types": [f"{type(each).__module__}.{type(each).__name__}" for each in (loader, model)],
        "files": sorted(os.listdir(folder)) if folder.exists() else [],
        "too_early": str(too_early.value),
    }
    torch.save(result, f"{config['folder']}/{rank}.pt")


def union(results: list[dict[str, Any]]) -> Journal:
    """One journal of what all workers saw: of padding duplicates in an epoch the first one's counts."""
    journal = Journal()
    for epoch in range(EPOCHS):
        taken: set[int] = set()
        for result in results:
            for row in result["epochs"][epoch]:
                presentation = result["seen"][row].pop(0)
                if row not in taken:
                    journal.seen[row].append(tuple(presentation))
            taken |= set(result["epochs"][epoch])
    return journal


def test_workers_of_ray_train_score_as_one(cluster: None, tmp_path: Path) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    page = dict(sections("ray.md"))
    TorchTrainer(
        train,
        train_loop_config={"folder": str(tmp_path), "page": page["Ray Train"][0][1]},
        scaling_config=ScalingConfig(num_workers=2, placement_strategy="SPREAD"),
        run_config=RunConfig(storage_path=str(tmp_path / "ray")),
    ).fit()
    first, second = results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert first["types"][0].startswith("ray.train.")
    assert first["types"][1].endswith(".DistributedDataParallel")
    assert first["coreset"] == second["coreset"]
    coreset, table = ps.Coreset.load(tmp_path / "0/coreset.parquet"), ps.ScoreTable.load(tmp_path / "0/scores.parquet")
    assert coreset.digest == first["coreset"]
    assert len(coreset) == round(N * 0.5)
    assert second["files"] == []
    check_scores(table, union(results), N)
    for epoch, length in enumerate(first["lengths"]):
        rows = [result["epochs"][epoch] for result in results]
        assert len(rows[0]) == len(rows[1])
        assert second["lengths"][epoch] == length == -(-len(rows[0]) // BATCH)
        assert {*rows[0], *rows[1]} == set(range(N) if epoch < EPOCHS else coreset.rows.tolist())
    assert first["epochs"][-1] != first["epochs"][-2]
    assert first["page"] == second["page"]


# -- Ray Data ----------------------------------------------------------------------------------------------------


def run(seed: int) -> ps.ScoreTable:
    """One run, with what the whole path has to deal with and no more."""
    whole = table(seed)
    return ps.ScoreTable(
        {"el2n": whole.scores["el2n"]},
        rows=whole.rows,
        num_rows=whole.num_rows,
        labels=whole.labels,
        keys=whole.keys,
        protocols={"el2n": whole.protocols["el2n"]},
        provenance=whole.provenance,
    )


def test_merged_and_selected_files_are_those_of_whole_tables(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "RANGE", 120)
    monkeypatch.setattr(parquet, "ROW_GROUP", 120)
    monkeypatch.setattr(radix_select, "HELD", 100)
    tables = [run(0), run(1)]
    merged = ps.merge(tables)
    file = on_ray.merge(saved(tmp_path, *tables), tmp_path / "merged.parquet")
    assert (len(file), file.protocols) == (len(merged), merged.protocols)
    assert ps.ScoreTable.load(tmp_path / "merged.parquet") == merged
    coreset = ps.select(merged, keep=0.3, class_balanced=True)
    found = on_ray.select(tmp_path / "merged.parquet", tmp_path / "coreset.parquet", keep=0.3, class_balanced=True)
    assert found == coreset.selection
    assert ps.Coreset.load(tmp_path / "coreset.parquet") == coreset


def node(folder: Path, number: int) -> tuple[int, str]:
    """Keeps its node, which has one processor, until the other one works too."""
    mine: str = ray.get_runtime_context().get_node_id()
    (folder / mine).touch()
    while len(list(folder.iterdir())) < 2:
        time.sleep(0.01)
    return number, mine


def test_both_nodes_work_and_results_come_in_order(cluster: None, tmp_path: Path) -> None:
    numbers, nodes = zip(*on_ray.RayEngine().map(functools.partial(node, tmp_path), [3, 1, 2, 0]), strict=True)
    assert numbers == (3, 1, 2, 0)
    assert len(set(nodes)) == 2


def test_errors_are_those_of_this_process(cluster: None, tmp_path: Path) -> None:
    (path,) = saved(tmp_path, run(0))
    damaged = tmp_path / "damaged.parquet"
    damaged.write_bytes(path.read_bytes()[:-100])
    for other, error in ((damaged, ps.CorruptFileError), (tmp_path / "none.parquet", FileNotFoundError)):
        with pytest.raises(error):
            on_ray.merge([path, other], tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_repacked_shards_are_those_of_this_process(cluster: None, tmp_path: Path) -> None:
    urls = write_shards(tmp_path / "old", [20, 20, 20])
    index = build_index(urls, progress=False)
    coreset = ps.Coreset(range(0, 60, 2), num_rows=60)
    options: dict[str, Any] = {"maxsize": 30_000, "shuffle": True, "progress": False}
    local = repack(index, coreset, tmp_path / "local/{shard:03d}.tar", **options)
    fresh = repack(index, coreset, tmp_path / "ray/{shard:03d}.tar", **options, engine="ray")
    assert len(fresh.shards) > 2
    assert [fresh.key(row) for row in range(30)] == [local.key(row) for row in range(30)]
    for name in [*(f"{shard:03d}.tar" for shard in range(len(fresh.shards))), "rows.parquet", "repack.json"]:
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    assert sorted(os.listdir(tmp_path / "ray")) == sorted(os.listdir(tmp_path / "local"))


def test_shards_that_other_processes_would_not_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_shards(Path("old"), [3])
    index = build_index("old/000000.tar", progress=False)
    with pytest.raises(ps.ArgumentError, match="absolute paths"):
        repack(index, None, tmp_path / "new/{shard}.tar", engine="ray")
    with pytest.raises(ps.ArgumentError, match="engine must be"):
        repack(index, None, tmp_path / "new/{shard}.tar", engine="spark")  # type: ignore[arg-type]
    assert not os.path.exists("new")


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ray.exceptions", None)
    paths = [str(path) for path in saved(tmp_path, run(0), run(1))]
    assert cli.main(["merge", *paths, "-o", str(tmp_path / "out.parquet"), "--engine", "ray"]) == 2
    assert "pip install 'prunesampler[ray]'" in capsys.readouterr().err
    assert (
        cli.main(["select", paths[0], "-o", str(tmp_path / "out.parquet"), "--keep", "0.5", "--engine", "spark"]) == 2
    )
    assert not (tmp_path / "out.parquet").exists()


def test_the_page(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [run(0), run(1)]
    for name, each in zip("ab", runs, strict=True):
        os.makedirs(f"runs/{name}")
        each.save(f"runs/{name}/scores.parquet")
    names: dict[str, Any] = {}
    for language, code in dict(sections("ray.md"))["Merge, select, repack"]:
        if language == "python":
            exec(code, names)
            continue
        for line in code.splitlines():
            command, *arguments = shlex.split(line)
            assert command == "prunesampler"
            assert cli.main(arguments) == 0, line
    merged = ps.merge(runs)
    assert ps.ScoreTable.load("merged.parquet") == ps.ScoreTable.load("again.parquet") == merged
    assert ps.Coreset.load("coreset.parquet") == ps.select(merged, keep=0.5)
    assert ps.Coreset.load("hardest.parquet") == ps.select(merged, keep=0.7, method="top")
