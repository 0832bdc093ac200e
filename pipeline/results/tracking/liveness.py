"""Liveness of grid invocations: whether the process behind a tracked run may still be alive."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

HEARTBEAT = "heartbeat"
STALE_MINUTES = 15.0  # an invocation on another machine is gone when it was silent for so long


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """A parent run: one call of `rledit run`, or one submitted job.

    Attributes:
        status: RUNNING, FINISHED, FAILED or KILLED.
        tags: Among them `submission_id` and `heartbeat`, where there are any.
        metrics: The last numbers it gave to `Tracker.beat`.
    """

    run_id: str
    name: str
    status: str
    started: datetime
    tags: Mapping[str, str]
    metrics: Mapping[str, float]


def own_tags() -> dict[str, str]:
    """What a later process needs to know of this one."""
    return {
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "process_started": process_start(os.getpid()),
    }


def with_start(tags: Mapping[str, str], started: datetime) -> dict[str, str]:
    """A run's tags; that it began is a sign of life where it has given no later one."""
    return {HEARTBEAT: started.isoformat(timespec="seconds"), **tags}


def process_alive(tags: Mapping[str, str]) -> bool:
    """True if the process that opened a run may still be alive.

    Certain on this host only; elsewhere one counts as dead after `STALE_MINUTES` without a sign of
    life.

    Args:
        tags: Those of the run, as `with_start` gives them.
    """
    if tags.get("host") != socket.gethostname():
        beat = tags.get(HEARTBEAT)
        return beat is not None and minutes_since(beat) < STALE_MINUTES
    started = process_start(int(tags.get("pid", "0")))
    return bool(started) and started == tags.get("process_started", started)


def minutes_since(moment: str) -> float:
    """Minutes since a moment in ISO format."""
    return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds() / 60


def process_start(pid: int) -> str:
    """When a process began, which tells it from others of its number; "" if there is none alive.

    In clock ticks since the machine did, as dates move when its clock is set; a date where only
    that is known.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "" if Path("/proc/self/stat").exists() else _date_of_birth(pid)
    fields = stat.rpartition(")")[2].split()  # from field 3; the name before ")" may hold spaces
    return "" if fields[0] in "ZX" else fields[19]  # dead, and not yet buried by its parent


def _date_of_birth(pid: int) -> str:
    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else str(process.create_time())
    except psutil.NoSuchProcess:
        return ""
