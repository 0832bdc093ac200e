"""What the pipeline itself costs: planning a grid, and a cell beside its editor's own time.

python -m jobs.overhead [--cells 12] [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from pipeline.cells import Cell, cells_of
from pipeline.config import DatasetEntry, EditorEntry, Grid, ModelEntry, StreamEntry
from pipeline.locations import Locations
from pipeline.plan import make_plan
from pipeline.results.lake import Lake
from pipeline.run.fleet import local_fleet, run_tasks
from pipeline.run.tasks import tasks_of

PLANNED = 500


def trivial(n_cells: int) -> Grid:
    """A grid of short streams that edit nothing."""
    return Grid(
        name="overhead",
        models=(ModelEntry(name="tiny", world_model="tiny"),),
        datasets=(DatasetEntry(name="world", world={"n_subjects": 60}),),
        editors=(EditorEntry(editor="none"),),
        streams=(StreamEntry(n_batches=3, batch_size=4),),
        seeds=tuple(range(n_cells)),
    )


def planning_seconds(n_cells: int) -> float:
    """Time to plan a grid whose cells are all missing, in a process that has planned before."""
    with tempfile.TemporaryDirectory() as folder:
        make_plan(trivial(1), Lake(folder))
        began = time.perf_counter()
        make_plan(trivial(n_cells), Lake(folder))
        return time.perf_counter() - began


def cell_seconds(n_cells: int) -> dict[str, float]:
    """Mean seconds per cell on one warm worker: in all, and without editing and scoring."""
    with tempfile.TemporaryDirectory() as folder, local_fleet(1):
        places = Locations.under(Path(folder))
        first, *rest = cells_of(trivial(n_cells + 1))
        _run([first], places)
        began = time.perf_counter()
        _run(rest, places)
        mean = (time.perf_counter() - began) / len(rest)
        records = Lake(places.lake).manifest()
        own = [r.values["edit_seconds"] + r.values["score_seconds"] for r in records]
    return {"cell_seconds": mean, "overhead_seconds": mean - sum(own) / len(own)}


def _run(cells: list[Cell], places: Locations) -> None:
    for finished in run_tasks(tasks_of(cells), places, lambda _: None):
        if finished.reason is not None:
            raise RuntimeError(f"{finished.task.label}: {finished.reason}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=12, help="cells that are run")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    arguments = parser.parse_args()
    found = {f"plan_{PLANNED}_cells_seconds": planning_seconds(PLANNED)}
    found |= cell_seconds(arguments.cells)
    for name, value in found.items():
        print(f"{name:28} {value:8.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
