"""Whether another process is alive, as far as it can be told from here."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import psutil


def place() -> str:
    """What tells whether another process's number means anything here."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {os.readlink(namespace) if namespace.exists() else ''}".strip()


def alive(pid: int, born: float) -> bool:
    """Whether a process of this place runs; one that is dead and not yet buried does not."""
    try:
        process = psutil.Process(pid)
        return process.create_time() == born and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
