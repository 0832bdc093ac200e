"""Description of the machine of a measurement, and peak memory of a step."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch
import transformers

_STATUS = Path("/proc/self/status")
_RESET_PEAK = Path("/proc/self/clear_refs")
_M_MMAP_THRESHOLD = -3  # malloc.h


def describe(device: torch.device) -> dict[str, Any]:
    """Machine, versions and thread count, to stand beside every figure."""
    facts: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor()


def reset_peak_memory(device: torch.device) -> None:
    """Begin a new peak, what is free being given back first."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.init()  # the statistics of a device that is named by its number need it
        torch.cuda.reset_peak_memory_stats(device)
        return
    ctypes.CDLL(None).malloc_trim(0)
    _RESET_PEAK.write_text("5")


def return_freed_memory() -> None:
    """Have the C library hand large blocks back as soon as they are freed, from here on.

    glibc raises the size from which it does so with use; below, a process keeps what once was
    freed, in pieces, and its resident set tells the history of its allocations more than their sum.
    Does what MALLOC_MMAP_THRESHOLD_=262144 in the environment does.
    """
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 256 << 10)


def memory(device: torch.device) -> tuple[int, int]:
    """(now, peak since the last reset) in bytes: GPU allocations, or the process's resident set.

    Raises:
        OSError: There is no /proc to ask for the resident set (not Linux).
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    status = _STATUS.read_text()
    now, peak = (
        int(re.search(rf"{key}:\s*(\d+) kB", status)[1]) << 10  # type: ignore[index]
        for key in ("VmRSS", "VmHWM")
    )
    return now, peak
