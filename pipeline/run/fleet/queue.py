"""Task queue: which tasks may start, which are retried, and which can no longer be done."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from pipeline.run.tasks import Task


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A task ended: it is done, or there is a reason why it is not.

    Attributes:
        found: It was done before: the cache or the lake had it.
    """

    task: Task
    reason: str | None
    found: bool = False


class Queue:
    """Tasks in the order of their dependencies.

    Args:
        tasks: By key, dependencies before dependants.
        retries: How often a task is tried again whose worker has died.
    """

    def __init__(self, tasks: Mapping[str, Task], retries: int) -> None:
        self._tasks = dict(tasks)
        self._retries = retries
        self._missing = {key: set(task.needs) for key, task in tasks.items()}
        self._dependants: dict[str, list[str]] = {}
        for key, task in tasks.items():
            for need in task.needs:
                self._dependants.setdefault(need, []).append(key)
        self._ready = deque(key for key, needs in self._missing.items() if not needs)
        self._interruptions: dict[str, list[str]] = {}

    def __bool__(self) -> bool:
        """Whether any task has not ended."""
        return bool(self._missing)

    def ready(self, most: int | None = None) -> list[Task]:
        """Tasks that may start now, in the order they have come; the first ones, where too many."""
        return [self._tasks[key] for key in islice(self._ready, most)]

    def take(self, task: Task) -> None:
        """A task that is ready starts."""
        self._ready.remove(task.key)

    def interruptions(self, task: Task) -> tuple[str, ...]:
        """Why earlier attempts at a task, and at what it needs, ended."""
        needed = (
            f"{self._tasks[key].label}: {reason}"
            for key in self._needed(task)
            for reason in self._interruptions.get(key, ())
        )
        return (*needed, *self._interruptions.get(task.key, ()))

    def _needed(self, task: Task) -> list[str]:
        """All that a task needs, and what that needs, each once and after what it needs."""
        found: dict[str, None] = {}
        for need in task.needs:
            found |= dict.fromkeys((*self._needed(self._tasks[need]), need))
        return list(found)

    def done(self, task: Task, found: bool = False) -> Iterator[Finished]:
        """A task is done, or was `found` done, and what waited for it may start."""
        yield self._end(task, None, found)
        for key in self._dependants.get(task.key, ()):
            needs = self._missing.get(key)
            if needs is not None:
                needs.discard(task.key)
                if not needs:
                    self._ready.append(key)

    def failed(self, task: Task, reason: str) -> Iterator[Finished]:
        """A task cannot be done, and neither can what needs it."""
        yield self._end(task, reason)
        for key in self._dependants.get(task.key, ()):
            if key in self._missing:
                yield from self.failed(self._tasks[key], _because(task, reason))

    def died(self, task: Task, reason: str) -> Iterator[Finished]:
        """The worker of a task has died: it is tried again, unless it has been too often."""
        known = self._interruptions.setdefault(task.key, [])
        known.append(reason)
        if len(known) > self._retries:
            yield from self.failed(task, f"gave up after {len(known)} attempts: {'; '.join(known)}")
        else:
            # First in the line: others may wait for it.
            self._ready.appendleft(task.key)

    def _end(self, task: Task, reason: str | None, found: bool = False) -> Finished:
        del self._missing[task.key]
        return Finished(task=task, reason=reason, found=found)


def _because(need: Task, reason: str) -> str:
    # A chain names only the task it began with.
    return reason if reason.startswith("needs ") else f"needs {need.label}, which failed: {reason}"
