"""Gangs across nodes: with nothing in common but an object store, and when a node is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pipeline.run.fleet.fleet import remote_fleet, run_tasks
from pipeline.run.fleet.progress import Progress
from pipeline.run.tasks import tasks_of
from tests.chaos.cluster import SimulatedCluster
from tests.cluster.conftest import GRID, rledit
from tests.cluster.s3 import PLANTED, s3_bucket
from tests.cluster.test_fleet import LONG, alone, cells, left_by, places, same

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

TIMEOUT_SECONDS = 900
NODES = 2
# As Ray is installed: a node is dead after five unanswered questions.
AS_INSTALLED = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "3000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "5",
}


def run_on(cluster: SimulatedCluster, folder: Path, *arguments: str) -> str:
    """`rledit run` by a driver in a working directory of its own; returns what it logged."""
    command = [sys.executable, "-m", "pipeline.cli", "run", str(GRID), "--results", "results"]
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [*command, "--address", cluster.address, *arguments],
        cwd=folder,
        env={**os.environ, **cluster.client_environment, "RLEDIT_LOCAL": "private"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_nodes_with_private_folders_share_a_store(finished: Path, tmp_path: Path) -> None:
    """Each node's working directory is its own, and its copies lie in it: no path is shared."""
    with s3_bucket() as bucket:
        store = ("--lake", f"{bucket}/lake", "--cache", f"{bucket}/cache")
        # A relative folder: below the working directory of each node.
        with SimulatedCluster(tmp_path, NODES, {"RLEDIT_LOCAL": "private"}) as cluster:
            told = run_on(cluster, tmp_path / "driver", *store)
            apart = ("--lake", f"{bucket}/lake2", "--cache", f"{bucket}/cache")
            # With one core a node, the ranks of a gang are on different nodes.
            told += run_on(cluster, tmp_path / "driver", *apart, "--set", "resources={ranks: 2}")
        whole = rledit("diff", finished / "lake", f"{bucket}/lake", check=False)
        assert whole.returncode == 0, whole.stdout
        shared = rledit("diff", finished / "lake", f"{bucket}/lake2", check=False)
        assert shared.returncode == 0, shared.stdout
    workers = sorted(p for p in tmp_path.glob("node*") if p.is_dir())[1:]
    assert len(workers) == NODES
    for node in workers:
        assert list(node.glob("private/*/models/*/training.json")), f"{node} has fetched no model"
    assert PLANTED not in told
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or PLANTED.encode() not in path.read_bytes(), path


def test_a_gang_that_loses_a_node_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other rank fails as its connections break; the death explains that.

    Ray hears of this death at once, as the kernel resets the node's connections. Of a machine that
    is switched off it hears a quarter of a minute later, which cannot be had here.
    """
    one, two = cells(LONG), cells(LONG, "resources={ranks: 2}")
    models = tmp_path / "models"
    expected = alone(one, places(tmp_path / "one", models, one))
    run_paths = places(tmp_path / "two", models, two)
    lost: list[str] = []
    with SimulatedCluster(tmp_path / "nodes", NODES, AS_INSTALLED) as cluster:

        def lose_a_node(running: Mapping[str, Progress]) -> None:
            for key, progress in running.items():
                node = cluster.node_of(progress.pid)
                if not lost and progress.stage == "train" and progress.done > 0 and node:
                    lost.append(key)
                    cluster.remove(node, node.pids())
                    cluster.replenish()

        for name, value in cluster.client_environment.items():
            monkeypatch.setenv(name, value)
        with remote_fleet(cluster.address):
            reasons = [f.reason for f in run_tasks(tasks_of(two), run_paths, lose_a_node)]
    assert lost and not any(reasons)
    found = left_by(two, run_paths)
    assert found.execution["rledit"]["interruptions"]
    same(found, expected, 1e-3)
