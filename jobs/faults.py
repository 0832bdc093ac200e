"""Disturb a small grid on a simulated cluster, round after round; exit 0 when nothing shows.

python -m jobs.faults --rounds 30 --seed 0
"""

from __future__ import annotations

from pathlib import Path

import typer

from pipeline.run.logs import configure_logging
from tests.chaos.command import run
from tests.chaos.schedule import KINDS, PHASES, schedule

GRID = Path(__file__).parent / "grids" / "faults.yaml"


def main(rounds: int = 30, seed: int = 0, kinds: str = ",".join(KINDS),
         phases: str = ",".join(PHASES), json: Path | None = None,
         folder: Path | None = None) -> None:  # fmt: skip
    """Play rounds with the given faults and phases (separated by commas)."""
    configure_logging()
    faults = schedule(rounds, seed, kinds.split(","), phases.split(","))
    raise typer.Exit(0 if run(GRID, faults, json, folder) else 1)


if __name__ == "__main__":
    typer.run(main)
