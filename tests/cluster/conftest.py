"""A real run of the tiny grid: Ray, the lake and MLflow, once for all tests that read it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

GRID = Path(__file__).with_name("tiny.yaml")
TIMEOUT_SECONDS = 300


def rledit(
    *arguments: str | Path, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the console script as a user does."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        env={k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"} | environment,
    )
    if check and done.returncode:
        raise AssertionError(f"rledit {arguments} exited {done.returncode}:\n{done.stderr}")
    return done


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results folder of the tiny grid, run with two workers."""
    results = tmp_path_factory.mktemp("finished")
    rledit("run", GRID, "--results", results, "--workers", "2")
    return results
