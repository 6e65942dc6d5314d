"""What mypy tells a user's script about the loader that attach returns."""

from __future__ import annotations

from pathlib import Path

from mypy import api

ROOT = Path(__file__).parents[1]

SCRIPT = """
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
import prunesampler

dataset = TensorDataset(torch.zeros(8, 2), torch.zeros(8, dtype=torch.long))
plain: DataLoader[tuple[Tensor, ...]] = DataLoader(dataset, batch_size=4)
loader = prunesampler.attach(plain, nn.Linear(2, 2), keep=0.5, score_epochs=1)
reveal_type(loader)
again: DataLoader[tuple[Tensor, ...]] = loader
for batch in loader:
    reveal_type(batch)
reveal_type(loader.pruning.phase)
reveal_type(loader.pruning.coreset)
steps: int = loader.pruning.total_steps(3)
for rows, plain_batch in prunesampler.with_rows(plain):
    reveal_type(plain_batch)
prunesampler.attach(plain, nn.Linear(2, 2), epoch_length="half")
"""


def test_a_users_script_is_typed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # With the options that the package is checked with, what is known of torch is there already.
    output, _, _ = api.run([str(script), f"--config-file={ROOT}/setup.cfg"])
    lines = [line.split(": ", 1)[1] for line in output.splitlines() if ": " in line]
    notes = [line for line in lines if line.startswith("note: Revealed")]
    assert [note.split('"')[1].replace("builtins.", "").replace("torch._tensor.", "") for note in notes] == [
        "prunesampler.training.attached_loader.AttachedLoader[tuple[Tensor, ...]]",
        "tuple[Tensor, ...]",
        "Literal['scoring'] | Literal['pruned'] | Literal['scored'] | Literal['detached']",
        "prunesampler.tables.coreset.Coreset | None",
        "tuple[Tensor, ...]",
    ], output
    errors = [line for line in lines if line.startswith("error")]
    assert len(errors) == 1, output
    assert '"epoch_length"' in errors[0]
