"""What several commands print or write at their end."""

from __future__ import annotations

from pathlib import Path

import typer


def print_table(lake: str, name: str, fmt: str, editors: tuple[str, ...] | None) -> None:
    from pipeline.results.query import runs
    from pipeline.results.rendering import render_table
    from pipeline.results.tables import build_table

    order = tuple(dict.fromkeys(editors)) if editors else None
    built = build_table(runs(lake, name), title=name, editors=order)
    typer.echo(render_table(built, fmt))


def write_report_files(lake: str, name: str, path: Path) -> str:
    """Write the HTML report, and its figures as files into a folder beside it."""
    from pipeline.results.report import write_figures, write_report

    written = str(write_report(lake, name, path))
    write_figures(lake, name, path.with_name(f"{path.stem}-figures"))
    return written
