"""CPU seconds of a command and of all processes that it starts, Ray's among them."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

LOOK_SECONDS = 0.1
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
    first process, which lives longest, the kernel's own count is taken if it is larger.

    Args:
        arguments: Arguments of the Python interpreter.
        environment: Environment of the command.
        allowed: Exit codes that are no failure.

    Raises:
        RuntimeError: It ended otherwise.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = subprocess.Popen(
        [sys.executable, *arguments],
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seen: dict[psutil.Process, tuple[str, float]] = {}
    first = psutil.Process(started.pid)
    output = ""
    while True:
        _look(first, seen)
        try:
            output = started.communicate(timeout=LOOK_SECONDS)[0]
            break
        except subprocess.TimeoutExpired:
            continue
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


def _look(first: psutil.Process, seen: dict[psutil.Process, tuple[str, float]]) -> None:
    """Note what the processes have taken so far; one whose parent is gone is still looked at."""
    everything = {first, *seen}
    for process in tuple(everything):
        try:
            everything |= set(process.children(recursive=process == first))
        except psutil.Error:
            continue
    for process in everything:
        try:
            times = process.cpu_times()
            kind = "driver" if process == first else _kind(process)
        except psutil.Error:
            continue
        seen[process] = (kind, times.user + times.system)


def _kind(process: psutil.Process) -> str:
    """What a process is, in a word."""
    command = " ".join(process.cmdline())
    if "ray::" in command or "default_worker" in command:
        return "workers"
    named = next((name for name in _SHOWN if name in command), None)
    return named or Path(process.name()).name
