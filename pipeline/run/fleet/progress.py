"""Progress of running tasks: an actor that workers write to and the driver reads."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.run import heap
from pipeline.run.reporting import Stage


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a running task is.

    Attributes:
        done: Units of its stage that are finished.
        total: Units of its stage.
        started: When the task began, in seconds since the epoch.
        stage: What it is doing now.
        pid: Its process; the leader's, where several work together.
        detail: More about the stage, in words.
        left: Seconds that the stage took yet when this was said, where the worker knows.
    """

    done: int
    total: int
    started: float
    stage: Stage
    pid: int
    detail: str = ""
    left: float | None = None


class ProgressActor:
    """What running tasks have written."""

    def __init__(self) -> None:
        heap.freeze()
        self._running: dict[str, Progress] = {}
        self._places: dict[str, str] = {}

    def update(self, key: str, progress: Progress) -> None:
        """Say how far a task is."""
        self._running[key] = progress

    def remove(self, key: str) -> None:
        """A task runs no more."""
        self._running.pop(key, None)

    def snapshot(self) -> dict[str, Progress]:
        """All running tasks."""
        return dict(self._running)

    def set_rendezvous(self, gang: str, address: str) -> None:
        """Say where the ranks of a gang meet."""
        self._places[gang] = address

    def rendezvous(self, gang: str) -> str | None:
        """Where the ranks of a gang meet, once the leader has said it."""
        return self._places.get(gang)
