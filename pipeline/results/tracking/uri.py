"""Addresses of tracking stores, and what can be known of them without MLflow."""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.storage.redaction import redact
from rledit.errors import UserError

DEFAULT_URI = "sqlite:///results/mlflow.db"


class TrackingError(UserError, RuntimeError):
    """The tracking store cannot be used as asked; the message says what would work."""


def checked_uri(uri: str) -> str:
    """Returns a tracking URI that can be used.

    Raises:
        TrackingError: it is a path or a `file:` URI, which MLflow no longer writes to.
    """
    scheme = urlsplit(uri).scheme
    if scheme in ("", "file") or len(scheme) == 1:
        path = urlsplit(uri).path.rstrip("/") or "results"
        raise TrackingError(
            f"{redact(uri)} is a file store, which MLflow no longer supports; use a database such "
            f"as sqlite:///{path}/mlflow.db, or the address of an MLflow server"
        )
    return uri


def is_server(uri: str) -> bool:
    """Whether a store is an MLflow server, which has pages of its own."""
    return urlsplit(uri).scheme in ("http", "https")


def page_of(server: str, experiment_id: str, query: str = "") -> str:
    """The address of an experiment's runs, without name and password.

    It asks for the pages of model training: MLflow 3.17 goes by this part of the address, else by
    what was last chosen in this browser, and opens its GenAI pages where nothing was. The tag
    `mlflow.experimentKind` says nothing to it.

    Args:
        query: More of the address, beginning with ``&``.
    """
    parts = urlsplit(server)
    base = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    return f"{base}/#{runs_page(experiment_id, query)}"


def runs_page(experiment_id: str, query: str = "") -> str:
    """An experiment's runs within MLflow's pages, see `page_of`."""
    return f"/experiments/{experiment_id}/runs?workflowType=machine_learning{query}"


def sqlite_path(uri: str) -> Path | None:
    """The file of a sqlite store, None for any other store."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0])).absolute()


@contextlib.contextmanager
def schema_lock(uri: str) -> Iterator[None]:
    """Lets one process of this machine at a time open a sqlite file; makes its folder if need be.

    Processes that create the schema of one fresh file at once crash in each other's migration. One
    that may only read where a file lies creates nothing, and does without the lock.

    Raises:
        TrackingError: there is no file, and none can be made.
    """
    database = sqlite_path(uri)
    if database is None:
        yield
        return
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        file = database.with_name(f".{database.name}.lock").open("w")
    except OSError as error:
        if not database.is_file():
            raise TrackingError(
                f"{redact(uri)}: the database cannot be made there ({error.strerror}); name "
                "another folder with --results, or another store with --tracking"
            ) from None
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def quiet_migrations() -> Iterator[None]:
    """Keeps forty lines of schema history out of the first run's output."""
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow.store.db.utils")]
    before = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for log, level in zip(loggers, before, strict=True):
            log.setLevel(level)
