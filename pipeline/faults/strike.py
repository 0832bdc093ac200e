"""The faults themselves, all through the operating system."""

from __future__ import annotations

import signal
from collections.abc import Callable
from functools import partial

from pipeline.faults import processes
from pipeline.faults.cluster import SimulatedCluster
from pipeline.faults.driver import Invocation
from pipeline.faults.schedule import Aim


class StrikeError(RuntimeError):
    """The fault could not be brought about."""


def ready(
    aim: Aim, worker: int, driver: Invocation, cluster: SimulatedCluster
) -> Callable[[], None]:
    """A fault that needs only to be called: what takes time to find out is known by then.

    Args:
        aim: Which one.
        worker: The process that is held.
        driver: The driver that runs.
        cluster: Where the worker is.

    Raises:
        StrikeError: The worker is on none of the cluster's nodes.
    """
    if aim.kind == "worker":
        return partial(processes.kill, [worker])
    if aim.kind == "driver":
        return partial(driver.signal, signal.SIGTERM if aim.gentle else signal.SIGKILL)
    if aim.kind == "disk":
        return partial(processes.refuse_writes, worker)
    node = cluster.node_of(worker)
    if node is None:
        raise StrikeError(f"process {worker} is on none of the nodes")
    return partial(cluster.remove, node, node.pids())
