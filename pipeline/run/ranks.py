"""A group of processes on one or several machines, over torch.distributed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

Backend = Literal["gloo", "nccl"]

TIMEOUT = timedelta(minutes=10)


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

    def sum_(self, tensor: Tensor) -> None:
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


@contextmanager
def joined(
    rank: int,
    size: int,
    rendezvous: str,
    backend: Backend | None = None,
    timeout: timedelta = TIMEOUT,
) -> Iterator[ProcessRanks]:
    """Join a group of processes, and leave it at the end.

    Args:
        rank: This process's place, from 0.
        size: Number of processes.
        rendezvous: Where they meet: ``tcp://host:port`` of rank 0, or ``file:///path`` of a file
            that does not exist yet and that all of them see.
        backend: None: nccl where there is a GPU, else gloo.
        timeout: How long a collective call waits for the others before it raises.
    """
    # One GPU per process: the scheduler narrows what each of them sees.
    os.environ.setdefault("LOCAL_RANK", "0")
    dist.init_process_group(
        backend or ("nccl" if torch.cuda.is_available() else "gloo"),
        init_method=rendezvous,
        rank=rank,
        world_size=size,
        timeout=timeout,
    )
    try:
        yield ProcessRanks()
    finally:
        dist.destroy_process_group()
