"""What several commands print or write at their end."""

from __future__ import annotations

from pathlib import Path

import typer

NOTHING_COMPARABLE = 2


def print_table(
    lake: str,
    name: str,
    fmt: str,
    editors: tuple[str, ...] | None = None,
    scale: str | None = None,
) -> int:
    """Print a grid's table: beside the published one where there is one.

    Returns:
        What ``--check`` exits with.

    Raises:
        TableError: There is no such scale, or neither results nor a published table of that name.
    """
    from pipeline.paper.layouts import LAYOUTS
    from pipeline.paper.measured import SCALES
    from pipeline.results.tables import TableError, build_table
    from rledit.names import nearest

    if scale is not None and scale not in SCALES:
        raise TableError(f"--scale {scale}: unknown scale{nearest(scale, SCALES)}")
    if name in LAYOUTS:
        from pipeline.paper.rendering import render_paper_table
        from pipeline.paper.table import paper_table

        table = paper_table(lake, name, scale)
        typer.echo(render_paper_table(table, fmt))
        return table.exit_code
    from pipeline.results.query import query, runs
    from pipeline.results.rendering import render_table

    order = tuple(dict.fromkeys(editors)) if editors else None
    rows = [row for row in runs(lake, name) if scale in (None, row["scale"])]
    if not rows:
        known = [grid for (grid,) in query("SELECT DISTINCT grid FROM cells ORDER BY 1", lake).rows]
        at = f" at scale {scale}" if scale else ""
        raise TableError(f"no results of grid {name!r}{at}{nearest(name, [*known, *LAYOUTS])}")
    built = build_table(rows, title=name, editors=order)
    typer.echo(render_table(built, fmt))
    return NOTHING_COMPARABLE


def write_report_files(lake: str, name: str, path: Path) -> str:
    """Write the HTML report, and its figures as files into a folder beside it."""
    from pipeline.paper.layouts import LAYOUTS
    from pipeline.results.report import write_report

    published, protocols = None, None
    if name in LAYOUTS:
        from pipeline.paper.rendering import render_paper_table
        from pipeline.paper.table import paper_table

        published = render_paper_table(paper_table(lake, name), "html")
        protocols = LAYOUTS[name]().protocols  # figures show what the table beside them shows
    beside = path.with_name(f"{path.stem}-figures")
    return write_report(
        lake, name, path, published=published, protocols=protocols, figures_folder=beside
    )
