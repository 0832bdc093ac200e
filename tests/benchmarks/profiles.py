"""Profile of a piece of work, operation by operation."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.clock import Work


def top_operations(work: Work, device: torch.device, n: int = 15) -> list[dict[str, Any]]:
    """The operations with the most time of their own, and what no operation accounts for.

    Args:
        work: The work.
        device: Where it runs: on a GPU, an operation's time is that of the kernels it launches.
        n: Operations to name.

    Returns:
        Rows of operation, calls, seconds and share of the run's wall time; the last row is the
        time outside operations (Python, and on a GPU idle gaps; launches overlap there).
    """
    activities = [ProfilerActivity.CPU]
    on_gpu = device.type == "cuda"
    if on_gpu:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as recorded:
        start = time.perf_counter()
        work()
        if on_gpu:
            torch.cuda.synchronize(device)
        total = time.perf_counter() - start
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    # Kernels have rows of their own beside those of the operations that launch them.
    operations = [e for e in recorded.key_averages() if e.device_type == DeviceType.CPU]
    times = [(e.key, e.count, getattr(e, attribute) * 1e-6) for e in operations]
    times.sort(key=lambda row: -row[2])
    inside = sum(row[2] for row in times)
    rows = [_row(*row, total) for row in times[:n]]
    rest = times[n:]
    rows.append(
        _row("(all other operations)", sum(r[1] for r in rest), sum(r[2] for r in rest), total)
    )
    rows.append(_row("(outside operations)", 1, max(0.0, total - inside), total))
    return rows


def _row(operation: str, calls: int, seconds: float, total: float) -> dict[str, Any]:
    return {
        "operation": operation,
        "calls": calls,
        "seconds": seconds,
        "share": seconds / total,
    }
