"""What several tests need that is slow to start."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest


def _start(cluster: Any) -> Any:
    """Ray gives up on a node after 30 seconds, which a busy machine may take."""
    for attempt in range(3):
        nodes = cluster()
        try:
            for _ in range(2):
                nodes.add_node(num_cpus=1, object_store_memory=400 << 20, include_dashboard=False)
            return nodes
        except Exception:
            nodes.shutdown()
            if attempt == 2:
                raise
    raise AssertionError


@pytest.fixture(scope="package")
def cluster() -> Iterator[None]:
    """Ray on two nodes, both on this machine."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # or workers starve on a busy machine
        patch.setenv("RAY_idle_worker_killing_time_threshold_ms", "600000")  # or each pass imports torch anew
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # workers import the tests
        nodes = _start(Cluster)
        try:
            ray.init(address=nodes.address, log_to_driver=False)
            yield
        finally:
            ray.shutdown()
            nodes.shutdown()
            gc.collect()  # what Ray leaves open must not be found in another test
