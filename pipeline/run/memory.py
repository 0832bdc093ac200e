"""Peak memory of a piece of work: of the GPU where it is done on one, else of this process."""

from __future__ import annotations

from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
CPU = torch.device("cpu")


class PeakMemory:
    """Measures the peak from its making on.

    A worker process runs many cells, so the kernel's high-water mark is reset where it allows it.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device = CPU) -> None:
        self._cuda = device.type == "cuda"
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
