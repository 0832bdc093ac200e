"""CPU seconds that commands take before any work: what they import, and a plan as a command."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from pathlib import Path

import yaml

REPEATED = 3
_IMPORTS = {
    "import_plan_cpu_seconds": "pipeline.plan.grid_plan",
    # With what it imports once it opens a model.
    "import_worker_cpu_seconds": "pipeline.run.cell, torch, transformers",
    "import_driver_cpu_seconds": "pipeline.run.driver",
}


def start_up(n_cells: int, folder: Path) -> dict[str, float]:
    """Median CPU seconds (user and system) of processes by what they do.

    Args:
        n_cells: Cells of the grid that is planned as a command; a multiple of two.
        folder: Where the grid and its results lie.
    """
    grid = folder / "start-up.yaml"
    grid.write_text(yaml.safe_dump(_grid(n_cells)))
    found = {
        "help_cpu_seconds": _command(["--help"]),
        f"plan_{n_cells}_cells_command_cpu_seconds": _command(
            ["plan", str(grid), "--no-cells", "--results", str(folder / "start-up")]
        ),
    }
    return found | {name: _cpu(["-c", f"import {what}"]) for name, what in _IMPORTS.items()}


def _grid(n_cells: int) -> dict[str, object]:
    return {
        "name": "start-up",
        "models": [{"name": "tiny", "world_model": "tiny"}],
        "datasets": [{"name": "world", "world": {"n_subjects": 60}}],
        "editors": [{"editor": "none"}, {"editor": "ultraedit", "settings": {"step": 1e-3}}],
        "streams": [{"n_batches": 3, "batch_size": 4}],
        "seeds": list(range(n_cells // 2)),
    }


def _command(arguments: list[str]) -> float:
    return _cpu(["-m", "pipeline.cli", *arguments])


def _cpu(arguments: list[str]) -> float:
    """Median CPU seconds of a Python process and the children it waits for."""
    taken = []
    for _ in range(REPEATED):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
        # A plan ends with 1 where something is still to be run.
        if done.returncode not in (0, 1) or "Traceback" in done.stderr:
            raise RuntimeError(f"{arguments} ended with {done.returncode}: {done.stderr}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(taken)
