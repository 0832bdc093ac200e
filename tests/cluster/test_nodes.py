"""Nodes that share nothing but an object store run a grid, gangs across nodes included."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.faults.cluster import SimulatedCluster
from tests.cluster.conftest import GRID, rledit
from tests.cluster.s3 import PLANTED, s3_bucket

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

TIMEOUT_SECONDS = 900
NODES = 2


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
