"""Names that commands had before: hidden, working for one more version, with a warning."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import typer

from pipeline.cli import cluster

logger = logging.getLogger(__name__)


def add_old_names(app: typer.Typer) -> None:
    """Register ``rledit sweep`` beside the name it has now."""
    app.command("sweep", hidden=True)(_renamed(cluster.close_stale_runs))


def _renamed(command: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(command)
    def old(**options: Any) -> None:
        _warn("sweep", "close-stale-runs")
        command(**options)

    return old


def _warn(old: str, new: str) -> None:
    logger.warning(
        "rledit %s is now rledit %s; the old name works in this version for the last time", old, new
    )
