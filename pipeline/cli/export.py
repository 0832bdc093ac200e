"""The command that takes an edited model out of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.options import DEFAULT_RESULTS, CacheUri, LakeUri, Results
from pipeline.storage.run_paths import RunPaths


def export(
    cell: Annotated[str, typer.Argument(help="Key of a done cell, or its beginning.")],
    folder: Annotated[Path, typer.Argument(help="Where to write.")],
    delta: Annotated[
        bool, typer.Option("--delta", help="Only the change of the edited matrices.")
    ] = False,
    results: Results = DEFAULT_RESULTS,
    lake: LakeUri = None,
    cache: CacheUri = None,
) -> None:
    """Write the edited model of a cell as a Hugging Face checkpoint.

    Without `keep_edited: true` in its grid, the cell is run again first, and has to score as it
    did.
    """
    from pipeline.run.export import export as write

    typer.echo(write(cell, RunPaths.under(results, lake, cache=cache), folder, delta))
