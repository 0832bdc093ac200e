"""Run a plan: tasks on the fleet, failures into the lake, finished cells into the tracker."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace

from rich.console import Console

from pipeline.config.grid import Grid
from pipeline.plan.cell_keys import address_of, key_of
from pipeline.plan.grid_plan import Plan, still_outdated
from pipeline.plan.versions import code_version
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import remark_in
from pipeline.results.tracking.tracker import Tracker
from pipeline.results.tracking.uri import TrackingError
from pipeline.results.without_effect import warning_of
from pipeline.run.cache_migration import migrate_cache
from pipeline.run.cell import record_failure, record_skip
from pipeline.run.display import Display
from pipeline.run.expected import expected_of, work_lines
from pipeline.run.fleet.fleet import (
    local_fleet,
    remote_fleet,
    require_room,
    room_of_fleet,
    run_tasks,
)
from pipeline.run.fleet.progress import Progress
from pipeline.run.fleet.queue import Finished
from pipeline.run.garbage import garbage_collect
from pipeline.run.heartbeat import Heartbeat
from pipeline.run.imported_statistics import require_imports
from pipeline.run.run_file import RunFile, run_file
from pipeline.run.signals import SignalHandler, ended_by_signal
from pipeline.run.tasks import Task, tasks_of
from pipeline.storage.run_paths import RunPaths

logger = logging.getLogger(__name__)

# A network file system may not show for half a minute what another node has written.
LOOKUP_SECONDS = 60.0


def run_plan(
    grid: Grid,
    plan: Plan,
    run_paths: RunPaths,
    console: Console,
    workers: int | None = None,
    address: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> int:
    """Run the missing cells of a plan.

    Args:
        grid: The grid.
        plan: Which of its cells are missing.
        run_paths: Where everything lies.
        console: Where progress is shown.
        workers: Cores to use; None: all that this process may use.
        address: A Ray cluster to work on; None: a Ray of this machine.
        tags: More tags of the tracked invocation, e.g. the submission it belongs to.

    Returns:
        The number of cells that failed, or were refused because of rows they cannot use.

    Raises:
        ConfigError: A published covariance that the grid names has not been imported.
        Terminated: The process was told to end.
    """
    require_imports([c for c in plan.missing if plan.reason(c) is None], run_paths.cache)
    lake = Lake(run_paths.lake)
    with _kept_file(grid, plan, lake, tags) as file, ended_by_signal() as signals:
        tracker = Tracker(run_paths.tracking, grid.name, lake, code_version())
        tracker.close_stale_runs()
        parent, status = "", "KILLED"
        try:
            with signals.shielded():
                parent = tracker.start(f"run {grid.name}", tags)
            migrate_cache(plan.missing, run_paths.cache)
            tasks = tasks_of([cell for cell in plan.missing if plan.reason(cell) is None])
            failed = len(plan.refused)
            if not tasks:
                _prepare(lake, plan)
            else:
                expected = expected_of(tasks, lake.manifest(), run_paths.cache)
                with remote_fleet(address) if address else local_fleet(workers) as slots:
                    if not address:
                        require_room(tasks)
                    _prepare(lake, plan)
                    _, gpus = room_of_fleet()
                    for line in work_lines(tasks, expected, slots, gpus):
                        console.print(line, highlight=False, markup=False, soft_wrap=True)
                    with Display(tasks, slots, console, expected, gpus) as display:
                        failed += _run_tasks(
                            tasks, run_paths, display, tracker, parent, signals, file, bool(address)
                        )
            garbage_collect(grid.name, run_paths)
            _warned(
                signals,
                lambda: tracker.rebuild(lake, parent),
                "`rledit rebuild` makes it equal to the lake",
            )
            status = "FAILED" if failed else "FINISHED"
            if failed:
                file.end("failed", f"{failed} cells failed or were skipped")
            return failed
        finally:
            if parent:
                _warned(
                    signals,
                    lambda: tracker.finish(parent, status),
                    "`rledit close-stale-runs` closes the run",
                )


def _prepare(lake: Lake, plan: Plan) -> None:
    """Drop rows that are to be made anew, and enter what the grid shows without running it.

    Called when everything that is needed to make them is there: what stops before loses no rows.
    """
    left_out = {key_of(cell) for cell in plan.missing if plan.reason(cell) is not None}
    # What other code could run and this cannot keeps its rows.
    lake.forget(*(key for key in still_outdated(plan, lake) if key not in left_out))
    lake.contain(plan.without_rows)
    lake.show(address_of(cell) for cell in plan.cells)
    for cell in plan.missing:
        reason = plan.reason(cell)
        if reason is not None and plan.failed.get(key_of(cell)) != reason:
            record_skip(cell, lake, reason)


def _run_tasks(
    tasks: Mapping[str, Task],
    run_paths: RunPaths,
    display: Display,
    tracker: Tracker,
    parent: str,
    signals: SignalHandler,
    file: RunFile,
    grows: bool,
) -> int:
    """Run tasks on the fleet that is up; returns the number of cells that failed."""
    lake, beat = Lake(run_paths.lake), Heartbeat(tracker, parent, display.counts)

    def progress(running: Mapping[str, Progress]) -> None:
        signals.check()
        if grows:
            display.take_room(*room_of_fleet())
        display.progress(running)
        if file.is_due:
            file.update(display.situation())
        beat.progress(running)

    failed = 0
    unknown: list[Task] = []
    # Closed here, whatever ends it: its workers and its progress actor go before Ray does.
    with closing(run_tasks(tasks, run_paths, progress, grows)) as ended:
        for finished in ended:
            display.finished(finished)
            if finished.task.kind == "edit":
                known = _settle(finished, lake, tracker, parent, signals)
                if finished.reason is not None:
                    failed += 1
                elif not known:
                    unknown.append(finished.task)
    file.update(display.situation())
    return failed + len(unseen(unknown, lake))


def _kept_file(
    grid: Grid, plan: Plan, lake: Lake, tags: Mapping[str, str] | None
) -> AbstractContextManager[RunFile]:
    """The file that says how far the run is, for `rledit status`."""
    keys = {key_of(cell) for cell in plan.cells}
    to_run = {key_of(cell) for cell in plan.missing}
    skipped = sum(plan.reason(cell) is not None for cell in plan.missing)
    before = len(keys) - len(to_run)
    return run_file(
        lake.storage,
        grid.name,
        cells=len(keys),
        done_before=before,
        skipped=skipped,
        command="" if "submission_id" in (tags or {}) else None,
    )


def unseen(done: Sequence[Task], lake: Lake, wait: float = LOOKUP_SECONDS) -> list[Task]:
    """Tasks that their workers say are done, and of which the lake here knows nothing.

    The worker saw other storage than this process: a path that is not mounted on its node. Nothing
    is recorded: a network file system may show a file late, and then the cell is done.

    Args:
        done: The tasks.
        lake: The lake.
        wait: Seconds until a file that is not seen is taken for missing.
    """
    deadline = time.monotonic() + wait
    missing = list(done)
    while missing := [task for task in missing if lake.record(address_of(task.cell)) is None]:
        if time.monotonic() > deadline:
            break
        time.sleep(min(1.0, wait))
    for task in missing:
        logger.error(
            "%s: done, says its worker, but %s has no rows of it; is that path the same storage "
            "on every node? Run the same command again for what is missing",
            task.label,
            lake.storage,
        )
    return missing


def _settle(
    finished: Finished, lake: Lake, tracker: Tracker, parent: str, signals: SignalHandler
) -> bool:
    """Record how a cell ended; returns whether the lake knows of it."""
    task: Task = finished.task
    if finished.reason is not None:
        try:
            record_failure(task.cell, lake, finished.reason)
        except OSError as error:
            # The reason may be that this disk is full; the cell counts as missing then.
            logger.error("%s: %s; not recorded: %s", task.label, finished.reason, error)
    address = address_of(task.cell)
    record = lake.record(address)
    if record is not None:
        resolved = record.values["resolved"]
        if remark := remark_in(resolved):
            warning = warning_of(remark, resolved.get("calibration"))
            logger.warning("%s: %s", task.cell.path, warning)
        _warned(
            signals,
            lambda: tracker.log_cell(parent, replace(lake.result(record), address=address)),
            "the end of the run adds the cell",
        )
    return record is not None


def _warned(signals: SignalHandler, track: Callable[[], object], remedy: str) -> None:
    """Track something whole, if the store is there: the lake has the rows, so no run fails."""
    try:
        with signals.shielded():
            track()
    except TrackingError as error:
        logger.warning("%s; %s", error, remedy)
