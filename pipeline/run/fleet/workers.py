"""Workers that stay from task to task, and which of them does what.

A worker is a process that holds its cores, GPU and memory from its arrival until it is dismissed,
and the model that its last task had (see `pipeline.run.kept_model`). A task goes to a worker that
has its model at hand, if one is free; a worker that is free takes a task of its model before any
other, and else one of the model that the fewest workers hold. So models are loaded about once per
worker, whatever the order of the cells.

As the GPU of a worker is its own for as long as it lives, what its process keeps there is nobody
else's memory: with the process, all of it goes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.run.tasks import Task

# How long a worker waits for a task that may come, where nobody waits for what it holds.
IDLE_SECONDS = 30.0
# After how long it makes room where others wait: gangs, tasks of another shape, other drivers.
TURN_SECONDS = 1800.0
# Workers that are asked for beyond what a cluster can hold, so that it sees what it could grow for;
# as many again as there are, in a cluster that does grow.
LEAST_HIRED = 8


@dataclass(frozen=True)
class WorkerShape:
    """What a worker holds: cores, GPUs, and host memory in GB where it counts."""

    cpus: int
    gpus: float
    memory_gb: float | None

    @classmethod
    def of(cls, task: Task) -> WorkerShape:
        """What a task of one worker needs."""
        needed = task.resources
        return cls(needed.cpus or 1, needed.gpus, needed.memory_gb)

    def holds(self, other: WorkerShape) -> bool:
        """Whether a worker without a GPU has at least what another one would have."""
        enough = self.cpus >= other.cpus and (self.memory_gb or 0.0) >= (other.memory_gb or 0.0)
        return enough and not self.gpus and not other.gpus

    def demand(self) -> dict[str, float]:
        """As the scheduler has it; memory in bytes."""
        return {
            "CPU": float(self.cpus),
            "GPU": self.gpus,
            "memory": (self.memory_gb or 0.0) * 1e9,
        }


class Hand(Protocol):
    """The process of a worker, as the driver has it.

    Attributes:
        arrival: What is there once the process is; raises where it cannot be had.
    """

    arrival: Any

    def work(self, item: Any) -> Any:
        """Let it do a task; returns what is there once it has ended."""
        ...

    def dismiss(self) -> None:
        """End the process, whatever it does, and give back what it holds."""
        ...


@dataclass(eq=False)
class Worker:
    """A worker, on its way or there.

    Attributes:
        shape: What it holds.
        hand: Its process.
        model: Key of the model that its last task had.
        arrived: When it arrived; None: it is on its way.
        idle_since: Since when it has no task; None: it has one, or is on its way.
    """

    shape: WorkerShape
    hand: Hand
    model: str | None = None
    arrived: float | None = None
    idle_since: float | None = None


class Workers:
    """The workers of a run.

    Args:
        hire: Asks for a worker of a shape.
        room: How many workers of a shape the cluster could hold if it had nothing else to do.
        grows: Whether it may come to hold more. One that cannot is asked for no worker that it has
            no room for: while any waits, Ray has all processes collect their garbage.
        clock: Seconds, of any origin.
    """

    def __init__(
        self,
        hire: Callable[[WorkerShape], Hand],
        room: Callable[[WorkerShape], int],
        grows: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hire = hire
        self._room = room
        self._grows = grows
        self._clock = clock
        self._coming: dict[Any, Worker] = {}
        self._there: list[Worker] = []

    @property
    def arrivals(self) -> list[Any]:
        """What is to be waited for of the workers on their way."""
        return list(self._coming)

    def arrived(self, reference: Any) -> None:
        """A worker that was on its way is there."""
        worker = self._coming.pop(reference)
        worker.arrived = worker.idle_since = self._clock()
        self._there.append(worker)

    def lost(self, reference: Any) -> WorkerShape:
        """A worker that was on its way will not come; returns what it would have held."""
        worker = self._coming.pop(reference)
        worker.hand.dismiss()
        return worker.shape

    def back(self, worker: Worker, fit: bool) -> None:
        """A worker's task has ended.

        Args:
            worker: The worker.
            fit: Whether it can do another one.
        """
        if fit:
            worker.idle_since = self._clock()
        else:
            self._dismiss(worker)

    def assign(self, ready: Sequence[Task], others_wait: bool) -> list[tuple[Task, Worker]]:
        """Tasks that begin now, each with its worker; asks for workers for the others.

        Args:
            ready: Tasks that may start, first come, first served.
            others_wait: Whether work that is not done by these workers waits for room.
        """
        waiting = {task.key: (task, WorkerShape.of(task)) for task in ready}
        if others_wait or self._coming:
            self._end_turns()
        begun = [
            (task, worker)
            for choose in (self._of_its_model, self._of_the_rarest_model)
            for worker in self._idle()
            if (task := choose(worker, waiting)) is not None
        ]
        self._hire_for(Counter(shape for _, shape in waiting.values()))
        now = self._clock()
        for worker in self._idle():
            assert worker.idle_since is not None
            if others_wait or self._coming or now - worker.idle_since > IDLE_SECONDS:
                self._dismiss(worker)
        return begun

    def close(self) -> None:
        """Dismiss all of them."""
        for worker in (*self._coming.values(), *self._there):
            worker.hand.dismiss()
        self._coming, self._there = {}, []

    def _idle(self) -> list[Worker]:
        return [worker for worker in self._there if worker.idle_since is not None]

    def _of_its_model(
        self, worker: Worker, waiting: dict[str, tuple[Task, WorkerShape]]
    ) -> Task | None:
        """The first task that needs no other model than the worker has."""
        own = (None, worker.model)
        return self._take(
            worker,
            waiting,
            (t for t, s in waiting.values() if s == worker.shape and t.model in own),
        )

    def _of_the_rarest_model(
        self, worker: Worker, waiting: dict[str, tuple[Task, WorkerShape]]
    ) -> Task | None:
        """The first of the tasks whose model the fewest workers have.

        The only task that waits may be one that needs less than the worker holds.
        """
        holders = Counter(w.model for w in self._there if w is not worker)
        alone = len(waiting) == 1 and not self._coming
        fitting = [
            task
            for task, shape in waiting.values()
            if shape == worker.shape or (alone and worker.shape.holds(shape))
        ]
        return self._take(worker, waiting, sorted(fitting, key=lambda t: holders[t.model]))

    def _take(
        self, worker: Worker, waiting: dict[str, tuple[Task, WorkerShape]], found: Iterable[Task]
    ) -> Task | None:
        task = next(iter(found), None)
        if task is not None:
            del waiting[task.key]
            worker.idle_since = None
            worker.model = task.model or worker.model
        return task

    def _hire_for(self, wanted: Counter[WorkerShape]) -> None:
        """Have as many workers on their way as there are tasks without one, up to a limit."""
        coming = Counter(worker.shape for worker in self._coming.values())
        for shape in [*wanted, *(coming.keys() - wanted.keys())]:
            there = sum(worker.shape == shape for worker in self._there)
            beyond = max(LEAST_HIRED, there) if self._grows else int(not there)
            most = max(beyond, self._room(shape) - there) if wanted[shape] else 0
            lacking = min(wanted[shape], most) - coming[shape]
            for _ in range(lacking):
                hand = self._hire(shape)
                self._coming[hand.arrival] = Worker(shape, hand)
            # The last ones that were asked for would be the last to come.
            own = [r for r, worker in self._coming.items() if worker.shape == shape]
            for reference in reversed(own[len(own) + lacking :] if lacking < 0 else []):
                self._coming.pop(reference).hand.dismiss()

    def _end_turns(self) -> None:
        now = self._clock()
        for worker in self._idle():
            if worker.arrived is not None and now - worker.arrived > TURN_SECONDS:
                self._dismiss(worker)

    def _dismiss(self, worker: Worker) -> None:
        self._there.remove(worker)
        worker.hand.dismiss()
