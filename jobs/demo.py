"""Run the demo: a real model on real facts, or the synthetic world where the model cannot be had.

python -m jobs.demo [--full] [--results FOLDER]
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import grids
from pipeline.cli.errors import errors_as_help
from pipeline.cli.options import DEFAULT_RESULTS
from pipeline.config.gguf_refs import gguf_reference
from pipeline.config.grid import Grid
from pipeline.config.parse import load_grid
from pipeline.inputs.checkpoint_files import CheckpointUnavailable
from pipeline.inputs.gguf_checkpoints import described
from pipeline.run.logs import configure_logging

FOLDER = Path(__file__).parent / "grids"


def main(
    context: typer.Context,
    full: Annotated[bool, typer.Option("--full", help="Three seeds instead of one.")] = False,
    results: Annotated[Path, typer.Option(help="Folder of all results.")] = DEFAULT_RESULTS,
) -> None:
    """Run the demo's grid, or go on with it."""
    grids.run(context, grid=chosen_grid(full), results=results)


def chosen_grid(full: bool = False) -> Path:
    """The demo's grid; that of the synthetic world, and a line that says why, where the weights of
    the demo's model are neither here nor can be fetched.

    Raises:
        CheckpointError: They can be fetched, and are not what they should be.
    """
    suffix = "-full" if full else ""
    real = FOLDER / f"demo{suffix}.yaml"
    try:
        have_weights(load_grid(real))
    except CheckpointUnavailable as error:
        typer.echo(
            f"the demo's model cannot be had, so the demo of the synthetic world is run (make "
            f"demo-world{suffix}): {error}",
            err=True,
        )
        return FOLDER / f"demo-world{suffix}.yaml"
    return real


def have_weights(grid: Grid) -> None:
    """Fetch the weights of a grid's models that come as GGUF files, unless they are here.

    Raises:
        CheckpointUnavailable: They cannot be had from here; says why.
        CheckpointError: What is handed out is another file or a broken one, or the disk is full.
    """
    for model in grid.models:
        reference = None if model.checkpoint is None else gguf_reference(model.checkpoint)
        if reference is not None:
            described(reference)


if __name__ == "__main__":
    configure_logging()
    with errors_as_help():
        typer.run(main)
