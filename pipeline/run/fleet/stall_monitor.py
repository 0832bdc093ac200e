"""Stall reports: what tasks wait for, and what the cluster has, when nothing starts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping

from pipeline.run.tasks import Task

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 60.0


class StallMonitor:
    """Watches for a fleet on which nothing runs; warns once a minute.

    Args:
        capacity: What all nodes that are there offer, by resource name.
        clock: Seconds, of any origin.
    """

    def __init__(
        self,
        capacity: Callable[[], Mapping[str, float]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._capacity = capacity
        self._clock = clock
        self._since = self._warned = clock()

    def check(self, running: bool, waiting: Iterable[Task]) -> None:
        """Take what is the case now.

        Args:
            running: Whether any task has begun its work.
            waiting: Tasks that the fleet has been given.
        """
        now = self._clock()
        first = next(iter(waiting), None)
        if running or first is None:
            self._since = self._warned = now
        elif now - self._warned >= PATIENCE_SECONDS:
            self._warned = now
            logger.warning("%s", self._line(first, now - self._since))

    def _line(self, task: Task, seconds: float) -> str:
        has = self._capacity()
        lacks = {name: n for name, n in task.resources.demand().items() if n > has.get(name, 0.0)}
        if not lacks:
            why = "the cluster has that, so others may use it, or its workers are slow to start"
        else:
            there = ", ".join(f"{has.get(name, 0.0):g} {name}" for name in lacks)
            why = f"all nodes together have {there}; it starts when more nodes join"
        wants = ", ".join(f"{n:g} {name}" for name, n in task.resources.demand().items() if n)
        return (
            f"nothing has run for {seconds:.0f} s: {task.label} waits for {wants}, and {why} "
            "(`ray status` shows the nodes)"
        )
