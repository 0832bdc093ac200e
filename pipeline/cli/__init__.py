"""The console script ``rledit``: one file per group of commands, registered here.

Commands import what they need when they run: `--help` stays quick.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from pipeline.cli import (
    answers,
    cluster,
    covariance,
    data,
    editing,
    export,
    grids,
    judge,
    plan,
    results,
    statistics,
    tracked_pages,
)
from pipeline.cli.errors import errors_as_help
from pipeline.cli.old_names import add_old_names
from pipeline.run.logs import configure_logging

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    """Print the version and end."""
    if asked:
        from pipeline.plan.versions import code_version

        typer.echo(f"rledit {code_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_version,
            is_eager=True,
            help="Print the version, with the hash of the code that results carry, and exit.",
        ),
    ] = False,
) -> None:
    """Benchmark lifelong model editing: plan and run grids, read their results; edit a model."""


for command in (
    plan.plan,
    grids.run,
    results.table,
    results.query,
    answers.answers,
    judge.judge,
    results.diff,
    results.report,
    tracked_pages.mlflow,
    export.export,
    editing.edit,
    editing.ledger,
    editing.undo,
    editing.ask,
    cluster.submit,
    cluster.status,
    cluster.cancel,
    cluster.close_stale_runs,
    cluster.rebuild,
):
    app.command()(command)

data_app = typer.Typer(help="Look at edits before anything runs.", no_args_is_help=True)
data_app.command("check")(data.data_check)
data_app.command("facts")(data.data_facts)
app.add_typer(data_app, name="data")

covariance_app = typer.Typer(help="Share key covariance between users.", no_args_is_help=True)
covariance_app.command("export")(covariance.covariance_export)
covariance_app.command("import")(covariance.covariance_import)
app.add_typer(covariance_app, name="covariance")
statistics_app = typer.Typer(
    help="Take and write key covariance in the form that releases publish.", no_args_is_help=True
)
statistics_app.command("import")(statistics.statistics_import)
statistics_app.command("export")(statistics.statistics_export)
app.add_typer(statistics_app, name="statistics")
add_old_names(app)


def main() -> Any:
    """Entry point of the console script."""
    configure_logging()
    with errors_as_help():
        return app()
