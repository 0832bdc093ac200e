"""Commands about files of edits."""

from __future__ import annotations

from typing import Annotated

import typer


def data_check(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Files or folders of edits (JSON, JSONL, Parquet), paths or URIs; a hub's as "
            "hf://datasets/owner/name@revision/file."
        ),
    ],
    strict: Annotated[
        bool, typer.Option("--strict", help="Make every trap an error, not only broken rows.")
    ] = False,
) -> None:
    """Map files to their schema, count rows, duplicates, contradictions and other traps.

    Exit 1 when a row cannot be mapped.
    """
    from pipeline.inputs.edit_files import open_data
    from rledit.datasets import check_paths

    lines, code = check_paths(paths, strict, open_data)
    for line in lines:
        typer.echo(line)
    raise typer.Exit(code)
