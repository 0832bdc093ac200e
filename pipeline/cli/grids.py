"""Commands that take a grid: plan and run."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from pipeline.cli.options import (
    DEFAULT_RESULTS,
    GridFile,
    LakeUri,
    Replace,
    Results,
    Sets,
    TrackingUri,
)
from pipeline.cli.output import print_table, write_report_files
from pipeline.locations import Locations


def plan(
    grid: GridFile,
    set_: Sets = [],  # noqa: B006
    results: Results = DEFAULT_RESULTS,
    lake: LakeUri = None,
    replace: Replace = False,
) -> None:
    """Show the cells of a grid, and which of them are done. Runs nothing."""
    from pipeline.config import load_grid
    from pipeline.plan import make_plan, pool_lines
    from pipeline.results.lake import Lake

    parsed = load_grid(grid, set_)
    places = Locations.under(results, lake)
    found = make_plan(parsed, Lake(places.lake), replace)
    for cell in found.cells:
        state = "done" if cell.key in found.done else "missing"
        reason = found.failed.get(cell.key)
        typer.echo(f"{state:8}{cell.key}  {cell.path}" + (f"  ({reason})" if reason else ""))
    for line in pool_lines(found.cells):
        typer.echo(line)
    typer.echo(f"{len(found.cells)} cells, {len(found.missing)} to run; lake {places.lake}")


def run(
    grid: GridFile,
    set_: Sets = [],  # noqa: B006
    results: Results = DEFAULT_RESULTS,
    lake: LakeUri = None,
    tracking: TrackingUri = None,
    workers: Annotated[int | None, typer.Option(help="Cores to use (default: all).", min=1)] = None,
    replace: Replace = False,
) -> None:
    """Run what is missing of a grid on this machine, then print its table and write its report.

    A run that was interrupted goes on from where it stopped: give the same command again.
    """
    from pipeline.config import load_grid
    from pipeline.plan import make_plan, pool_lines
    from pipeline.results.lake import Lake
    from pipeline.run.driver import run_plan

    parsed = load_grid(grid, set_)
    places = Locations.under(results, lake, tracking)
    found = make_plan(parsed, Lake(places.lake), replace)
    console = Console(stderr=True)
    for line in pool_lines(found.cells):
        console.print(line, highlight=False)
    console.print(f"{len(found.cells)} cells, {len(found.missing)} to run", highlight=False)
    if found.missing:
        from pipeline.preflight import preflight

        preflight(found.missing)
    failed = run_plan(parsed, found, places, console, workers)
    print_table(places.lake, parsed.name, "md", tuple(c.editor_name for c in found.cells))
    report_path = write_report_files(places.lake, parsed.name, results / f"{parsed.name}.html")
    console.print(f"report: {report_path}\nlake:   {places.lake}", highlight=False)
    if failed:
        raise typer.Exit(1)
