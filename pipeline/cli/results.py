"""Commands that read results: table, query, diff and report."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.options import DEFAULT_RESULTS, GridName, LakeUri, Results
from pipeline.cli.output import print_table, write_comparison_file, write_report_files
from pipeline.storage.redaction import redact
from pipeline.storage.run_paths import RunPaths


def table(
    name: GridName,
    results: Results = DEFAULT_RESULTS,
    lake: LakeUri = None,
    format_: Annotated[str, typer.Option("--format", help="md, latex, html or csv.")] = "md",
    scale: Annotated[
        str | None,
        typer.Option(
            "--scale",
            help="Show results at scale full, proxy or world. Default: for a published table the "
            "first of these that there are, else all.",
        ),
    ] = None,
    long: Annotated[
        bool,
        typer.Option(
            "--long",
            help="Every score and cost, intervals, and what other papers print. Default: what a "
            "paper shows: Eff, Gen, Spe, and their mean where it fits.",
        ),
    ] = False,
    fit: Annotated[
        str | None,
        typer.Option(
            "--fit",
            help="For --format latex: what the table must fit, a column (of two) or a page. "
            "Default: a column where it fits there in one piece.",
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Exit 1 where a figure differs from the published one, 2 where none could be "
            "compared.",
        ),
    ] = False,
) -> None:
    """Print the table of a grid; where it repeats a published one, with that one's figures.

    Every figure then has the published one, the difference and a verdict beside it.
    """
    from pipeline.results.pages import known_fit

    width = known_fit(format_, fit)
    place = RunPaths.under(results, lake).lake
    code = print_table(place, name, format_, scale=scale, long=long, fit=width)
    if check and code:
        raise typer.Exit(code)


def query(
    sql: Annotated[
        str,
        typer.Argument(
            help="SQL over the views runs, edits, answers, free_answers, curves, cells."
        ),
    ],
    results: Results = DEFAULT_RESULTS,
    lake: LakeUri = None,
    format_: Annotated[str, typer.Option("--format", help="table, csv or json.")] = "table",
) -> None:
    """Ask the lake in SQL."""
    from pipeline.results import query as queries
    from pipeline.results.unknown_names import is_empty, unknown_names

    connection = queries.connect(RunPaths.under(results, lake).lake)
    answer = queries.query(sql, connection)
    typer.echo(queries.render(answer, format_))
    if is_empty(answer):
        for line in unknown_names(sql, connection):
            typer.echo(line, err=True)


def diff(
    lake_a: Annotated[str, typer.Argument(help="A lake.")],
    lake_b: Annotated[str, typer.Argument(help="Another lake.")],
    grid: Annotated[
        str | None, typer.Option("--grid", help="Compare the cells of this grid only.")
    ] = None,
) -> None:
    """Compare two lakes; exit 0 when they hold the same results, times aside."""
    from pipeline.results.diff import diff_lakes

    found = diff_lakes(lake_a, lake_b, grid)
    typer.echo(f"rule: {found.rule}")
    for line in found.lines:
        typer.echo(line)
    typer.echo("equal" if found.equal else "different")
    if not found.equal:
        raise typer.Exit(1)


def report(
    name: GridName,
    results: Results = DEFAULT_RESULTS,
    lake: LakeUri = None,
    out: Annotated[
        str | None, typer.Option(help="The HTML file to write: a path, or a URI of a store.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            help="Write a page that compares the grid with this one instead: method by method, "
            "from the first to the second.",
        ),
    ] = None,
    against_lake: Annotated[
        str | None,
        typer.Option(
            "--against-lake",
            help="URI of the lake that is compared with. Default: the same one; without --against "
            "the same grid is compared there.",
        ),
    ] = None,
) -> None:
    """Write the self-contained HTML report of a grid, and its figures as SVG files beside it.

    With --against or --against-lake: a page that compares two grids, or a grid in two lakes.
    """
    if against is not None or against_lake is not None:
        lake = RunPaths.under(results, lake).lake
        other = (against_lake or lake, against or name)
        path = out or str(results / f"{name}-against-{against or 'other'}.html")
        typer.echo(redact(write_comparison_file((lake, name), other, path)))
        return
    path = out or str(results / f"{name}.html")
    typer.echo(redact(write_report_files(RunPaths.under(results, lake).lake, name, path)))
