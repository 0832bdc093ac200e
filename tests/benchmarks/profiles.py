"""Profile of a piece of work, operation by operation."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.clock import Work


def top_operations(work: Work, n: int = 15) -> list[dict[str, Any]]:
    """The operations with the most time of their own, and what no operation accounts for.

    Returns:
        Rows of operation, calls, seconds and share of the run's wall time; the last row is the
        time outside operations (Python, and on a GPU idle gaps; launches overlap there).
    """
    activities = [ProfilerActivity.CPU]
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as recorded:
        start = time.perf_counter()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        total = time.perf_counter() - start
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    times = [(e.key, e.count, getattr(e, attribute) * 1e-6) for e in recorded.key_averages()]
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
