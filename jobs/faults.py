"""Disturb a small grid on a simulated cluster, round after round; exit 0 when nothing shows.

python -m jobs.faults --rounds 30 --seed 0
"""

from __future__ import annotations

from pathlib import Path

import typer

from pipeline.faults.command import run
from pipeline.faults.schedule import KINDS, PHASES, schedule
from pipeline.logs import configure_logging

GRID = Path(__file__).parent / "grids" / "faults.yaml"


def main(rounds: int = 30, seed: int = 0, kinds: str = ",".join(KINDS),
         phases: str = ",".join(PHASES), json: Path | None = None,
         folder: Path | None = None) -> None:  # fmt: skip
    """Play rounds with the given faults and phases (separated by commas)."""
    configure_logging()
    aims = schedule(rounds, seed, kinds.split(","), phases.split(","))
    raise typer.Exit(0 if run(GRID, aims, json, folder) else 1)


if __name__ == "__main__":
    typer.run(main)
