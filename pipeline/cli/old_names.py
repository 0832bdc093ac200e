"""Names that commands had before: hidden, working for one more version, with a warning."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import typer

from pipeline.cli import cluster

logger = logging.getLogger(__name__)


def add_old_names(app: typer.Typer, covariance_app: typer.Typer) -> None:
    """Register ``rledit sweep`` and ``rledit statistics`` beside the names they have now."""
    app.command("sweep", hidden=True)(_renamed(cluster.close_stale_runs))
    statistics = typer.Typer(no_args_is_help=True, callback=_statistics)
    for command in covariance_app.registered_commands:
        if command.callback is not None:
            statistics.command(command.name)(command.callback)
    app.add_typer(statistics, name="statistics", hidden=True)


def _renamed(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def old(**options: Any) -> None:
        _warn("sweep", "close-stale-runs")
        command(**options)

    return old


def _statistics() -> None:
    """Share key covariance between users; now called covariance."""
    _warn("statistics", "covariance")


def _warn(old: str, new: str) -> None:
    logger.warning(
        "rledit %s is now rledit %s; the old name works in this version for the last time", old, new
    )
