"""Signs of life of a running invocation in the tracking store."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from pipeline.results.tracking.tracker import Tracker
from pipeline.results.tracking.uri import TrackingError
from pipeline.run.fleet.progress import Progress

logger = logging.getLogger(__name__)

EVERY_SECONDS = 15.0
# After failures in a row; far below `liveness.STALE_MINUTES`.
AT_MOST_EVERY_SECONDS = 120.0


class Heartbeat:
    """Tells the tracking store now and then how far a run is, and a store that is away less often.

    The thread that gives out work tells it, so what it costs is bounded: `Tracker.beat` asks once,
    and the time until the next beat counts from the end of this one.

    Args:
        tracker: Where to tell it.
        parent: The invocation.
        counts: Says how far the run is.
    """

    def __init__(
        self, tracker: Tracker, parent: str, counts: Callable[[], Mapping[str, float]]
    ) -> None:
        self._tracker = tracker
        self._parent = parent
        self._counts = counts
        self._began = time.monotonic()
        self._next = self._began
        self._wait = EVERY_SECONDS

    def progress(self, running: Mapping[str, Progress]) -> None:
        """Called with the running tasks as often as the fleet looks at them."""
        now = time.monotonic()
        if now < self._next:
            return
        values = {**self._counts(), "tasks_running": float(len(running))}
        try:
            self._tracker.beat(self._parent, values, int(now - self._began))
            self._wait = EVERY_SECONDS
        except TrackingError as error:
            logger.warning("%s; the run goes on, the lake has its rows", error)
            self._wait = min(2 * self._wait, AT_MOST_EVERY_SECONDS)
        self._next = time.monotonic() + self._wait
