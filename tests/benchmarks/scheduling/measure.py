"""Run sleeping cells on a simulated cluster and see where its slots' time went."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.config.grid import Grid
from pipeline.config.parse import parse_grid
from pipeline.config.yaml_location import Located
from pipeline.plan.cell_keys import address_of
from pipeline.plan.grid_plan import make_plan
from pipeline.results.lake.lake import Lake
from pipeline.results.tracking.tracker import Tracker
from pipeline.run.fleet.fleet import remote_fleet, run_tasks
from pipeline.run.fleet.progress import Progress
from pipeline.run.tasks import tasks_of
from pipeline.storage.run_paths import RunPaths
from tests.chaos.cluster import SimulatedCluster

logger = logging.getLogger(__name__)

EDITOR = "tests.benchmarks.scheduling.sleeper:SleepEditor"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Where the time went.

    Attributes:
        cells: Number of cells.
        slots: Cells that could run at the same time: one per worker that took part.
        seconds: What a cell sleeps.
        prepare_seconds: Cluster and driver ready until the shared model was made.
        start_seconds: From then until a slot's first cell began, on average: its worker's start.
        busy_seconds: From a slot's first cell until the last cell's rows were in lake and
            tracking store, on average over the slots.
    """

    cells: int
    slots: int
    seconds: float
    prepare_seconds: float
    start_seconds: float
    busy_seconds: float

    @property
    def efficiency(self) -> float:
        """Sleep per second of a slot, of which there cannot be more than one."""
        return self.cells * self.seconds / (self.slots * self.busy_seconds)

    @property
    def overhead_seconds(self) -> float:
        """What a cell costs a slot beyond its sleep."""
        return self.slots * self.busy_seconds / self.cells - self.seconds

    def lines(self) -> Iterator[str]:
        """For people."""
        ideal = self.cells * self.seconds / self.slots
        yield (
            f"{self.cells} cells of {self.seconds:g} s on {self.slots} slots: ideal {ideal:.1f} s, "
            f"actual {self.busy_seconds:.1f} s, efficiency {100 * self.efficiency:.1f} %"
        )
        yield f"overhead per cell: {self.overhead_seconds:.2f} s"
        yield (
            f"apart from that: worker start {self.start_seconds:.1f} s "
            f"({self.slots} workers for {self.cells} cells), shared model "
            f"{self.prepare_seconds:.1f} s"
        )


def sleeping_grid(cells: int, seconds: float) -> Grid:
    """Cells that differ by their seed and sleep once."""
    data = {
        "name": "sleep",
        "models": [{"name": "llama-tiny", "world_model": "tiny"}],
        "datasets": [{"name": "world", "world": {"n_subjects": 60}}],
        "editors": [{"editor": EDITOR, "settings": {"seconds": seconds}}],
        "streams": [{"n_batches": 1, "batch_size": 1}],
        "seeds": list(range(cells)),
    }
    return parse_grid(Located.of_data(data, "sleeping grid"))


def measure(cells: int, seconds: float, nodes: int, slots: int, folder: Path) -> Measured:
    """Run sleeping cells through the real path: fleet, stages, lake and tracking store.

    Args:
        cells: How many.
        seconds: What each sleeps.
        nodes: Nodes of the simulated cluster, each with the same share of the slots.
        slots: Cells at the same time.
        folder: An empty folder.
    """
    if slots % nodes:
        raise ValueError(f"{slots} slots cannot be shared equally by {nodes} nodes")
    run_paths = RunPaths.under(folder / "results")
    grid = sleeping_grid(cells, seconds)
    lake, tracker = Lake(run_paths.lake), Tracker(run_paths.tracking, grid.name)
    parent = tracker.start("scheduling")
    tasks = tasks_of(make_plan(grid, lake).missing)
    ready: dict[int, float] = {}  # when the first cell of each worker began

    def look(running: Mapping[str, Progress]) -> None:
        for key, progress in running.items():
            if tasks[key].kind == "edit":
                ready[progress.pid] = min(progress.started, ready.get(progress.pid, math.inf))

    environment = {"OMP_NUM_THREADS": "1"}
    with (
        SimulatedCluster(folder / "nodes", nodes, environment, slots // nodes) as cluster,
        remote_fleet(cluster.address) as cores,
    ):
        assert cores == slots, f"{cores} of {slots} slots are there"
        began = prepared = time.time()
        for finished in run_tasks(tasks, run_paths, look):
            if finished.reason is not None:
                raise RuntimeError(f"{finished.task.label}: {finished.reason}")
            if finished.task.kind == "prepare":
                prepared = time.time()
            else:
                record = lake.record(address_of(finished.task.cell))
                assert record is not None, f"{finished.task.label} left no record"
                tracker.log_cell(parent, lake.result(record))
            logger.info("%s: done", finished.task.label)
        ended = time.time()
    tracker.finish(parent)
    mean = sum(ready.values()) / len(ready)
    return Measured(
        cells=cells,
        slots=len(ready),
        seconds=seconds,
        prepare_seconds=prepared - began,
        start_seconds=mean - prepared,
        busy_seconds=ended - mean,
    )


def planning_seconds(cells: int, folder: Path) -> float:
    """What it takes to plan a trivial grid into a lake that has none of it."""
    began = time.perf_counter()
    grid = sleeping_grid(cells, 0.0)
    plan = make_plan(grid, Lake(str(folder / "planned")))
    tasks_of(plan.missing)
    return time.perf_counter() - began
