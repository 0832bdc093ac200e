"""Commands about key covariance."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import DEFAULT_RESULTS, CacheUri, GridFile, Results, Scale, Sets
from pipeline.storage.run_paths import RunPaths

Folder = Annotated[Path, typer.Argument(help="Folder of shared .safetensors files.")]


def covariance_export(
    grid: GridFile,
    folder: Folder,
    set_: Sets = [],  # noqa: B006
    results: Results = DEFAULT_RESULTS,
    scale: Scale = None,
    cache: CacheUri = None,
) -> None:
    """Write the key covariance that a grid's runs have computed, for other users to import."""
    from pipeline.config.parse import load_grid
    from pipeline.plan.cells import cells_of
    from pipeline.run.cache import Cache
    from pipeline.run.shared_covariance import export_covariance

    place = Cache(RunPaths.under(results, cache=cache).cache)
    cells = cells_of(load_grid(grid, set_, scale))
    for path in export_covariance(cells, place, folder):
        typer.echo(path)


def covariance_import(
    grid: GridFile,
    folder: Folder,
    set_: Sets = [],  # noqa: B006
    results: Results = DEFAULT_RESULTS,
    scale: Scale = None,
    cache: CacheUri = None,
) -> None:
    """Take key covariance that another user has exported; those of another model are refused."""
    from pipeline.config.parse import load_grid
    from pipeline.plan.cells import cells_of
    from pipeline.run.cache import Cache
    from pipeline.run.shared_covariance import import_covariance

    place = Cache(RunPaths.under(results, cache=cache).cache)
    cells = cells_of(load_grid(grid, set_, scale))
    taken = import_covariance(cells, place, folder)
    for module in taken:
        typer.echo(module)
    typer.echo(f"{len(taken)} key covariance taken")
