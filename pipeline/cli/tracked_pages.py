"""The command that shows tracked runs in a browser."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.options import DEFAULT_RESULTS, Results, TrackingUri
from pipeline.storage.run_paths import RunPaths


def mlflow(
    grid: Annotated[str | None, typer.Argument(help="Name of a grid (default: all).")] = None,
    results: Results = DEFAULT_RESULTS,
    tracking: TrackingUri = None,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of this machine for the pages.")
    ] = 5000,
) -> None:
    """Show the runs of grids in MLflow's pages: prints their addresses and serves them.

    Where the tracking store is an MLflow server, only the addresses are printed.
    """
    from pipeline.results.tracking.experiment import bring_home, tracked
    from pipeline.results.tracking.pages_server import (
        HOST,
        become_server,
        check_port,
        chosen,
        page_lines,
    )
    from pipeline.results.tracking.uri import is_server

    uri = RunPaths.under(results, tracking=tracking).tracking
    found = chosen(uri, tracked(uri), grid)
    served = not is_server(uri)
    if served:
        check_port(port)
        bring_home(uri)
    for line in page_lines(f"http://{HOST}:{port}" if served else uri, found):
        typer.echo(line)
    if served:
        typer.echo("MLflow takes a few seconds to start; Ctrl-C ends it.")
        become_server(uri, port)
