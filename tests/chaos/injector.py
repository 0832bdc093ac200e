"""Fault injector: arms a failpoint, waits until a worker is held, lists what workers did."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.run.reporting import Stage
from tests.chaos.failpoint import AIM, ends_cell, held_file, trace_file

POLL_SECONDS = 0.01


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A worker's report.

    Attributes:
        task: Key of its task.
        stage: What it does.
        done: Units of the stage that are finished.
        total: Units of the stage.
        pid: Its process.
    """

    task: str
    stage: Stage
    done: int
    total: int
    pid: int


class FaultInjector:
    """Aims at reports of workers that are watched by `tests.chaos.failpoint.watch`.

    Args:
        folder: The folder shared with the workers.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._n_armed = 0

    def arm(self, stage: Stage, skip: int) -> None:
        """Hold the worker of report number `skip` (from 0) of a stage, counted from now."""
        self._n_armed += 1
        draft = self._folder / "aim.draft"
        draft.write_text(json.dumps({"id": self._name, "stage": stage, "skip": skip}))
        draft.replace(self._folder / AIM)

    def disarm(self) -> None:
        """Let go of the worker that is held, and aim at nothing."""
        (self._folder / AIM).unlink(missing_ok=True)

    def wait(self, give_up: Callable[[], bool], timeout: float) -> Seen | None:
        """The report at which a worker is held; None when there is none.

        Args:
            give_up: Asked again and again; True: nothing more is to be expected.
            timeout: Seconds.
        """
        deadline = time.monotonic() + timeout
        held = held_file(self._folder, self._name)
        while not held.exists():
            if give_up() or time.monotonic() > deadline:
                return None
            time.sleep(POLL_SECONDS)
        return Seen(**json.loads(held.read_text()))

    def last(self, pid: int) -> Seen:
        """The last report of a worker."""
        *_, last = self._lines(trace_file(self._folder, pid))
        return Seen(**json.loads(last))

    def clear(self) -> None:
        """Forget all reports."""
        self.disarm()
        for path in self._folder.iterdir():
            path.unlink(missing_ok=True)

    def workers(self) -> list[int]:
        """Processes that have reported since `clear`."""
        return [int(path.stem.removeprefix("trace-")) for path in self._traces()]

    def counts(self) -> Counter[Stage]:
        """Reports of each stage since `clear` at which a worker can be held."""
        seen = [Seen(**json.loads(line)) for path in self._traces() for line in self._lines(path)]
        return Counter(s.stage for s in seen if not ends_cell(s.stage, s.done, s.total))

    def _traces(self) -> list[Path]:
        return list(self._folder.glob("trace-*.jsonl"))

    @property
    def _name(self) -> str:
        return f"aim{self._n_armed}"

    @staticmethod
    def _lines(trace: Path) -> list[str]:
        """Whole lines: a worker may have been killed half-way through one."""
        return trace.read_text().split("\n")[:-1]
