"""Time left of a run: what its tasks report, what like tasks took, and what the plan expects."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.plan.schedule import Work, makespan
from pipeline.run.fleet.progress import Progress
from pipeline.run.reporting import Stage
from pipeline.run.tasks import Kind, Task

CERTAIN_FRACTION = 0.03
# What is silent takes at least this share of its silence yet: nothing is ever "0 s left" for long.
_OVERDUE = 0.1
# Of a task that the plan expects to take less, the ratio of the two says nothing of others.
_TELLING_SECONDS = 2.0
# The stages that are the work of a task; what comes before them is on the way there.
_OWN: Mapping[Kind, tuple[Stage, ...]] = {
    "prepare": ("prepare",),
    "ask": ("ask",),
    "statistics": ("statistics",),
    "calibrate": ("calibrate",),
    "train": ("train",),
    "edit": ("edit", "score"),
}


class Pace:
    """How fast running tasks go through the units of their stage, as far as it was seen.

    What an earlier attempt had done when a task was first seen does not count.
    """

    def __init__(self) -> None:
        self._first: dict[str, Progress] = {}
        self._seen: dict[str, tuple[int, float, float]] = {}
        self._said: dict[str, tuple[float, float]] = {}

    def look(self, running: Mapping[str, Progress], now: float) -> None:
        """Take the state of the running tasks."""
        for key, p in running.items():
            first, seen = self._first.get(key), self._seen.get(key)
            if first is None or seen is None or not _alike(first, p) or p.done < first.done:
                self._first[key], self._seen[key] = p, (p.done, now, now)
            elif p.done != seen[0]:
                self._seen[key] = (p.done, seen[1], now)
            if p.left is None:
                self._said.pop(key, None)
            elif self._said.get(key, (None, 0.0))[0] != p.left:
                self._said[key] = (p.left, now)
        for key in self._first.keys() - running.keys():
            del self._first[key], self._seen[key]
            self._said.pop(key, None)

    def rate(self, key: str) -> float | None:
        """Units a second of a task's stage; None before one was seen to be done."""
        if key not in self._seen:
            return None
        done, began, latest = self._seen[key]
        done -= self._first[key].done
        return done / (latest - began) if done > 0 and latest > began else None

    def seconds_left(self, key: str, p: Progress, now: float) -> float | None:
        """Of a task's stage: as its worker says, else by its rate; None while nothing is known."""
        if p.left is not None:
            said, since = self._said.get(key, (p.left, now))
            return _aged(said, now - since)
        rate = self.rate(key)
        if rate is not None and _alike(self._first[key], p):
            return _aged((p.total - p.done) / rate, now - self._seen[key][2])
        if key not in self._first and p.total > 0 and p.done / p.total > CERTAIN_FRACTION:
            return (now - p.started) * (p.total - p.done) / p.done
        return None


def _aged(left: float, silent: float) -> float:
    """What is left of an estimate that was made `silent` seconds ago."""
    return max(left - silent, _OVERDUE * silent) if left > 0 else 0.0


def _alike(one: Progress, other: Progress) -> bool:
    """Whether two reports count the same units; editing and scoring take turns."""
    stream = ("edit", "score")
    return one.stage == other.stage or (one.stage in stream and other.stage in stream)


@dataclass(frozen=True, kw_only=True)
class _Sample:
    """What a task took, or promises to take, and what the plan expected of it."""

    kind: Kind
    label: str
    seconds: float
    expected: float | None


_Like = tuple[Kind | None, str | None]


@dataclass(frozen=True, kw_only=True)
class _Summary:
    """What some tasks took.

    Attributes:
        seconds: On average.
        ratio: Of what was expected of them, where that is enough to tell.
    """

    seconds: float
    ratio: float | None


def _summary(samples: Sequence[_Sample]) -> _Summary:
    ratios = [
        sample.seconds / sample.expected
        for sample in samples
        if sample.expected is not None and sample.expected >= _TELLING_SECONDS
    ]
    return _Summary(
        seconds=statistics.fmean(sample.seconds for sample in samples),
        ratio=statistics.median(ratios) if ratios else None,
    )


class TimeLeft:
    """Seconds left of all tasks together: who waits for what, and how many run at a time.

    A task takes what is left by its own report; what runs not yet, or has said nothing, takes what
    the plan expects of it, times what like tasks took beyond what was expected of them.

    Args:
        tasks: All tasks of the run.
        slots: Cores there are at first.
        pace: What was seen of the running ones.
        expected: Seconds that the plan expects of tasks, by key, as far as it does.
        gpus: GPUs there are at first.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        slots: int,
        pace: Pace | None = None,
        expected: Mapping[str, float] | None = None,
        gpus: float = 0.0,
    ) -> None:
        self._tasks = tasks
        self.take_room(slots, gpus)
        self._pace = pace or Pace()
        self._expected = expected or {}
        self._taken: list[_Sample] = []
        self._known: dict[_Like, _Summary] = {}

    def take_room(self, slots: int, gpus: float) -> None:
        """Reckon with so many cores and GPUs from now on."""
        self._room = {"CPU": float(slots), "GPU": gpus}

    @property
    def is_measured(self) -> bool:
        """Whether the last estimate knew more than what the plan expects."""
        return bool(self._known)

    def add(self, task: Task, seconds: float) -> None:
        """Learn from a finished task."""
        self._taken.append(self._sample(task.key, seconds))

    def seconds_left(
        self, unfinished: set[str], running: Mapping[str, Progress], now: float
    ) -> float | None:
        """The estimate, or None while nothing is known."""
        promised = [
            self._sample(key, now - p.started + left)
            for key, p in running.items()
            if p.stage in _OWN[self._tasks[key].kind]
            and (left := self._pace.seconds_left(key, p, now)) is not None
        ]
        self._know(self._taken + promised)
        seconds = {
            key: self.task_left(key, running[key], now) if key in running else self._whole(key)
            for key in self._tasks
            if key in unfinished
        }
        if all(value is None for value in seconds.values()):
            return None
        work = {
            key: Work(
                seconds=value or 0.0,
                demand=self._tasks[key].resources.demand(),
                needs=self._tasks[key].needs,
                begun=key in running,
            )
            for key, value in seconds.items()
        }
        return makespan(work, self._room)

    def task_left(self, key: str, p: Progress, now: float) -> float | None:
        """Seconds left of a running task; None while nothing is known of it or its like."""
        left = self._pace.seconds_left(key, p, now)
        if p.stage == "commit":
            return 0.0
        if left is not None and p.stage in _OWN[self._tasks[key].kind]:
            return left
        whole, passed = self._whole(key), now - p.started
        rest = None if whole is None else max(whole - passed, _OVERDUE * passed)
        return max((value for value in (left, rest) if value is not None), default=None)

    def _know(self, samples: Sequence[_Sample]) -> None:
        """Sum up what tasks took: of the same kind and editor, of the same kind, of all."""
        groups: dict[_Like, list[_Sample]] = {}
        for sample in samples:
            for like in ((sample.kind, sample.label), (sample.kind, None), (None, None)):
                groups.setdefault(like, []).append(sample)
        self._known = {like: _summary(group) for like, group in groups.items()}

    def _whole(self, key: str) -> float | None:
        """Seconds of a whole task, from the tasks most like it that there are."""
        task, expected = self._tasks[key], self._expected.get(key)
        for like in ((task.kind, _label(task)), (task.kind, None), (None, None)):
            known = self._known.get(like)
            if expected and known is not None and known.ratio is not None:
                return expected * known.ratio
            if not expected and known is not None:
                return known.seconds
        return expected

    def _sample(self, key: str, seconds: float) -> _Sample:
        task = self._tasks[key]
        expected = self._expected.get(key)
        return _Sample(kind=task.kind, label=_label(task), seconds=seconds, expected=expected)


def _label(task: Task) -> str:
    return task.cell.label if task.kind not in ("prepare", "ask") else ""
