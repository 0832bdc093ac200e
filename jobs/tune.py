"""Tune the editors of a search file on its validation pool and record every trial.

python -m jobs.tune jobs/grids/demo.search.yaml jobs/grids/demo.tuned.json
"""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from pipeline.cli.errors import errors_as_help
from pipeline.cli.options import Replace, RerunOtherCode
from pipeline.run.logs import configure_logging
from pipeline.run.tuning import load_search, tune, write_record
from pipeline.storage.run_paths import RunPaths


def main(
    search: Path,
    out: Path,
    results: Path = Path("results"),
    replace: Replace = False,
    rerun_other_code: RerunOtherCode = False,
) -> None:
    """Run the search; an interrupted one goes on from where it stopped."""
    configure_logging()
    record = tune(
        load_search(search),
        RunPaths.under(results),
        Console(stderr=True),
        replace=replace,
        rerun_other_code=rerun_other_code,
    )
    write_record(record, out)
    typer.echo(f"tuned settings and all trials: {out}")


if __name__ == "__main__":
    with errors_as_help():
        typer.run(main)
