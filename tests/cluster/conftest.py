"""A real run of the tiny grid: Ray, the lake and MLflow, once for all tests that read it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.forked import forked

GRID = Path(__file__).with_name("tiny.yaml")
TIMEOUT_SECONDS = 300


def rledit(
    *arguments: str | Path, check: bool = True, start: bool = False, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of the console script in a process of its own.

    Args:
        arguments: Of the command.
        check: Raise where it fails.
        start: Start a Python for it as a user does, instead of forking one that has imported
            everything: the same, and seconds longer.
        environment: More variables of its environment. It is started with them: Ray reads its own
            when it is imported.
    """
    words = list(map(str, arguments))
    own = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | environment
    if start or environment:
        command = [sys.executable, "-m", "pipeline.cli", *words]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=own
        )
    else:
        done = forked(words, own, TIMEOUT_SECONDS)
    if check and done.returncode:
        raise AssertionError(f"rledit {arguments} exited {done.returncode}:\n{done.stderr}")
    return done


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results folder of the tiny grid, run with two workers."""
    results = tmp_path_factory.mktemp("finished")
    rledit("run", GRID, "--results", results, "--workers", "2", start=True)
    return results
