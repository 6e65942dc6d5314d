"""Benchmarks in this process, as each process of their own would import torch anew."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """A script's name and its arguments → what it prints, or else what it complains of."""

    def run(script: str, *args: object) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
        threads = torch.get_num_threads()
        with warnings.catch_warnings(), suppress(SystemExit):
            warnings.simplefilter("default")
            importlib.import_module(script.removesuffix(".py")).main()
        torch.set_num_threads(threads)
        told = capsys.readouterr()
        return told.out or told.err

    return run
