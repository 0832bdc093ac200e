"""Processes of this machine: who descends from whom, ending them, and refusing them the disk."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Collection, Iterator
from pathlib import Path


def _stats() -> Iterator[tuple[int, list[str]]]:
    """Every process with what /proc says of it: state, parent, group, session, ..."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # After the name in parentheses, which may hold spaces.
                yield int(entry.name), (entry / "stat").read_text().rpartition(")")[2].split()


def of_session(pid: int) -> list[int]:
    """All processes of the session that a process has begun, orphans included."""
    return [other for other, (_, _, _, session, *_) in _stats() if int(session) == pid]


def descendants(pid: int) -> list[int]:
    """All children of a process, and theirs."""
    children: dict[int, list[int]] = {}
    for child, (_, parent, *_) in _stats():
        children.setdefault(int(parent), []).append(child)
    found: list[int] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def alive(pid: int) -> bool:
    """Whether a process still runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pids: Collection[int], timeout: float = 30.0) -> None:
    """SIGKILL processes and wait until they are gone.

    Raises:
        TimeoutError: One of them is still there.
    """
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + timeout
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            raise TimeoutError(f"still running {timeout:.0f} s after SIGKILL: {sorted(pids)}")
        time.sleep(0.01)


def refuse_writes(pid: int) -> None:
    """Make every further write of a process to a file fail, as on a full disk.

    The limit on file sizes does it (EFBIG in place of ENOSPC): from outside, for one process, and
    without privileges.
    """
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))


def allow_writes(pid: int) -> None:
    """Undo `refuse_writes`; a process that is gone is no error."""
    with contextlib.suppress(ProcessLookupError):
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
