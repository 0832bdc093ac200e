"""Output that several commands share: tables on the terminal, files, the closing lines."""

from __future__ import annotations

import os
from collections.abc import Collection
from difflib import get_close_matches
from typing import TYPE_CHECKING

import typer

from pipeline.storage.redaction import redact

if TYPE_CHECKING:
    from pipeline.results.latex import Fit

NOTHING_COMPARABLE = 2


def print_table(
    lake: str,
    name: str,
    fmt: str,
    scale: str | None = None,
    among: Collection[str] = (),
    *,
    long: bool = False,
    fit: Fit | None = None,
) -> int:
    """Print a grid's table: beside the published one where there is one.

    Args:
        lake: Where the results lie.
        name: Name of the grid.
        fmt: One of the formats of tables.
        scale: Show results at this scale only; None: see `paper_table`, else all there are.
        among: Show results at these scales only; empty: at all.
        long: Every column there is, not only those of a paper.
        fit: In LaTeX, the width that the table must fit.

    Returns:
        What ``--check`` exits with.

    Raises:
        TableError: There is no such scale or format, or neither results nor a published table of
            that name.
    """
    from pipeline.config.scale import known_scale
    from pipeline.config.stored_words import documented_value
    from pipeline.paper.layouts import LAYOUTS
    from pipeline.results.rendering import FORMATS, render_table
    from pipeline.results.tables import TableError, build_table
    from rledit.names import nearest

    if scale is not None:
        scale = documented_value(known_scale(scale))
    among = {documented_value(name) for name in among}
    if fmt not in FORMATS:
        raise TableError(f"--format {fmt}: unknown format{nearest(fmt, FORMATS)}")
    if name in LAYOUTS:
        from pipeline.paper.rendering import render_paper_table
        from pipeline.paper.table import paper_table

        (only,) = among if len(among) == 1 else (scale,)
        table = paper_table(lake, name, scale or only)
        typer.echo(render_paper_table(table, fmt, long=long, fit=fit))
        return table.exit_code
    from pipeline.results.query import runs

    shown = {scale} if scale is not None else set(among)
    rows = [row for row in runs(lake, name) if not shown or row["scale"] in shown]
    if not rows:
        raise TableError(_no_results(lake, name, shown))
    typer.echo(render_table(build_table(rows, title=name), fmt, long=long, fit=fit))
    return NOTHING_COMPARABLE


def _no_results(lake: str, name: str, scales: Collection[str]) -> str:
    """There is nothing of a grid; names first what there is in this lake."""
    from pipeline.paper.layouts import LAYOUTS
    from pipeline.results.query import query, quoted

    there = query("SELECT DISTINCT grid FROM cells ORDER BY 1", lake)
    known = [str(grid) for (grid,) in there.rows]
    if name in known:
        others = query(f"SELECT DISTINCT scale FROM cells WHERE grid = {quoted(name)}", lake)
        at = " or ".join(sorted(scales))
        has = ", ".join(sorted(str(scale) for (scale,) in others.rows))
        return f"grid {name!r} has no results at scale {at}; it has some at {has}"
    near = get_close_matches(name, known, n=1) or get_close_matches(name, LAYOUTS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    results = f"Grids with results in {redact(lake)}: {', '.join(known) or 'none yet'}"
    without = [grid for grid in LAYOUTS if grid not in known]
    return (
        f"no results of grid {name!r}{hint} {results}. Published tables, shown without "
        f"results too: {', '.join(without)}"
    )


def write_report_files(lake: str, name: str, path: str) -> str:
    """Write the HTML report to a path or URI, and its figures into a folder beside it."""
    from pipeline.paper.layouts import LAYOUTS
    from pipeline.results.report import write_report

    published, protocols = None, None
    if name in LAYOUTS:
        from pipeline.paper.rendering import render_paper_table
        from pipeline.paper.table import paper_table

        published = render_paper_table(paper_table(lake, name), "html")
        protocols = LAYOUTS[name]().protocols  # figures show what the table beside them shows
    beside = f"{os.path.splitext(path)[0]}-figures"
    return write_report(
        lake, name, path, published=published, protocols=protocols, figures_folder=beside
    )


def write_comparison_file(first: tuple[str, str], second: tuple[str, str], path: str) -> str:
    """Write the page that compares two (lake, grid).

    Raises:
        ReportError: they are the same, or one of them is not there.
    """
    from pipeline.paper.layouts import LAYOUTS
    from pipeline.results.comparison import write_comparison
    from pipeline.results.report import ReportError

    if first == second:
        raise ReportError(
            f"grid {first[1]!r} would be compared with itself; name another grid by --against, "
            "or another lake by --against-lake"
        )
    protocols = LAYOUTS[first[1]]().protocols if first[1] in LAYOUTS else None
    return write_comparison(first, second, path, protocols=protocols)
