"""Measure the pipeline's own cost: start-up, planning, and one cell beside its editor's time.

python -m jobs.overhead --cells 12 --json overhead.json
"""

from __future__ import annotations

from json import dumps
from pathlib import Path

import typer

from tests.benchmarks.scheduling.overhead import overhead


def main(cells: int = 12, json: Path | None = None) -> None:
    """Measure with so many cells, print, and write the figures to a file, too."""
    found = overhead(cells)
    for name, value in found.items():
        typer.echo(f"{name:36} {value:8.3f}")
    if json is not None:
        json.write_text(dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
