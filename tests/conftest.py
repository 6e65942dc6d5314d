"""Settings for all tests."""

from __future__ import annotations

import gc
import multiprocessing
import os

import pytest
import torch
from hypothesis import settings

# Tests run side by side: threads that wait for one another in two processes on two cores take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
torch.set_num_threads(1)

# A busy machine is no failure.
settings.register_profile("prunesampler", deadline=None)
settings.load_profile("prunesampler")

# A process that a test starts is forked from one that has imported what is slow to import; an optimizer wants _dynamo.
multiprocessing.set_forkserver_preload(["torch._dynamo", "pytest", "tests.helpers.rankruns"])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In parallel, the tests of a file run in one process, as they share fixtures; so do all that start Ray.

    Slow files come first, so that no process is left with one when the others have done.
    """
    slow = ("integrations", "benchmarks", "docs", "training")
    items.sort(key=lambda item: [*slow, item.path.parent.name].index(item.path.parent.name))
    for item in items:
        ray = item.path.name in ("test_ray.py", "test_compatibility.py")
        item.add_marker(pytest.mark.xdist_group("ray" if ray else item.location[0]))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def pytest_collection_finish() -> None:
    """What is imported now stays: no collection of garbage looks at it, and no forked process copies it for that."""
    gc.collect()
    gc.freeze()
