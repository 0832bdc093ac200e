"""Progress of a run on the driver's terminal, with an estimate; log lines where there is none."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.run.board import Progress
from pipeline.run.queue import Finished
from pipeline.run.tasks import Task

logger = logging.getLogger(__name__)

LOG_EVERY_SECONDS = 15.0
CERTAIN_FRACTION = 0.03


class Estimate:
    """Seconds left, from how long tasks of the same kind and editor took or promise to take."""

    def __init__(self, tasks: Mapping[str, Task], slots: int) -> None:
        self._tasks = tasks
        self._slots = slots
        self._taken: dict[tuple[str, str], list[float]] = {}

    def add(self, task: Task, seconds: float) -> None:
        """Learn from a finished task."""
        self._taken.setdefault(_kind(task), []).append(seconds)

    def seconds_left(
        self, unfinished: set[str], running: Mapping[str, Progress], now: float
    ) -> float | None:
        """The estimate, or None while nothing is known."""
        promised = {
            key: (now - p.started) * p.total / p.done
            for key, p in running.items()
            if p.total > 0 and p.done / p.total > CERTAIN_FRACTION
        }
        known = {kind: list(values) for kind, values in self._taken.items()}
        for key, seconds in promised.items():
            known.setdefault(_kind(self._tasks[key]), []).append(seconds)
        if not known:
            return None
        everything = [s for values in known.values() for s in values]
        mean = sum(everything) / len(everything)
        total = 0.0
        for key in unfinished:
            like = known.get(_kind(self._tasks[key]))
            whole = promised.get(key) or (sum(like) / len(like) if like else mean)
            passed = now - running[key].started if key in running else 0.0
            total += max(0.0, whole - passed)
        return total / self._slots


def _kind(task: Task) -> tuple[str, str]:
    return task.kind, task.cell.label if task.kind != "prepare" else ""


class Display:
    """Shows a run while it works.

    Args:
        tasks: All tasks of the run.
        slots: Cores in use.
        console: Where to show it.
    """

    def __init__(self, tasks: Mapping[str, Task], slots: int, console: Console) -> None:
        self._tasks = tasks
        self._unfinished = set(tasks)
        self._cells = sum(task.kind == "edit" for task in tasks.values())
        self._failed = 0
        self._cells_done = 0
        self._edits_done = 0
        self._estimate = Estimate(tasks, slots)
        self._running: Mapping[str, Progress] = {}
        self._began = self._logged = time.time()
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.update(Text(""))
            self._live.stop()

    def progress(self, running: Mapping[str, Progress]) -> None:
        """Take the state of the running tasks."""
        self._running = {k: p for k, p in running.items() if k in self._unfinished}
        if self._live:
            self._live.update(self._picture())
        elif time.time() - self._logged > LOG_EVERY_SECONDS:
            self._logged = time.time()
            logger.info("%s", self._headline())

    def finished(self, finished: Finished) -> None:
        """Take the end of a task."""
        task = finished.task
        self._unfinished.discard(task.key)
        self._failed += finished.reason is not None
        if task.kind == "edit" and finished.reason is None:
            self._cells_done += 1
            self._edits_done += task.cell.n_edits
        started = self._running[task.key].started if task.key in self._running else None
        if started is not None and finished.reason is None:
            self._estimate.add(task, time.time() - started)
        if not self._live:
            logger.info("%s: %s", task.label, finished.reason or "done")

    def counts(self) -> dict[str, float]:
        """How many cells there are, have ended, and failed."""
        ended = self._cells - sum(self._tasks[k].kind == "edit" for k in self._unfinished)
        return {"cells": self._cells, "cells_ended": ended, "tasks_failed": self._failed}

    def _headline(self) -> str:
        now = time.time()
        left = self._estimate.seconds_left(self._unfinished, self._running, now)
        estimate = f"about {_duration(left)} left" if left is not None else "estimating"
        return (
            f"{self._cells_done} of {self._cells} cells done, {len(self._running)} tasks running, "
            f"{self._failed} failed, {self._edits() / max(1e-9, now - self._began):.2g} edits/s, "
            f"{_duration(now - self._began)} so far, {estimate}"
        )

    def _edits(self) -> int:
        """Edits that this run has applied."""
        running = ((self._tasks[key].cell, p) for key, p in self._running.items())
        return self._edits_done + sum(
            p.done * cell.stream.batch_size for cell, p in running if p.stage in ("edit", "score")
        )

    def _picture(self) -> Group:
        table = Table.grid(padding=(0, 1))
        for key, progress in sorted(self._running.items()):
            bar = ProgressBar(total=max(1, progress.total), completed=progress.done, width=30)
            table.add_row(
                Text(self._tasks[key].label), bar, Text(f"{progress.done}/{progress.total}")
            )
        return Group(Text(self._headline(), style="bold"), table)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
