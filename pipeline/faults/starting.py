"""What it takes to start a Ray of one's own on this machine's loopback, beside others."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

START_SECONDS = 180.0
_JOINED = "Ray runtime started."


def without_ray(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which no other Ray has left its settings."""
    return {name: value for name, value in environment.items() if not name.startswith("RAY_")}


def free_ports(n: int) -> list[int]:
    """Ports of the loopback that nobody uses."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def has_joined(process: subprocess.Popen[bytes], log: Path) -> bool:
    """Wait until `ray start --block` says that its node is part of the cluster.

    Returns:
        Whether it is; False: Ray gave the node up, or it said nothing for `START_SECONDS`.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if _JOINED in log.read_text(errors="replace"):
            return True
        time.sleep(0.1)
    return False
