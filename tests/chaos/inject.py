"""Faults of each kind, all through the operating system."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial

from tests.chaos import processes
from tests.chaos.cluster import SimulatedCluster
from tests.chaos.driver import Invocation
from tests.chaos.schedule import Fault


class InjectionError(RuntimeError):
    """The fault could not be brought about."""


def ready(
    fault: Fault, worker: int, driver: Invocation, cluster: SimulatedCluster
) -> Callable[[], None]:
    """A fault that needs only to be called: what takes time to find out is known by then.

    Args:
        fault: Which one.
        worker: The process that is held.
        driver: The driver that runs.
        cluster: Where the worker is.

    Raises:
        InjectionError: The worker is on none of the cluster's nodes.
    """
    if fault.kind == "worker":
        return partial(processes.kill, [worker])
    if fault.kind == "driver":
        return partial(driver.signal, signal.SIGTERM if fault.gentle else signal.SIGKILL)
    if fault.kind == "disk":
        return partial(processes.refuse_writes, worker)
    node = cluster.node_of(worker)
    if node is None:
        raise InjectionError(f"process {worker} is on none of the nodes")
    return partial(cluster.remove, node, node.pids())
