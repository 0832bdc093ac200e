"""Device of a cell's model, as the scheduler gave it, and peak memory on it."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.config.resources import ResourcesEntry
from rledit.errors import UserError
from rledit.lazy_torch import torch


class NoGpuError(UserError, RuntimeError):
    """A cell was given a GPU that PyTorch cannot use."""


def device_of(resources: ResourcesEntry) -> torch.device:
    """The GPU that the scheduler has made visible to this process, or the CPU.

    A cell that was given none leaves the GPUs of its node to those that were.

    Raises:
        NoGpuError: PyTorch sees no GPU although the cell was given one.
    """
    if resources.gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise NoGpuError(
            f"the cell was given {resources.gpus:g} GPU per rank, and PyTorch {torch.__version__} "
            "sees none on this node; install a build of PyTorch for its driver, or set "
            "resources.gpus to 0"
        )
    return torch.device("cuda")


def hide_gpus() -> None:
    """Let this process see no GPU; only before it has asked for one, and for its whole life."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


_STATUS = Path("/proc/self/status")


_CLEAR = Path("/proc/self/clear_refs")


_RESET_PEAK = "5"


class PeakMemory:
    """Measures the peak from its making on.

    A worker process runs many cells, so the kernel's high-water mark is reset where it allows it.

    Args:
        device: Where the work is done; None: on the CPU.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._cuda = device is not None and device.type == "cuda"
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        elif _CLEAR.exists():
            try:
                _CLEAR.write_text(_RESET_PEAK)
            except OSError:
                # Not permitted in some containers: the mark then covers the process's whole life.
                return

    def gigabytes(self) -> float | None:
        """Peak in GB (1e9 bytes), or None where it cannot be read."""
        if self._cuda:
            return torch.cuda.max_memory_allocated() / 1e9
        if not _STATUS.exists():
            return None
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
        return None
