"""The figures are those of the scores; the callbacks' own tests see them logged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import prunesampler as ps
from prunesampler.integrations.figures import quantiles
from tests.helpers.training import Journal, Leaky, Net, Trainer

N = 20


def test_deciles_of_what_was_merged_and_then_of_the_table() -> None:
    model, journal = Net(), Journal()
    loader: Any = DataLoader(Leaky(N), batch_size=4, shuffle=True)
    loader = ps.attach(loader, model, keep=0.5, score_epochs=2, epoch_length="full")
    trainer = Trainer(model, journal)
    assert quantiles(loader.pruning, "el2n") == {}
    for _ in range(2):
        trainer.epoch(loader)
        values = [journal.el2n(row) for row in range(N)]
        found = quantiles(loader.pruning, "el2n")
        for percent in (10, 50, 90):
            assert found[f"prune/el2n_p{percent}"] == pytest.approx(np.percentile(values, percent), abs=1e-6)
    last = loader.pruning
    last.finish()
    assert quantiles(last, "el2n") == pytest.approx(found, abs=1e-6)
    assert quantiles(last, "loss") == {}


def test_rows_without_a_score_are_left_out() -> None:
    model, loader = Net(), DataLoader(Leaky(N), batch_size=4)
    loader = ps.attach(loader, model, keep=0.5, score_epochs=1, epoch_length="full")
    for number, (x, _) in enumerate(loader):
        output = model(x)
        if number == 2:
            break
    assert output.shape == torch.Size([4, 3])
    loader.pruning.finish()
    scores = loader.pruning.table.scores["el2n"]
    assert np.isnan(scores).sum() == 8
    assert quantiles(loader.pruning, "el2n")["prune/el2n_p50"] == pytest.approx(np.nanmedian(scores), abs=1e-6)
