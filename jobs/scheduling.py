"""Measure how much of a cluster's time cells get: cells that sleep, on a simulated cluster.

python -m jobs.scheduling --cells 64 --seconds 10 --slots 8
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import typer

from pipeline.run.logs import configure_logging
from tests.benchmarks.scheduling.measure import measure, planning_seconds


def main(
    cells: int = 64, seconds: float = 10.0, slots: int = 8, nodes: int = 2, planned: int = 500
) -> None:
    """Print efficiency, overhead per cell and the time to plan a large grid."""
    configure_logging()
    with tempfile.TemporaryDirectory(prefix="rledit-scheduling-") as folder:
        for line in measure(cells, seconds, nodes, slots, Path(folder)).lines():
            typer.echo(line)
        typer.echo(f"planning {planned} cells: {planning_seconds(planned, Path(folder)):.2f} s")


if __name__ == "__main__":
    typer.run(main)
