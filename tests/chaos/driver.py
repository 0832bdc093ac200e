"""The driver that a fault run starts and ends: ``rledit run`` without its table and its report."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from pipeline.cli.errors import errors_as_help
from pipeline.config.parse import load_grid
from pipeline.plan.grid_plan import make_plan
from pipeline.results.lake.lake import Lake
from pipeline.run.driver import run_plan
from pipeline.run.logs import configure_logging
from pipeline.storage.run_paths import RunPaths

# Drivers are forked from a process that has imported everything: half of a driver's time is that.
ORIGIN = multiprocessing.get_context("forkserver")
PRELOADED = [__name__]
ORIGIN.set_forkserver_preload(PRELOADED)


class Invocation:
    """A driver in a process of its own.

    Args:
        grid: The grid's file.
        results: The results folder.
        address: The cluster.
        log: What the driver writes is appended here.
        environment: More environment variables.
    """

    def __init__(
        self, grid: Path, results: Path, address: str, log: Path, environment: Mapping[str, str]
    ) -> None:
        self._process = ORIGIN.Process(
            target=_main, args=(grid, results, address, log, dict(environment)), daemon=True
        )
        self._process.start()

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return not self._process.is_alive()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def wait(self, timeout: float) -> int | None:
        """Its exit code; None when it hung and was killed.

        Args:
            timeout: Seconds until then.
        """
        self._process.join(timeout)
        if self.ended:
            return self._process.exitcode
        self.end()
        return None

    def end(self) -> None:
        """Kill it if it still runs."""
        if not self.ended:
            self._process.kill()
        self._process.join()


def _main(
    grid: Path, results: Path, address: str, log: Path, environment: Mapping[str, str]
) -> None:
    """A driver's whole life."""
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    os.environ.update(environment)
    configure_logging()
    with errors_as_help():
        sys.exit(1 if _drive(grid, results, address) else 0)


def _drive(grid: Path, results: Path, address: str) -> int:
    """Run what is missing of a grid on a cluster; returns the number of cells that failed."""
    parsed = load_grid(grid)
    run_paths = RunPaths.under(results)
    plan = make_plan(parsed, Lake(run_paths.lake))
    return run_plan(parsed, plan, run_paths, Console(stderr=True), address=address)
