"""CPU seconds of a command and of all processes that it starts, Ray's among them."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

LOOK_SECONDS = 0.1
_SET_CHILD_SUBREAPER = 36  # sys/prctl.h
_SHOWN = ("raylet", "gcs_server", "dashboard", "monitor", "runtime_env", "log_monitor")


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a command took.

    Attributes:
        cpu_seconds: User and system time of all its processes.
        by_process: The same by kind of process.
        output: What it wrote.
    """

    cpu_seconds: float
    by_process: Mapping[str, float]
    output: str


def spent_by(
    arguments: Sequence[str], environment: Mapping[str, str], allowed: Sequence[int] = (0,)
) -> Spent:
    """Run Python with these arguments and add up what its processes take.

    Ray's daemons do not wait for their workers, so the kernel does not add up their times: every
    process is looked at ten times a second. What one takes after the last look is lost; of the
    first process, which lives longest, the kernel's own count is taken if it is larger. On Linux,
    a process whose parent has ended falls to this one and is still looked at.

    Args:
        arguments: Arguments of the Python interpreter.
        environment: Environment of the command.
        allowed: Exit codes that are no failure.

    Raises:
        RuntimeError: It ended otherwise.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    others = set(psutil.Process().children(recursive=True))
    seen: dict[psutil.Process, tuple[str, float]] = {}
    with _adopting():
        started = subprocess.Popen(
            [sys.executable, *arguments],
            env=dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        while True:
            _look(started.pid, others, seen)
            try:
                output = started.communicate(timeout=LOOK_SECONDS)[0]
                break
            except subprocess.TimeoutExpired:
                continue
        _bury(process for process in seen if process.pid != started.pid)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if started.returncode not in allowed:
        raise RuntimeError(f"{arguments} ended with {started.returncode}: {output[-3000:]}")
    waited = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    by_process: dict[str, float] = {}
    for kind, seconds in seen.values():
        by_process[kind] = by_process.get(kind, 0.0) + seconds
    return Spent(
        cpu_seconds=max(waited, sum(by_process.values())), by_process=by_process, output=output
    )


@contextmanager
def _adopting() -> Iterator[None]:
    """Be the parent of descendants whose own has ended, where the system has that."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        if prctl is not None:
            prctl(_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _look(
    first: int, others: set[psutil.Process], seen: dict[psutil.Process, tuple[str, float]]
) -> None:
    """Note what the processes have taken so far."""
    for process in set(psutil.Process().children(recursive=True)) - others:
        with suppress(psutil.Error):
            times = process.cpu_times()
            kind = "driver" if process.pid == first else _kind(process)
            seen[process] = (kind, times.user + times.system)


def _bury(processes: Iterable[psutil.Process]) -> None:
    """Wait for adopted processes that have ended."""
    for process in processes:
        with suppress(ChildProcessError):
            os.waitpid(process.pid, os.WNOHANG)


def _kind(process: psutil.Process) -> str:
    """What a process is, in a word."""
    command = " ".join(process.cmdline())
    if process.name().startswith("ray::") or "default_worker" in command:
        return "workers"
    named = next((name for name in _SHOWN if name in command), None)
    return named or Path(process.name()).name
