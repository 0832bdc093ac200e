"""Stall reports: a fleet on which nothing starts says what it waits for, and only then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.parse import load_grid
from pipeline.plan.cells import cells_of
from pipeline.run.fleet.stall_monitor import StallMonitor
from pipeline.run.tasks import Task, tasks_of

GRID = Path(__file__).parents[3] / "cluster" / "tiny.yaml"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def task() -> Task:
    return next(
        iter(tasks_of(cells_of(load_grid(GRID, ["resources={cpus: 2, ranks: 2}"]))).values())
    )


def minutes(
    stall_monitor: StallMonitor, clock: Clock, n: int, running: bool, waiting: list[Task]
) -> None:
    for _ in range(n * 120):
        clock.now += 0.5
        stall_monitor.check(running, waiting)


def test_a_cluster_without_room_says_what_is_missing(
    task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    stall_monitor = StallMonitor(lambda: {}, clock)
    minutes(stall_monitor, clock, 3, running=False, waiting=[task])
    assert len(caplog.messages) == 3
    assert "for 180 s" in caplog.messages[-1]
    wants = f"{task.resources.demand()['CPU']:g} CPU"
    assert (
        task.label in caplog.messages[-1]
        and wants in caplog.messages[-1]
        and "have 0 CPU" in caplog.messages[-1]
    )


def test_slow_workers_are_told_from_missing_nodes(
    task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    minutes(StallMonitor(lambda: {"CPU": 64.0}, clock), clock, 1, running=False, waiting=[task])
    assert len(caplog.messages) == 1 and "slow to start" in caplog.messages[0]


def test_a_fleet_at_work_says_nothing(task: Task, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    stall_monitor = StallMonitor(lambda: {}, clock)
    minutes(stall_monitor, clock, 2, running=True, waiting=[task])
    minutes(stall_monitor, clock, 2, running=False, waiting=[])
    assert caplog.messages == []
    # The minute begins anew when work has stopped.
    clock.now += 59.0
    stall_monitor.check(False, [task])
    assert caplog.messages == []
    clock.now += 1.0
    stall_monitor.check(False, [task])
    assert len(caplog.messages) == 1


def test_demand_counts_every_rank(task: Task) -> None:
    resources = replace(task.resources, cpus=2, ranks=3, gpus=0.5, memory_gb=4.0)
    assert resources.demand() == {"CPU": 6, "GPU": 1.5, "memory": 12e9}
