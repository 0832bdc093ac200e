"""A real `ray start --head` of this test's own on loopback, ended by its own process ids."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.chaos.cluster import START_SECONDS, free_ports, without_ray


@dataclass(frozen=True, kw_only=True)
class Head:
    """A running head.

    Attributes:
        address: Of the job server.
        token: What clients authenticate with.
        session: Ray's temporary folder: its logs and what it keeps on disk.
        environment: What a client needs in its environment.
    """

    address: str
    token: str
    session: Path
    environment: Mapping[str, str]

    def listening(self) -> dict[str, set[str]]:
        """Addresses on which the processes of this Ray accept connections, by process name."""
        found: dict[str, set[str]] = {}
        for process in _processes(self.session):
            try:
                connections = process.net_connections(kind="tcp")
            except psutil.Error:
                continue
            for connection in connections:
                if connection.status == psutil.CONN_LISTEN:
                    found.setdefault(process.name(), set()).add(connection.laddr.ip)
        return found


@contextmanager
def ray_head(folder: Path, environment: Mapping[str, str], cpus: int = 2) -> Iterator[Head]:
    """Start a head with token authentication; end all of its processes afterwards.

    Args:
        folder: For the token and the head's own output.
        environment: More variables of the head, such as the secrets a cluster's nodes are given.
        cpus: Cores it offers.
    """
    token = secrets.token_hex(32)
    token_file = folder / "ray-token"
    token_file.touch(mode=0o600)
    token_file.write_text(token)
    # Unix sockets lie below: their paths may be 107 characters long, pytest's folders are not.
    session = Path(tempfile.mkdtemp(prefix="rledit-", dir="/tmp"))
    ports = free_ports(4)
    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--node-ip-address", "127.0.0.1", "--dashboard-host", "127.0.0.1"),
        *("--port", str(ports[0]), "--dashboard-port", str(ports[1])),
        *("--dashboard-agent-listen-port", str(ports[2])),
        *("--ray-client-server-port", str(ports[3])),
        *("--min-worker-port", "0", "--max-worker-port", "0"),
        *("--num-cpus", str(cpus), "--num-gpus", "0"),
        *("--object-store-memory", str(128 << 20), "--temp-dir", str(session)),
        "--disable-usage-stats",
    ]
    log = folder / "ray-start.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**without_ray(os.environ), **own, **environment},
        )
    address = f"http://127.0.0.1:{ports[1]}"
    try:
        wait_until_up(process, "127.0.0.1", ports[1], log)
        yield Head(address=address, token=token, session=session, environment=own)
    finally:
        _end(process, session)
        shutil.rmtree(session, ignore_errors=True)


def wait_until_up(process: subprocess.Popen[bytes], ip: str, port: int, log: Path) -> None:
    """Wait until a process that has been started accepts connections.

    Raises:
        RuntimeError: It ended, or did not within `START_SECONDS`; shows the end of its log.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(0.5)
            if probe.connect_ex((ip, port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"Ray did not start; it wrote:\n{log.read_text()[-4000:]}")


def _processes(session: Path) -> list[psutil.Process]:
    """Every process of this Ray: they all name its temporary folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and str(session) in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def _end(process: subprocess.Popen[bytes], session: Path) -> None:
    children = [psutil.Process(process.pid)] if process.poll() is None else []
    children += [c for p in children for c in p.children(recursive=True)] + _processes(session)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(children, timeout=10)
    for each in {*alive, *_processes(session)}:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
