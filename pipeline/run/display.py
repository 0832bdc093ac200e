"""Progress of a run on the driver's terminal, with an estimate; log lines where there is none."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from pipeline.plan.estimate.prefixes import stream_of
from pipeline.plan.prefixes import store_choice
from pipeline.run.durations import duration
from pipeline.run.fleet.progress import Progress
from pipeline.run.fleet.queue import Finished
from pipeline.run.pace import Pace, TimeLeft
from pipeline.run.reporting import Stage
from pipeline.run.run_file import RunningTask, RunSituation
from pipeline.run.tasks import Task

logger = logging.getLogger(__name__)

LOG_EVERY_SECONDS = 15.0
WIDE = 100  # columns from which there is room for long bars
# Stages in which a run may be for minutes without an edit, as the status line names them.
_BEFORE_EDITING: Mapping[Stage, str] = {
    "prepare": "preparing models",
    "ask": "asking models what they know",
    "statistics": "summing key covariance",
    "calibrate": "calibrating steps",
    "prefixes": "running prompts through the frozen layers",
}
_UNITS: Mapping[Stage, str] = {
    "ask": "facts",
    "statistics": "documents",
    "prefixes": "prefixes",
    "train": "batches",
    "edit": "batches",
    "score": "batches",
}


class Display:
    """Shows a run while it works.

    Args:
        tasks: All tasks of the run.
        slots: Cores there are at first.
        console: Where to show it.
        expected: Seconds that the plan expects of tasks, by key.
        gpus: GPUs there are at first.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        slots: int,
        console: Console,
        expected: Mapping[str, float] | None = None,
        gpus: float = 0.0,
    ) -> None:
        self._tasks = tasks
        self._unfinished = set(tasks)
        self._cells = sum(task.kind == "edit" for task in tasks.values())
        self._failed = 0
        self._cells_done = 0
        self._edits_done = 0
        self._found = 0
        self._failures: dict[str, str] = {}  # by key: tasks may have equal labels
        self._pace = Pace()
        self._time_left = TimeLeft(tasks, slots, self._pace, expected, gpus)
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

    def take_room(self, slots: int, gpus: float) -> None:
        """Take how many cores and GPUs there are by now, of a cluster that grows."""
        self._time_left.take_room(slots, gpus)

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
        self._found += finished.found
        if finished.reason is not None:
            self._failures[task.key] = finished.reason
        if task.kind == "edit" and finished.reason is None:
            self._cells_done += 1
            self._edits_done += 0 if finished.found else task.cell.n_edits
        started = self._running[task.key].started if task.key in self._running else None
        self._running = {k: p for k, p in self._running.items() if k != task.key}
        seconds = None if started is None else time.time() - started
        if seconds is not None and finished.reason is None and not finished.found:
            self._time_left.add(task, seconds)
        line = f"{task.label}: {_ending(finished, seconds)}"
        if self._live:
            self._live.console.print(Text(line, style="red" if finished.reason else "dim"))
        else:
            logger.info("%s", line)

    def counts(self) -> dict[str, float]:
        """How many cells there are, have ended, and failed."""
        ended = self._cells - sum(self._tasks[k].kind == "edit" for k in self._unfinished)
        return {"cells": self._cells, "cells_ended": ended, "tasks_failed": self._failed}

    def situation(self) -> RunSituation:
        """How far the run is, for whoever looks from outside."""
        now = time.time()
        waiting = self._unfinished - self._running.keys()
        return RunSituation(
            done=self._cells_done,
            failures=self._named_failures(),
            found=self._found,
            seconds_left=self._time_left.seconds_left(self._unfinished, self._running, now),
            is_measured=self._time_left.is_measured,
            edits_per_second=self._edits() / max(1e-9, now - self._began),
            waiting=dict(Counter(self._tasks[key].kind for key in waiting)),
            running=tuple(
                RunningTask(
                    label=self._tasks[key].label,
                    position=self._position(key, p),
                    detail=p.detail,
                    seconds=now - p.started,
                )
                for key, p in sorted(self._running.items())
            ),
        )

    def _named_failures(self) -> dict[str, str]:
        """Reasons by label; a label that several have is numbered."""
        named: dict[str, str] = {}
        times: Counter[str] = Counter()
        for key, reason in self._failures.items():
            label = self._tasks[key].label
            times[label] += 1
            named[label if times[label] == 1 else f"{label} ({times[label]})"] = reason
        return named

    def _left(self, now: float) -> str:
        left = self._time_left.seconds_left(self._unfinished, self._running, now)
        if left is None:
            return "estimating"
        if left < 1:
            return "nearly done"
        return f"about {duration(left)} left" + ("" if self._time_left.is_measured else " by plan")

    def _status_line(self) -> str:
        now = time.time()
        return (
            f"{self._cells_done} of {self._cells} cells done, {len(self._running)} tasks running, "
            f"{self._failed} failed, {self._speed(now)}{duration(now - self._began)} so far, "
            f"{self._left(now)}"
        )

    def _headline(self) -> str:
        """The counts of the status line, for a terminal that shows every task below it."""
        now = time.time()
        waiting = len(self._unfinished - self._running.keys())
        edits = self._edits()
        speed = f"{edits / max(1e-9, now - self._began):.2g} edits/s, " if edits else ""
        return (
            f"{self._cells_done} of {self._cells} cells done, {self._failed} failed; "
            f"{len(self._running)} tasks running, {waiting} waiting; {speed}"
            f"{duration(now - self._began)} so far, {self._left(now)}"
        )

    def _speed(self, now: float) -> str:
        """What is being done, and how fast: training in batches, the streams in edits."""
        training = {k: p for k, p in self._running.items() if p.stage == "train" and p.total > 1}
        parts = []
        for stage, doing in _BEFORE_EDITING.items():
            at = {key: p for key, p in self._running.items() if p.stage == stage}
            if at:
                counted_at = self._counted_at(stage, at)
                done, total = (sum(count) for count in zip(*counted_at.values(), strict=True))
                rates = self._rates(list(counted_at))
                counted = f" {done} of {total}{rates}" if total > len(at) else ""
                parts.append(f"{doing}{counted}, ")
        if training:
            done = sum(p.done for p in training.values())
            total = sum(p.total for p in training.values())
            rates = self._rates(list(training), " batches")
            parts.append(f"training batch {done} of {total}{rates}, ")
            details = [p.detail for p in training.values() if p.detail]
            parts += [f"{details[0]}, "] if len(training) == len(details) == 1 else []
        if (edits := self._edits()) or not parts:
            parts.append(f"{edits / max(1e-9, now - self._began):.2g} edits/s, ")
        return "".join(parts)

    def _counted_at(self, stage: Stage, at: Mapping[str, Progress]) -> dict[str, tuple[int, int]]:
        """Units done and in all, by the task that tells them: work that some share counts once.

        Cells of one stream that begin at one layer share its prompts out, and each counts what
        all of them have done; the one that looked last knows most.
        """
        told: dict[tuple[object, ...], str] = {}
        for key, p in sorted(at.items(), key=lambda item: item[1].done):
            cell, own = self._tasks[key].cell, (key,)
            shares = stage == "prefixes" and self._tasks[key].kind == "edit"
            place = (*stream_of(cell), store_choice(cell).layer, p.total) if shares else own
            told[place] = key
        return {key: (at[key].done, at[key].total) for key in told.values()}

    def _rates(self, keys: Sequence[str], unit: str = "") -> str:
        """Units a second of running tasks together, once one was seen."""
        rates = [rate for key in keys if (rate := self._pace.rate(key)) is not None]
        return f" at {sum(rates):.2g}{unit}/s" if rates else ""

    def _edits(self) -> int:
        """Edits that this run has applied."""
        running = ((self._tasks[key].cell, p) for key, p in self._running.items())
        return self._edits_done + sum(
            p.done * cell.stream.batch_size for cell, p in running if p.stage in ("edit", "score")
        )

    def _picture(self) -> Group:
        return Group(Text(self._headline(), style="bold"), *self._rows())

    def _rows(self) -> Iterator[RenderableType]:
        """Every running task: its name, a bar, and how far it is; on a narrow terminal, and where
        it says more than numbers, in several lines."""
        wide = self._live is not None and self._live.console.width >= WIDE
        for key in sorted(self._running):
            p, label = self._running[key], self._tasks[key].label
            bar = ProgressBar(max(1, p.total), p.done, width=30 if wide else 20)
            cells: list[RenderableType] = [Text(label), bar]
            position = Text(self._position(key, p))
            cells += [position] if wide else []
            columns = [Column(no_wrap=True, overflow="ellipsis") for _ in cells]
            table = Table.grid(*columns, padding=(0, 1))
            table.add_row(*cells)
            yield table
            if not wide:
                yield Padding(position, (0, 0, 0, 2))
            if p.detail:
                yield Padding(Text(p.detail, style="dim"), (0, 0, 0, 2))

    def _position(self, key: str, p: Progress) -> str:
        """How far a task is, how fast, and how long yet."""
        task = self._tasks[key]
        left = self._time_left.task_left(key, p, time.time())
        most = "at most " if p.detail and p.stage == "train" else ""
        yet = f", {most}{duration(left)} left" if left is not None and left >= 1 else ""
        if p.stage not in _UNITS or p.total <= 1:
            doing = {"commit": "writing rows"}.get(p.stage, _BEFORE_EDITING.get(p.stage, "begun"))
            if p.stage == task.kind == "prepare" and p.total > 1:
                return f"{p.done}/{p.total}{self._rates([key])}{yet}"
            return f"{doing}{yet}"
        return f"{p.done}/{p.total} {_UNITS[p.stage]}{self._rates([key])}{yet}"


def _ending(finished: Finished, seconds: float | None) -> str:
    """How a task ended, in words."""
    if finished.reason is not None:
        return finished.reason
    if finished.found:
        words = {"prepare": "there already", "edit": "in the lake already"}
        return words.get(finished.task.kind, "taken from the cache")
    return "done" if seconds is None else f"done in {duration(seconds)}"
