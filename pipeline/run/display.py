"""Progress of a run on the driver's terminal, with an estimate; log lines where there is none."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.run.fleet.progress import Progress
from pipeline.run.fleet.queue import Finished
from pipeline.run.reporting import Stage
from pipeline.run.tasks import Task

logger = logging.getLogger(__name__)

LOG_EVERY_SECONDS = 15.0
CERTAIN_FRACTION = 0.03
# Stages in which a run may be for minutes without an edit, as the status line names them.
_BEFORE_EDITING: Mapping[Stage, str] = {
    "prepare": "preparing models",
    "ask": "asking models what they know",
    "statistics": "summing key covariance",
    "calibrate": "calibrating steps",
    "prefixes": "running prompts through the frozen layers",
}


class Pace:
    """How fast running tasks go through the units of their stage, as far as it was seen.

    What an earlier attempt had done when a task was first seen does not count.
    """

    def __init__(self) -> None:
        self._first: dict[str, Progress] = {}
        self._seen: dict[str, tuple[int, float, float]] = {}

    def look(self, running: Mapping[str, Progress], now: float) -> None:
        """Take the state of the running tasks."""
        for key, p in running.items():
            first, seen = self._first.get(key), self._seen.get(key)
            if first is None or seen is None or not _alike(first, p) or p.done < first.done:
                self._first[key], self._seen[key] = p, (p.done, now, now)
            elif p.done != seen[0]:
                self._seen[key] = (p.done, seen[1], now)
        for key in self._first.keys() - running.keys():
            del self._first[key], self._seen[key]

    def rate(self, key: str) -> float | None:
        """Units a second of a task's stage; None before one was seen to be done."""
        if key not in self._seen:
            return None
        done, began, latest = self._seen[key]
        done -= self._first[key].done
        return done / (latest - began) if done > 0 and latest > began else None

    def seconds_left(self, key: str, p: Progress, now: float) -> float | None:
        """Of a task's stage; None while nothing is known."""
        rate = self.rate(key)
        if rate is not None and _alike(self._first[key], p):
            return max(0.0, (p.total - p.done) / rate - (now - self._seen[key][2]))
        if key not in self._first and p.total > 0 and p.done / p.total > CERTAIN_FRACTION:
            return (now - p.started) * (p.total - p.done) / p.done
        return None


def _alike(one: Progress, other: Progress) -> bool:
    """Whether two reports count the same units; editing and scoring take turns."""
    stream = ("edit", "score")
    return one.stage == other.stage or (one.stage in stream and other.stage in stream)


class Estimate:
    """Seconds left, from how long tasks of the same kind and editor took or promise to take."""

    def __init__(self, tasks: Mapping[str, Task], slots: int, pace: Pace | None = None) -> None:
        self._tasks = tasks
        self._slots = slots
        self._pace = pace or Pace()
        self._taken: dict[tuple[str, str], list[float]] = {}

    def add(self, task: Task, seconds: float) -> None:
        """Learn from a finished task."""
        self._taken.setdefault(_kind(task), []).append(seconds)

    def seconds_left(
        self, unfinished: set[str], running: Mapping[str, Progress], now: float
    ) -> float | None:
        """The estimate, or None while nothing is known."""
        promised = {
            key: now - p.started + left
            for key, p in running.items()
            if (left := self._pace.seconds_left(key, p, now)) is not None
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
    return task.kind, task.cell.label if task.kind not in ("prepare", "ask") else ""


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
        self._pace = Pace()
        self._estimate = Estimate(tasks, slots, self._pace)
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
        self._pace.look(self._running, time.time())
        if self._live:
            self._live.update(self._picture())
        elif time.time() - self._logged > LOG_EVERY_SECONDS:
            self._logged = time.time()
            logger.info("%s", self._status_line())

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

    def _status_line(self) -> str:
        now = time.time()
        left = self._estimate.seconds_left(self._unfinished, self._running, now)
        estimate = f"about {_duration(left)} left" if left is not None else "estimating"
        return (
            f"{self._cells_done} of {self._cells} cells done, {len(self._running)} tasks running, "
            f"{self._failed} failed, {self._speed(now)}{_duration(now - self._began)} so far, "
            f"{estimate}"
        )

    def _speed(self, now: float) -> str:
        """What is being done, and how fast: training in batches, the streams in edits."""
        training = {k: p for k, p in self._running.items() if p.stage == "train" and p.total > 1}
        parts = []
        for stage, doing in _BEFORE_EDITING.items():
            at = [p for p in self._running.values() if p.stage == stage]
            if at:
                done, total = sum(p.done for p in at), sum(p.total for p in at)
                parts.append(f"{doing}{f' {done} of {total}' if total > len(at) else ''}, ")
        if training:
            done = sum(p.done for p in training.values())
            total = sum(p.total for p in training.values())
            parts.append(f"training batch {done} of {total}{self._rates(list(training))}, ")
            details = [p.detail for p in training.values() if p.detail]
            parts += [f"{details[0]}, "] if len(training) == len(details) == 1 else []
        if (edits := self._edits()) or not parts:
            parts.append(f"{edits / max(1e-9, now - self._began):.2g} edits/s, ")
        return "".join(parts)

    def _rates(self, keys: Sequence[str]) -> str:
        """Batches a second of running tasks together, once one was seen."""
        rates = [rate for key in keys if (rate := self._pace.rate(key)) is not None]
        return f" at {sum(rates):.2g} batches/s" if rates else ""

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
            table.add_row(Text(self._tasks[key].label), bar, Text(self._position(key, progress)))
        return Group(Text(self._status_line(), style="bold"), table)

    def _position(self, key: str, p: Progress) -> str:
        """How far a task is; of a training, how fast and how long yet as well."""
        if p.stage not in ("train", "prefixes"):
            return f"{p.done}/{p.total}"
        left = self._pace.seconds_left(key, p, time.time())
        most = "at most " if p.detail else ""
        yet = f", {most}{_duration(left)} left" if left is not None else ""
        if p.stage == "prefixes":
            rate = self._pace.rate(key)
            fast = f" at {rate:.2g}/s" if rate is not None else ""
            return f"{p.done}/{p.total} prefixes{fast}{yet}"
        more = f", {p.detail}" if p.detail else ""
        return f"{p.done}/{p.total} batches{self._rates([key])}{yet}{more}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
