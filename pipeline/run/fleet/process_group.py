"""A group of processes on one or several machines, over torch.distributed."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

Backend = Literal["gloo", "nccl"]

TIMEOUT = timedelta(minutes=10)
PATIENCE = timedelta(days=1)


class ProcessRanks:
    """A process group as `rledit.ranks.Ranks`.

    Args:
        group: The group; None: all processes of the group this one has joined.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        self._carrier = torch.device("cuda" if dist.get_backend(group) == "nccl" else "cpu")

    def all_reduce_(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all ranks.

        The same bits come out on every rank: each part is added up in one place and passed on.
        """
        if self.size == 1:
            return
        # Each back end carries tensors of its own kind of device only.
        carried = tensor.to(self._carrier).contiguous()
        dist.all_reduce(carried, group=self._group)
        if carried.data_ptr() != tensor.data_ptr():
            tensor.copy_(carried)


def open_rendezvous(host: str) -> tuple[dist.Store, str]:
    """Make the place where the ranks of a group meet; done by rank 0.

    Args:
        host: Address of this node. The place is reached at it, and at no other address of the node.

    Returns:
        The place, and ``host:port`` for the other ranks.
    """
    listener = socket.create_server((host, 0))
    port = listener.getsockname()[1]
    store = dist.TCPStore(
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    return store, f"{host}:{port}"


def find_rendezvous(address: str) -> dist.Store:
    """The place that rank 0 has made, as the other ranks reach it."""
    host, _, port = address.rpartition(":")
    return dist.TCPStore(host, int(port), is_master=False, wait_for_workers=False)


def wait_for_all(store: dist.Store, rank: int, size: int, timeout: timedelta = PATIENCE) -> None:
    """Say that this rank is ready to join the group, and wait until all are.

    Args:
        store: Where they meet.
        rank: This process's place, from 0.
        size: Number of processes.
        timeout: How long to wait; whoever has begun the ranks ends them sooner if one fails.
    """
    store.set(f"ready/{rank}", "yes")
    store.wait([f"ready/{i}" for i in range(size)], timeout)


def use_network_of(host: str) -> None:
    """Let the back ends talk over the interface that has this address, and over no other.

    Raises:
        RuntimeError: No interface of this machine has it.
    """
    for name, addresses in psutil.net_if_addrs().items():
        ours = {a.address for a in addresses}
        # The loopback interface answers for all of 127.0.0.0/8.
        if host in ours or (host.startswith("127.") and "127.0.0.1" in ours):
            os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = name
            return
    raise RuntimeError(f"no network interface of this machine has the address {host}")


@contextmanager
def joined(
    rank: int,
    size: int,
    rendezvous: str | dist.Store,
    backend: Backend | None = None,
    timeout: timedelta = TIMEOUT,
) -> Iterator[ProcessRanks]:
    """Join a group of processes, and leave it at the end.

    Args:
        rank: This process's place, from 0.
        size: Number of processes.
        rendezvous: Where they meet: a store that rank 0 has opened, ``tcp://host:port`` of rank 0,
            or ``file:///path`` of a file that does not exist yet and that all of them see.
        backend: None: nccl where there is a GPU, else gloo.
        timeout: How long a collective call waits for the others before it raises.
    """
    # One GPU per process: the scheduler narrows what each of them sees.
    os.environ.setdefault("LOCAL_RANK", "0")
    dist.init_process_group(
        backend or ("nccl" if torch.cuda.is_available() else "gloo"),
        init_method=rendezvous if isinstance(rendezvous, str) else None,
        store=None if isinstance(rendezvous, str) else rendezvous,
        rank=rank,
        world_size=size,
        timeout=timeout,
    )
    try:
        yield ProcessRanks()
    finally:
        dist.destroy_process_group()
