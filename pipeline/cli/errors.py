"""Expected errors are answers to the user: one message, no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

# Errors that are answers to the user, by name: importing their modules here would cost seconds.
_EXPECTED = frozenset(
    {
        "ConfigError",
        "DatasetError",
        "LakeError",
        "QueryError",
        "ReportError",
        "StatisticsError",
        "StorageError",
        "SubmitError",
        "TableError",
        "Terminated",
        "TokenizationError",
        "TrackingError",
    }
)


@contextmanager
def errors_as_help() -> Iterator[None]:
    """Print an expected error as one message; anything else is a bug and keeps its trace."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from here", err=True)
        raise SystemExit(130) from None
    except Exception as error:
        if not _EXPECTED & {cls.__name__ for cls in type(error).__mro__}:
            raise
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
