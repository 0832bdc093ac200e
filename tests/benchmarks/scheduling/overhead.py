"""Overhead of the pipeline: start-up, planning a grid, one cell beside its editor's own time."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from pipeline.config.grid import DatasetEntry, EditorEntry, Grid, ModelEntry, StreamEntry
from pipeline.plan.cells import Cell, cells_of
from pipeline.results.lake.lake import Lake
from pipeline.run.fleet.fleet import local_fleet, run_tasks
from pipeline.run.tasks import tasks_of
from pipeline.storage.run_paths import RunPaths
from tests.benchmarks.scheduling.measure import planning_seconds
from tests.benchmarks.scheduling.start_up import start_up

PLANNED = 500


def overhead(n_cells: int) -> dict[str, float]:
    """Seconds by what they are of.

    Args:
        n_cells: Cells that are run, on one warm worker.
    """
    with tempfile.TemporaryDirectory(prefix="rledit-overhead-") as folder:
        planning_seconds(1, Path(folder))  # imports, and the world
        planned = planning_seconds(PLANNED, Path(folder))
        return {
            f"plan_{PLANNED}_cells_seconds": planned,
            **start_up(PLANNED, Path(folder)),
            **_cell_seconds(n_cells, Path(folder)),
        }


def _trivial(n_cells: int) -> Grid:
    """A grid of short streams that edit nothing."""
    return Grid(
        name="overhead",
        models=(ModelEntry(name="tiny", world_model="tiny"),),
        datasets=(DatasetEntry(name="world", world={"n_subjects": 60}),),
        editors=(EditorEntry(editor="none"),),
        streams=(StreamEntry(n_batches=3, batch_size=4),),
        seeds=tuple(range(n_cells)),
    )


def _cell_seconds(n_cells: int, folder: Path) -> dict[str, float]:
    """Mean seconds per cell: in all, and without editing and scoring."""
    run_paths = RunPaths.under(folder / "results")
    with local_fleet(1):
        first, *rest = cells_of(_trivial(n_cells + 1))
        _run([first], run_paths)
        began = time.perf_counter()
        _run(rest, run_paths)
        mean = (time.perf_counter() - began) / len(rest)
    records = Lake(run_paths.lake).manifest()
    own = [r.values["edit_seconds"] + r.values["score_seconds"] for r in records]
    return {"cell_seconds": mean, "overhead_seconds": mean - sum(own) / len(own)}


def _run(cells: list[Cell], run_paths: RunPaths) -> None:
    for finished in run_tasks(tasks_of(cells), run_paths, lambda _: None):
        if finished.reason is not None:
            raise RuntimeError(f"{finished.task.label}: {finished.reason}")
