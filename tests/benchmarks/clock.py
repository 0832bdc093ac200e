"""Timing contenders against each other: interleaved repeats, one clock, medians."""

from __future__ import annotations

import gc
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch

logger = logging.getLogger(__name__)

ClockKind = Literal["wall", "cpu"]
Work = Callable[[], object]
Contestant = Callable[[int], Work]
"""Prepares repeat i, untimed, and returns the work to time."""


class Clock:
    """Times work on one device.

    Args:
        device: Where the work runs; a GPU is synchronised around it.
        kind: `wall`, or `cpu` for the processor time of all threads: on a shared machine it
            disturbs less, but counts threads that spin while waiting, so it wants one thread.
    """

    def __init__(self, device: torch.device, kind: ClockKind = "wall") -> None:
        self.kind = kind
        self.device = device
        self._now = time.perf_counter if kind == "wall" else time.process_time

    def __call__(self, work: Work) -> float:
        """Seconds that the work takes."""
        self._synchronise()
        start = self._now()
        work()
        self._synchronise()
        return self._now() - start

    def _synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def interleave(
    contestants: Mapping[str, Contestant], repeats: int, clock: Clock, warm_up: int = 1
) -> dict[str, list[float]]:
    """Time all contestants once per repeat, side by side, so that drift meets all alike.

    Each time is logged at once: what was measured is known though the rest is never reached.

    Args:
        contestants: Name → contestant; repeat i gets the same i for each.
        repeats: Timed repeats.
        clock: Times the work.
        warm_up: Untimed repeats before (i counts on through both).

    Returns:
        Name → seconds of each timed repeat.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    gc.collect()
    for i in range(warm_up + repeats):
        for name in order[i % len(order) :] + order[: i % len(order)]:
            work = contestants[name](i)
            elapsed = clock(work)
            which = f"repeat {i - warm_up + 1} of {repeats}" if i >= warm_up else "warm-up"
            logger.info("%s, %s: %.4g s", name, which, elapsed)
            if i >= warm_up:
                seconds[name].append(elapsed)
    return seconds


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Median over the repeats of above / below."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def median_seconds(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Median seconds of each contestant."""
    return {name: statistics.median(values) for name, values in seconds.items()}
