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


class Heartbeat:
    """Tells the tracking store now and then how far a run is.

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

    def progress(self, running: Mapping[str, Progress]) -> None:
        """Called with the running tasks as often as the fleet looks at them."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + EVERY_SECONDS
        values = {**self._counts(), "tasks_running": float(len(running))}
        try:
            self._tracker.beat(self._parent, values, int(now - self._began))
        except TrackingError as error:
            logger.warning("%s; the run goes on, the lake has its rows", error)
