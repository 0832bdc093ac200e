"""Cores that this process may use: a batch system or a container may give it fewer than all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_V2_FILE = "cpu.max"
_V1_FILES = ("cpu.cfs_quota_us", "cpu.cfs_period_us")


def usable_cores(root: Path = Path("/")) -> int:
    """How many cores the process may use, at least one.

    Those it is bound to (`taskset`, Slurm), and no more than the whole ones among the time that its
    control group has (Docker, Kubernetes).

    Args:
        root: Where the system's files lie.
    """
    # Linux tells it; elsewhere a process is bound to no cores.
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, int(min([float(bound or 1), *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """Cores' worth of time that the process's control group and those above it have."""
    for folder in _groups(root):
        for text in (_read(folder, _V2_FILE), _read(folder, *_V1_FILES)):
            match text.split():
                case [quota, period] if quota.isdigit() and int(period):
                    yield int(quota) / int(period)


def _groups(root: Path) -> Iterator[Path]:
    """Folders of the control groups that count CPU time, the process's own first."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root, "proc/self/cgroup").splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = mount / "cpu" if controllers else mount  # version 1 has a tree for each controller
        # In a container the path may be that of the host, of which only the top is seen.
        group = top / own.strip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _read(folder: Path, *names: str) -> str:
    """The text of files, "" where one cannot be read."""
    try:
        return " ".join((folder / name).read_text() for name in names)
    except OSError:
        return ""
