"""Commands about second moments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import DEFAULT_RESULTS, GridFile, Results, Scale, Sets
from pipeline.locations import Locations

Folder = Annotated[Path, typer.Argument(help="Folder of shared .safetensors files.")]


def statistics_export(
    grid: GridFile,
    folder: Folder,
    set_: Sets = [],  # noqa: B006
    results: Results = DEFAULT_RESULTS,
    scale: Scale = None,
) -> None:
    """Write the second moments that a grid's runs have computed, for other users to import."""
    from pipeline.cells import cells_of
    from pipeline.config import load_grid
    from pipeline.run.cache import Cache
    from pipeline.run.shared_statistics import export_statistics

    cells = cells_of(load_grid(grid, set_, scale))
    for path in export_statistics(cells, Cache(Locations.under(results).cache), folder):
        typer.echo(path)


def statistics_import(
    grid: GridFile,
    folder: Folder,
    set_: Sets = [],  # noqa: B006
    results: Results = DEFAULT_RESULTS,
    scale: Scale = None,
) -> None:
    """Take second moments that another user has exported; those of another model are refused."""
    from pipeline.cells import cells_of
    from pipeline.config import load_grid
    from pipeline.run.cache import Cache
    from pipeline.run.shared_statistics import import_statistics

    cells = cells_of(load_grid(grid, set_, scale))
    taken = import_statistics(cells, Cache(Locations.under(results).cache), folder)
    for module in taken:
        typer.echo(module)
    typer.echo(f"{len(taken)} second moments taken")
