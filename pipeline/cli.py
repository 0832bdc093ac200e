"""The console script ``rledit``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from pipeline.locations import Locations
from pipeline.logs import configure_logging

app = typer.Typer(
    help="Benchmark lifelong model editing: plan and run grids, read their results.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Look at files of edits before anything runs.", no_args_is_help=True)
app.add_typer(data_app, name="data")

GridFile = Annotated[Path, typer.Argument(help="The grid, e.g. jobs/grids/demo.yaml.")]
Sets = Annotated[
    list[str],
    typer.Option(
        "--set",
        help="Change a setting: key.path=value; entries of a list go by name, as in "
        "editors.rledit.settings.rank=64. May be repeated.",
    ),
]
Results = Annotated[
    Path,
    typer.Option(
        envvar="RLEDIT_RESULTS",
        help="Folder of the default lake, the tracking database and the cache.",
    ),
]
LakeUri = Annotated[str | None, typer.Option("--lake", help="URI of the lake of results.")]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking",
        help="MLflow tracking URI (default: MLFLOW_TRACKING_URI, else a "
        "database in the results folder).",
    ),
]
Replace = Annotated[
    bool, typer.Option("--replace", help="Drop finished cells whose settings have changed.")
]
GridName = Annotated[str, typer.Argument(help="Name of the grid, e.g. demo.")]
DEFAULT_RESULTS = Path("results")


@app.command()
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


@app.command()
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
    _print_table(places.lake, parsed.name, "md", tuple(e.editor for e in parsed.editors))
    report_path = _write_report(places.lake, parsed.name, results / f"{parsed.name}.html")
    console.print(f"report: {report_path}\nlake:   {places.lake}", highlight=False)
    if failed:
        raise typer.Exit(1)


@app.command()
def table(
    name: GridName,
    results: Results = DEFAULT_RESULTS,
    lake: LakeUri = None,
    format_: Annotated[str, typer.Option("--format", help="md, latex, html or csv.")] = "md",
) -> None:
    """Print the table of a grid."""
    _print_table(Locations.under(results, lake).lake, name, format_, None)


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="SQL over the views runs, edits, curves, cells.")],
    results: Results = DEFAULT_RESULTS,
    lake: LakeUri = None,
    format_: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
) -> None:
    """Ask the lake in SQL."""
    from pipeline.results import query as queries

    answer = queries.query(sql, Locations.under(results, lake).lake)
    typer.echo(queries.render(answer, format_))


@app.command()
def diff(
    lake_a: Annotated[str, typer.Argument(help="A lake.")],
    lake_b: Annotated[str, typer.Argument(help="Another lake.")],
) -> None:
    """Compare two lakes; exit 0 when they hold the same results, times aside."""
    from pipeline.results.diff import diff_lakes

    found = diff_lakes(lake_a, lake_b)
    typer.echo(f"rule: {found.rule}")
    for line in found.lines:
        typer.echo(line)
    typer.echo("equal" if found.equal else "different")
    if not found.equal:
        raise typer.Exit(1)


@app.command()
def report(
    name: GridName,
    results: Results = DEFAULT_RESULTS,
    lake: LakeUri = None,
    out: Annotated[Path | None, typer.Option(help="The HTML file to write.")] = None,
) -> None:
    """Write the self-contained HTML report of a grid, and its figures as SVG files beside it."""
    path = out or results / f"{name}.html"
    typer.echo(_write_report(Locations.under(results, lake).lake, name, path))


@data_app.command("check")
def data_check(
    paths: Annotated[list[Path], typer.Argument(help="Files or folders of edits.")],
    strict: Annotated[
        bool, typer.Option("--strict", help="Make every trap an error, not only broken rows.")
    ] = False,
) -> None:
    """Map files to their schema, count rows, duplicates, contradictions and other traps.

    Exit 1 when a row cannot be mapped.
    """
    from rledit.datasets import check_paths

    lines, code = check_paths(paths, strict)
    for line in lines:
        typer.echo(line)
    raise typer.Exit(code)


def _print_table(lake: str, name: str, fmt: str, editors: tuple[str, ...] | None) -> None:
    from pipeline.results.query import runs
    from pipeline.results.rendering import render_table
    from pipeline.results.tables import build_table

    order = tuple(dict.fromkeys(editors)) if editors else None
    built = build_table(runs(lake, name), title=name, editors=order)
    typer.echo(render_table(built, fmt))


def _write_report(lake: str, name: str, path: Path) -> str:
    """Write the HTML report, and its figures as files into a folder beside it."""
    from pipeline.results.report import write_figures, write_report

    written = str(write_report(lake, name, path))
    write_figures(lake, name, path.with_name(f"{path.stem}-figures"))
    return written


# Errors that are answers to the user, by name: importing their modules here would cost seconds.
_EXPECTED = frozenset(
    {
        "ConfigError",
        "DatasetError",
        "LakeError",
        "QueryError",
        "ReportError",
        "StorageError",
        "TableError",
        "Terminated",
        "TokenizationError",
        "TrackingError",
    }
)


@contextmanager
def _errors_as_help() -> Iterator[None]:
    """Print an expected error as one message; anything else is a bug and keeps its trace."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from here", err=True)
        raise SystemExit(130) from None
    except Exception as error:
        if not _EXPECTED & {cls.__name__ for cls in type(error).__mro__}:
            raise
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None


def main() -> Any:
    """Entry point of the console script."""
    configure_logging()
    with _errors_as_help():
        return app()


if __name__ == "__main__":
    sys.exit(main())
