"""Run a plan: tasks on the fleet, failures into the lake, finished cells into the tracker."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

from pipeline.config import Grid
from pipeline.locations import Locations
from pipeline.plan import Plan
from pipeline.results.lake import Lake
from pipeline.results.tracking import Tracker
from pipeline.run.cell import record_failure
from pipeline.run.display import Display
from pipeline.run.fleet import Finished, local_fleet, run_tasks
from pipeline.run.tasks import Task, tasks_of


class Terminated(Exception):
    """The process was told to end."""


def run_plan(
    grid: Grid, plan: Plan, locations: Locations, console: Console, workers: int | None = None
) -> int:
    """Run the missing cells of a plan.

    Args:
        grid: The grid.
        plan: Which of its cells are missing.
        locations: Where everything lies.
        console: Where progress is shown.
        workers: Cores to use; None: all of this machine's.

    Returns:
        The number of cells that failed.
    """
    lake = Lake(locations.lake)
    tracker = Tracker(locations.tracking, grid.name)
    tracker.sweep()
    parent = tracker.start(f"run {grid.name}")
    status = "KILLED"
    try:
        for key in plan.outdated:
            lake.forget(key)
        failed = 0
        if plan.missing:
            tasks = tasks_of(plan.missing)
            with (
                _ended_by_signal(),
                local_fleet(workers) as slots,
                Display(tasks, slots, console) as display,
            ):
                for finished in run_tasks(tasks, locations, display.progress):
                    display.finished(finished)
                    if finished.task.kind == "edit":
                        failed += _settle(finished, lake, tracker, parent)
        tracker.rebuild(lake, parent)
        status = "FAILED" if failed else "FINISHED"
        return failed
    finally:
        tracker.finish(parent, status)


def _settle(finished: Finished, lake: Lake, tracker: Tracker, parent: str) -> bool:
    """Record how a cell ended; returns whether it failed."""
    task: Task = finished.task
    if finished.reason is not None:
        record_failure(task.cell, lake, finished.reason)
    record = lake.record(task.cell.key)
    if record is not None:
        tracker.log_cell(parent, lake.result(record))
    return finished.reason is not None


@contextmanager
def _ended_by_signal() -> Iterator[None]:
    """Turn SIGTERM into an exception, so that Ray and the tracked run are closed properly."""

    def end(_: int, __: FrameType | None) -> None:
        raise Terminated("ended by SIGTERM; run the same command again to go on from here")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
