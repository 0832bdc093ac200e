"""Wall-clock of work that waits for other work and for room, for plans and for running grids."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Work:
    """One piece of work.

    Attributes:
        seconds: How long it takes, or takes yet where it has begun.
        demand: What it occupies meanwhile, by resource, e.g. ``{"CPU": 1}``.
        needs: Keys of what has to be done before.
        begun: It runs already, whatever it needed.
    """

    seconds: float
    demand: Mapping[str, float] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    begun: bool = False


def makespan(work: Mapping[str, Work], capacity: Mapping[str, float]) -> float:
    """Seconds until all is done, where everything begins as soon as it may and there is room.

    What asks for more than there is runs alone on what it asks for: a cluster may grow, and a
    machine refuses it elsewhere.

    Args:
        work: By key. What is needed and not among it counts as done.
        capacity: What there is, by resource; a resource that is not named is not counted.

    Returns:
        Seconds from now; 0 without any work.
    """
    waits = {
        key: set() if item.begun else {need for need in item.needs if need in work}
        for key, item in work.items()
    }
    dependants: dict[str, list[str]] = {}
    for key, needs in waits.items():
        for need in needs:
            dependants.setdefault(need, []).append(key)
    free = dict(capacity)
    # Work of equal demand stands in one line: where its first finds no room, none of it does.
    lines: dict[tuple[tuple[str, float], ...], deque[str]] = {}
    running: list[tuple[float, str]] = []

    def demand(key: str) -> tuple[tuple[str, float], ...]:
        return tuple(
            (name, min(amount, capacity[name]))
            for name, amount in sorted(work[key].demand.items())
            if amount and name in capacity
        )

    def start(key: str, now: float) -> None:
        for name, amount in demand(key):
            free[name] -= amount
        heapq.heappush(running, (now + work[key].seconds, key))

    for key, item in work.items():
        if item.begun:
            start(key, 0.0)
    for key, needs in waits.items():
        if not needs and not work[key].begun:
            lines.setdefault(demand(key), deque()).append(key)
    now = 0.0
    while running or any(lines.values()):
        for wanted, line in lines.items():
            while line and all(free[name] >= amount - 1e-9 for name, amount in wanted):
                start(line.popleft(), now)
        if not running:
            break  # it needs itself: the plan of a grid has no such work
        now, ended = heapq.heappop(running)
        for name, amount in demand(ended):
            free[name] += amount
        for key in dependants.get(ended, ()):
            waits[key].discard(ended)
            if not waits[key]:
                lines.setdefault(demand(key), deque()).append(key)
    return now
