"""Keeps the state of a run in a file of its lake; `rledit status` reads it, then and afterwards.

`runs/GRID/….json` is written whole every few seconds and once more when the run ends. Who reads it
looks at the process as well, so a run that was killed is never taken for one that goes on.
"""

from __future__ import annotations

import json
import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Literal

from pipeline.results.tracking.liveness import process_start
from pipeline.run.command_line import command_line
from pipeline.run.processes import alive, place
from pipeline.run.signals import Interrupted, Terminated
from pipeline.storage.object_store import Storage
from pipeline.storage.redaction import redact

logger = logging.getLogger(__name__)

FOLDER = "runs"
EVERY_SECONDS, EVERY_SECONDS_REMOTE = 2.0, 15.0
# A run on another machine that was not heard of for so long is not said to be running.
SILENT_SECONDS = 90.0

How = Literal["running", "finished", "failed", "interrupted", "told to end", "stopped by an error"]
State = Literal["running", "ended", "gone", "silent"]


@dataclass(frozen=True, kw_only=True)
class RunningTask:
    """A task under way, as the display shows it.

    Attributes:
        position: How far it is, how fast, and how long yet.
        detail: What it says beside numbers.
        seconds: Since it began.
    """

    label: str
    position: str
    detail: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class RunSituation:
    """How far a run is.

    Attributes:
        done: Cells that it has finished.
        failures: Reasons by label, of tasks of any kind.
        found: Tasks that were done before: the cache or the lake had them.
        seconds_left: Of everything; None while nothing is known.
        is_measured: Whether that is from more than what the plan expects.
        waiting: Number of tasks that have not begun, by kind.
    """

    done: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)
    found: int = 0
    seconds_left: float | None = None
    is_measured: bool = False
    edits_per_second: float = 0.0
    waiting: Mapping[str, int] = field(default_factory=dict)
    running: tuple[RunningTask, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The content of the file.

    Attributes:
        cells: Cells of the grid, each once.
        done_before: Those that were done when the run began, or have their rows in another cell.
        skipped: Those that cannot be run.
        command: How the run was started, as it is typed; empty for a submitted job.
        folder: Where that was.
        place, pid, born: The process, see `pipeline.run.processes`.
        started, updated, ended: Seconds since the epoch; `ended` is None while it runs.
        how: How it ended.
        reason: Why, in one line, where an error ended it.
        now: How far it is.
    """

    grid: str
    cells: int
    done_before: int
    skipped: int
    command: str
    folder: str
    place: str
    pid: int
    born: str
    started: float
    updated: float
    ended: float | None = None
    how: How = "running"
    reason: str = ""
    now: RunSituation = field(default_factory=RunSituation)

    @classmethod
    def of_json(cls, text: bytes) -> RunRecord:
        """What `asdict` wrote.

        Raises:
            ValueError, TypeError, KeyError: It is something else.
        """
        values: dict[str, Any] = json.loads(text)
        now = values.pop("now")
        running = tuple(RunningTask(**task) for task in now.pop("running"))
        return cls(**values, now=RunSituation(**now, running=running))

    def state(self, now: float | None = None) -> State:
        """What has become of the run, seen from this process."""
        if self.ended is not None:
            return "ended"
        if self.place == place():
            return "running" if alive(self.pid, self.born) else "gone"
        silent = (time.time() if now is None else now) - self.updated
        return "running" if silent < SILENT_SECONDS else "silent"


class RunFile:
    """The file of one run; what cannot be written is said once, and the run goes on."""

    def __init__(self, storage: Storage, record: RunRecord) -> None:
        self._storage = storage
        self.record = record
        moment = datetime.fromtimestamp(record.started, UTC)
        unique = f"{moment:%Y%m%dT%H%M%S}-{record.pid}-{uuid.uuid4().hex[:6]}"
        self._name = f"{FOLDER}/{record.grid}/{unique}.json"
        self._every = EVERY_SECONDS if storage.is_local else EVERY_SECONDS_REMOTE
        self._written = 0.0
        self._refused = False

    def update(self, now: RunSituation) -> None:
        """Take how far the run is; written every few seconds."""
        self.record = replace(self.record, now=now, updated=time.time())
        self._write()

    @property
    def is_due(self) -> bool:
        """Whether the next update is to be made."""
        return time.monotonic() - self._written > self._every

    def end(self, how: How, reason: str = "") -> None:
        """The run is over; what was under way stays in the file, as what goes on from there."""
        moment, now = time.time(), replace(self.record.now, seconds_left=None)
        self.record = replace(
            self.record, now=now, updated=moment, ended=moment, how=how, reason=redact(reason)
        )
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        try:
            self._storage.write_bytes(self._name, json.dumps(asdict(self.record)).encode())
        except Exception as error:  # drivers of object stores raise classes of their own
            if not self._refused:
                logger.warning("rledit status cannot show this run: %s", redact(str(error)))
            self._refused = True

    def begin(self) -> None:
        """Write the file, and remove those of earlier runs of the grid that are over."""
        for name, record in _files(self._storage, self.record.grid):
            if record is None or record.state() != "running":
                self._storage.delete(name)
        self._write()


@contextmanager
def run_file(
    storage: Storage,
    grid: str,
    *,
    cells: int,
    done_before: int,
    skipped: int,
    command: str | None = None,
) -> Iterator[RunFile]:
    """Keep the file of a run of this process for the length of the context.

    How the context is left is how the run ended; one that some cells failed in says so itself.

    Args:
        command: What goes on from where the run stops (default: the command of this process); empty
            where that is to submit the grid again.
    """
    now = time.time()
    file = RunFile(
        storage,
        RunRecord(
            grid=grid,
            cells=cells,
            done_before=done_before,
            skipped=skipped,
            command=command_line() if command is None else command,
            folder=os.getcwd(),
            place=place(),
            pid=os.getpid(),
            born=process_start(os.getpid()),
            started=now,
            updated=now,
        ),
    )
    file.begin()
    try:
        yield file
    except Interrupted:
        file.end("interrupted")
        raise
    except Terminated:
        file.end("told to end")
        raise
    except BaseException as error:
        file.end("stopped by an error", f"{type(error).__name__}: {error}".partition("\n")[0])
        raise
    if file.record.ended is None:
        file.end("finished")


def read_runs(storage: Storage, grid: str | None = None) -> list[RunRecord]:
    """The runs of a grid, or of all, the newest first; files that cannot be read are left out."""
    records = [record for _, record in _files(storage, grid) if record is not None]
    return sorted(records, key=lambda record: record.started, reverse=True)


def _files(storage: Storage, grid: str | None) -> Iterator[tuple[str, RunRecord | None]]:
    folder = FOLDER if grid is None else f"{FOLDER}/{grid}"
    for name in storage.list(folder):
        if grid is not None and name.rpartition("/")[0] != folder:
            continue  # of a grid whose name goes on after a slash
        try:
            yield name, RunRecord.of_json(storage.read_bytes(name))
        except FileNotFoundError:  # removed since it was listed: another run has begun
            continue
        except (ValueError, TypeError, KeyError) as error:
            logger.debug("%s: %r", name, error)
            yield name, None
