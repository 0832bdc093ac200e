"""The console script ``rledit``: one file per group of commands, registered here.

Commands import what they need when they run: `--help` stays quick.
"""

from __future__ import annotations

from typing import Any

import typer

from pipeline.cli import cluster, data, export, grids, plan, results, statistics
from pipeline.cli.errors import errors_as_help
from pipeline.logs import configure_logging

app = typer.Typer(
    help="Benchmark lifelong model editing: plan and run grids, read their results.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    plan.plan,
    grids.run,
    results.table,
    results.query,
    results.diff,
    results.report,
    export.export,
    cluster.submit,
    cluster.status,
    cluster.cancel,
    cluster.sweep,
    cluster.rebuild,
):
    app.command()(command)

data_app = typer.Typer(help="Look at files of edits before anything runs.", no_args_is_help=True)
data_app.command("check")(data.data_check)
app.add_typer(data_app, name="data")

statistics_app = typer.Typer(help="Share second moments between users.", no_args_is_help=True)
statistics_app.command("export")(statistics.statistics_export)
statistics_app.command("import")(statistics.statistics_import)
app.add_typer(statistics_app, name="statistics")


def main() -> Any:
    """Entry point of the console script."""
    configure_logging()
    with errors_as_help():
        return app()
