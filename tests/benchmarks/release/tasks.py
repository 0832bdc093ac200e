"""Runs the tasks of a grid one after another in this process: the pipeline's work without a Ray.

python -m tests.benchmarks.release.tasks GRID RESULTS CACHE
"""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.config.parse import load_grid
from pipeline.plan.grid_plan import make_plan
from pipeline.results.lake.lake import Lake
from pipeline.run.reporting import silent
from pipeline.run.tasks import perform, tasks_of
from pipeline.storage.run_paths import RunPaths


def main(grid: Path, results: Path, cache: str) -> None:
    """Plan the grid and do what is missing: stages, cache and lake, neither scheduler nor tracker.

    Args:
        grid: The grid's file.
        results: Where the lake lies.
        cache: Where prefixes, networks and unedited answers lie.
    """
    paths = RunPaths.under(results, None, None, cache)
    plan = make_plan(load_grid(grid, [], None, None), Lake(paths.lake))
    for task in tasks_of(plan.missing).values():
        perform(task, paths, silent)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
