"""One trial: start a grid, inject a fault, run it to its end, compare."""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pipeline.results.lake.lake import Lake
from pipeline.run.reporting import Stage
from pipeline.storage.run_paths import RunPaths
from tests.chaos import checks, processes
from tests.chaos.cluster import SimulatedCluster
from tests.chaos.driver import Invocation
from tests.chaos.inject import ready
from tests.chaos.injector import FaultInjector, Seen
from tests.chaos.schedule import Fault

logger = logging.getLogger(__name__)

ATTEMPTS = 4
INVOCATIONS = 4
TIMEOUT_SECONDS = 600.0
DATABASE = "mlflow.db"
TOLD_TO_END = 2  # the exit code of errors that are answers to the user

# What a round may take from the undisturbed run's cache: everything that its phase comes after.
PREPARED: dict[Stage, tuple[str, ...]] = {
    "prepare": (),
    "statistics": ("models", "trained"),
    "train": ("models", "statistics"),
    "edit": ("models", "statistics", "trained"),
    "score": ("models", "statistics", "trained"),
    "commit": ("models", "statistics", "trained"),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all rounds share.

    Attributes:
        grid: The grid's file.
        cluster: Where it runs.
        injector: How workers are aimed at.
        undisturbed: Results of the same grid, left alone.
        reports: Reports of each stage in that run.
        database: A tracking database without a run.
        name: Of the grid.
    """

    grid: Path
    name: str
    cluster: SimulatedCluster
    injector: FaultInjector
    undisturbed: RunPaths
    reports: Counter[Stage]
    database: Path


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a round did and found.

    Attributes:
        fault: The fault.
        hit: What the worker was doing; None: the fault hit no unfinished cell.
        misses: Faults that came too late, when the phase or the cell was over.
        done: Cells that were done then.
        invocations: Drivers it took to come to the end.
        problems: What is wrong.
        seconds: Wall time.
    """

    fault: Fault
    hit: Seen | None
    misses: int
    done: int
    invocations: int
    problems: tuple[str, ...]
    seconds: float

    @property
    def line(self) -> str:
        """The round in a line."""
        where = f"{self.hit.task} {self.hit.done}/{self.hit.total}" if self.hit else "nothing hit"
        found = "clean" if not self.problems else f"{len(self.problems)} PROBLEMS"
        return (
            f"round {self.fault.number}: {self.fault.name} in {self.fault.phase} ({where}, "
            f"{self.done} cells done, {self.misses} misses), {self.invocations} invocations, "
            f"{self.seconds:.0f} s: {found}"
        )


class Trial:
    """One round of a fault run.

    Args:
        fault: Its fault.
        setting: What it shares with the others.
        folder: A folder of its own, for results and logs.
    """

    def __init__(self, fault: Fault, setting: Setting, folder: Path) -> None:
        self._fault = fault
        self._setting = setting
        self._folder = folder
        self._results = folder / "results"
        self._places = run_paths(self._results)
        self._problems: list[str] = []
        self._misses = self._invocations = 0
        self._finished: dict[str, datetime] = {}
        self._driver: Invocation | None = None

    def run(self) -> Outcome:
        """Play it."""
        began = time.monotonic()
        injector = self._setting.injector
        # A worker that outlived its driver, in the round before, must not come into view.
        processes.kill([pid for pid in injector.workers() if processes.alive(pid)])
        injector.clear()
        self._setting.cluster.settle()
        self._prepare()
        try:
            hit = self._disturb()
            if hit is None:
                self._problems.append("the fault hit no unfinished cell")
            self._complete(hit)
        finally:
            injector.disarm()
            if self._driver is not None:
                self._driver.end()
        self._problems += checks.problems(self._places, self._setting.undisturbed, self._finished)
        return Outcome(
            fault=self._fault,
            hit=hit,
            misses=self._misses,
            done=len(self._finished),
            invocations=self._invocations,
            problems=tuple(self._problems),
            seconds=time.monotonic() - began,
        )

    def _prepare(self) -> None:
        """A results folder without results, with the part of the cache that the phase comes after.

        The schema of an empty tracking database is there too: making one takes seconds.
        """
        shutil.rmtree(self._results, ignore_errors=True)
        self._results.mkdir()
        shutil.copy(self._setting.database, self._results / DATABASE)
        for part in PREPARED[self._fault.phase]:
            source = Path(self._setting.undisturbed.cache, part)
            shutil.copytree(source, Path(self._places.cache, part))

    def _disturb(self) -> Seen | None:
        """Bring the fault about in the phase aimed at; a fault that came too late is repeated."""
        injector, phase = self._setting.injector, self._fault.phase
        for attempt in range(ATTEMPTS):
            # The first attempt takes its moment by chance; the others the first there is.
            injector.arm(
                phase, int(self._fault.moment * self._setting.reports[phase]) * (attempt == 0)
            )
            if self._driver is None or self._driver.ended:
                self._start()
            seen = injector.wait(lambda: self._running.ended, TIMEOUT_SECONDS)
            if seen is None:
                logger.warning("no worker came to the moment aimed at; once more from the start")
                self._running.wait(TIMEOUT_SECONDS)
                self._prepare()
                continue
            hit = self._inject(seen, self._fault.delay if attempt == 0 else 0.0)
            if hit is not None:
                return hit
            self._misses += 1
        return None

    def _inject(self, seen: Seen, delay: float) -> Seen | None:
        """What the worker was doing when the fault struck; None if that was over."""
        injector, cluster = self._setting.injector, self._setting.cluster
        disk = self._fault.kind == "disk"
        fault = ready(self._fault, seen.pid, self._running, cluster)
        if disk:
            fault()
        if disk or delay > 0:
            injector.disarm()
            time.sleep(delay)
        if not disk:
            fault()
        last = seen if disk else injector.last(seen.pid)
        if self._fault.kind == "driver":
            self._check_ending(self._running.wait(TIMEOUT_SECONDS))
        injector.disarm()
        cluster.replenish()
        self._finished = checks.finish_times(Lake(self._places.lake))
        over = last.task.removeprefix("edit:") in self._finished
        return None if over or last.stage != self._fault.phase else last

    def _check_ending(self, code: int | None) -> None:
        """A driver that is told to end does so in order: it says so, and closes its run."""
        if not self._fault.gentle:
            return
        if code != TOLD_TO_END:
            self._problems.append(f"SIGTERM ended the driver with exit code {code}")
        elif checks.left_open(self._places, self._setting.name):
            self._problems.append("SIGTERM: the driver left its run open")

    def _complete(self, hit: Seen | None) -> None:
        """Run the same command again until it ends well."""
        code = self._running.wait(TIMEOUT_SECONDS)
        if self._fault.kind == "disk" and hit is not None:
            self._check_refusal(code)
            processes.allow_writes(hit.pid)
        if self._fault.kind in ("worker", "node") and code != 0:
            self._problems.append(f"losing a {self._fault.kind} ended the run (exit {code})")
        while code != 0 and self._invocations < INVOCATIONS:
            self._start()
            code = self._running.wait(TIMEOUT_SECONDS)
        if code != 0:
            ending = "hung" if code is None else f"exited {code}"
            self._problems.append(f"invocation {self._invocations} {ending}; see {self._log}")

    def _check_refusal(self, code: int | None) -> None:
        """A write was refused, and the lake says why the cell has no result."""
        reasons = [r.reason or "" for r in Lake(self._places.lake).manifest() if not r.done]
        if code == 0 or not any("File too large" in reason for reason in reasons):
            self._problems.append(
                f"the disk refused writes, but the run exited {code} with reasons {reasons}"
            )

    @property
    def _running(self) -> Invocation:
        assert self._driver is not None
        return self._driver

    @property
    def _log(self) -> Path:
        return self._folder / "driver.log"

    def _start(self) -> None:
        cluster = self._setting.cluster
        self._invocations += 1
        self._driver = Invocation(
            self._setting.grid,
            self._results,
            cluster.address,
            self._log,
            cluster.client_environment,
        )


def run_paths(results: Path) -> RunPaths:
    """Where a driver's results lie, whatever the environment says of tracking."""
    return RunPaths.under(results, tracking=f"sqlite:///{results.absolute() / DATABASE}")
