"""A cluster of several nodes on this machine's loopback: each a real `ray start` of its own."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.chaos import processes

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


logger = logging.getLogger(__name__)

STOP_SECONDS = 15.0
# Ray gives a node half a minute to start: too little on a machine that is very busy for a while.
START_ATTEMPTS = 5
OBJECT_STORE_BYTES = 80 << 20
# Every node has an address of its own, and none is reached from another machine. The usual
# 127.0.0.1 would not do: Ray replaces it by the machine's outward address.
HEAD_IP = "127.0.1.1"

_OWN = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A dead node is noticed within seconds, not a quarter of a minute; one that is only slow,
    # on a busy machine, is not taken for dead.
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "20000",
    "RAY_health_check_failure_threshold": "3",
}


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node.

    Attributes:
        process: What started it.
        ip: Its own address on the loopback.
        directory: Its working directory.
        log: What Ray said at its start.
    """

    process: subprocess.Popen[bytes]
    ip: str
    directory: Path
    log: Path

    def pids(self) -> list[int]:
        """All of its processes: Ray's own and the workers."""
        return [self.process.pid, *processes.descendants(self.process.pid)]

    def joined(self) -> bool:
        """Wait until it is part of the cluster; False: Ray gave it up."""
        return has_joined(self.process, self.log)


class SimulatedCluster:
    """A head that takes no work, and nodes that do; used as a context manager.

    Each node has a working directory of its own.

    Args:
        folder: For working directories and logs.
        nodes: Nodes beside the head.
        environment: More environment variables of the nodes and their workers.
        cpus: Cores each node offers.
    """

    def __init__(
        self, folder: Path, nodes: int, environment: Mapping[str, str], cpus: int = 1
    ) -> None:
        self._folder = folder
        self._wanted = nodes
        self._cpus = cpus
        self._environment = {
            **without_ray(os.environ),
            **_OWN,
            **environment,
        }
        self._started = 0
        self.nodes: list[Node] = []

    def __enter__(self) -> SimulatedCluster:
        # Unix sockets lie in it, and their paths may be 107 characters long.
        self._session = Path(tempfile.mkdtemp(prefix="rledit-", dir="/tmp"))
        try:
            self._start_head()
            self.settle()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def client_environment(self) -> dict[str, str]:
        """What a driver needs in its environment."""
        return {name: _OWN[name] for name in ("RAY_AUTH_MODE", "RAY_USAGE_STATS_ENABLED")}

    def replenish(self) -> None:
        """Start nodes in place of those that are gone; they join a few seconds later."""
        self.nodes = [node for node in self.nodes if node.process.poll() is None]
        while len(self.nodes) < self._wanted:
            # A removed node's address is not used again, as a new machine would have its own.
            ip = f"127.0.{1 + self._started // 200}.{1 + self._started % 200}"
            node = self._start(ip, "--address", self.address, "--num-cpus", str(self._cpus))
            self.nodes.append(node)

    def settle(self) -> None:
        """Have all nodes there: those that are gone are replaced, and all have joined.

        Raises:
            RuntimeError: Ray gave nodes up again and again; shows the last one's log.
        """
        for _ in range(START_ATTEMPTS):
            self.replenish()
            absent = [node for node in self.nodes if not node.joined()]
            if not absent:
                return
            for node in absent:
                self._discard(node)
                self.nodes.remove(node)
        raise RuntimeError(f"a node did not join; it wrote:\n{_end_of(absent[-1].log)}")

    def node_of(self, pid: int) -> Node | None:
        """The node a worker runs on."""
        return next((node for node in self.nodes if pid in node.pids()), None)

    def remove(self, node: Node, pids: Sequence[int]) -> None:
        """Take a node away, with all of its processes, as if its power had failed."""
        processes.kill(pids)
        node.process.wait()
        self.nodes.remove(node)

    def _start_head(self) -> None:
        for _ in range(START_ATTEMPTS):
            port, client = free_ports(2)
            self.address = f"{HEAD_IP}:{port}"
            self._head = self._start(
                HEAD_IP,
                *("--head", "--port", str(port), "--num-cpus", "0"),
                *("--include-dashboard", "false", "--ray-client-server-port", str(client)),
                *("--temp-dir", str(self._session)),
            )
            if self._head.joined():
                return
            self._discard(self._head)
        raise RuntimeError(f"Ray did not start; it wrote:\n{_end_of(self._head.log)}")

    def _discard(self, node: Node) -> None:
        """End a node that never came up, so that nothing of it remains but its log."""
        logger.warning("Ray took too long to start %s; trying again", node.directory.name)
        # Ray leaves its processes behind as orphans; one of them might join later.
        pids = {*node.pids(), *processes.of_session(node.process.pid)}
        processes.kill([pid for pid in pids if processes.alive(pid)])
        node.process.wait()
        shutil.rmtree(node.directory, ignore_errors=True)

    def _start(self, ip: str, *arguments: str) -> Node:
        name = f"node{self._started}"
        self._started += 1
        directory = self._folder / name
        directory.mkdir(parents=True)
        listen, grpc, agent, metrics = free_ports(4)
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *arguments),
            *("--node-ip-address", ip, "--num-gpus", "0"),
            *("--object-store-memory", str(OBJECT_STORE_BYTES)),
            *("--dashboard-agent-listen-port", str(listen)),
            *("--dashboard-agent-grpc-port", str(grpc)),
            *("--runtime-env-agent-port", str(agent), "--metrics-export-port", str(metrics)),
            *("--min-worker-port", "0", "--max-worker-port", "0"),
            *("--include-log-monitor", "false", "--disable-usage-stats"),
        ]
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=directory,
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        return Node(process=process, ip=ip, directory=directory, log=log)

    def _stop(self) -> None:
        started = [*self.nodes, *([self._head] if hasattr(self, "_head") else [])]
        pids = [pid for node in started for pid in node.pids()]
        for node in started:
            if node.process.poll() is None:
                node.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while any(processes.alive(pid) for pid in pids) and time.monotonic() < deadline:
            for node in started:
                node.process.poll()
            time.sleep(0.1)
        processes.kill([pid for pid in pids if processes.alive(pid)])
        for node in started:
            node.process.wait()
        shutil.rmtree(self._session, ignore_errors=True)


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]
