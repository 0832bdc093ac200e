"""A tracking store through MLflow's client, with errors that name it and hide its secrets."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
# It would print the address of every run, with the password that may be in it.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
# A server that is away must not hold the driver up for long: the lake has the rows.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.entities import PagedList
from mlflow.utils import get_results_from_paginated_fn
from sqlalchemy.exc import SQLAlchemyError

from pipeline.results.tracking.uri import (
    DEFAULT_URI,
    TrackingError,
    checked_uri,
    quiet_migrations,
    schema_lock,
)
from pipeline.storage.redaction import redact

_PAGE = 1000
# Where a database's driver is not called like the package that it comes in.
_PACKAGES = {
    "MySQLdb": "mysqlclient",
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "psycopg2-binary",
}
_ERRORS = (MlflowException, SQLAlchemyError)
# Of what may as well be said later: one attempt at a request, for so many seconds.
_HURRIED = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}


@contextlib.contextmanager
def opened(uri: str) -> Iterator[MlflowClient]:
    """Opens a store and creates its schema, one process of this machine at a time.

    Raises:
        TrackingError: the URI is a file store, or cannot be opened, or its driver is not installed.
    """
    with quiet_migrations(), schema_lock(checked_uri(uri)):
        try:
            yield MlflowClient(uri)
        except _ERRORS as error:
            raise TrackingError(
                f"{redact(uri)}: cannot open the tracking store ({_said(error)}); expected a "
                f"database such as {DEFAULT_URI}, or the address of an MLflow server"
            ) from None
        except ModuleNotFoundError as error:
            package = _PACKAGES.get(str(error.name), error.name)
            raise TrackingError(
                f"{redact(uri)}: the driver of this database is not installed ({error}); "
                f"pip install {package}"
            ) from None


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turns MLflow's errors into one that names the store and hides its secrets."""
    try:
        yield
    except _ERRORS as error:
        message = f"{redact(uri)}: the tracking store failed ({_said(error)})"
        raise TrackingError(message) from None


@contextlib.contextmanager
def hurried() -> Iterator[None]:
    """Has a server asked once and shortly; MLflow reads such settings at every request."""
    before = {name: os.environ.get(name) for name in _HURRIED}
    os.environ.update(_HURRIED)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _said(error: Exception) -> str:
    """What an error says, without secrets and without the statement of SQL behind it."""
    text = str(error)
    return redact(text.splitlines()[0] if isinstance(error, SQLAlchemyError) else text)


def search(
    client: MlflowClient, experiment_id: str, condition: str, order_by: Sequence[str] = ()
) -> list[Run]:
    """All runs of an experiment that a filter string lets through, deleted ones left out."""

    def page(most: int, token: str | None) -> PagedList[Run]:
        return client.search_runs(
            [experiment_id], condition, ViewType.ACTIVE_ONLY, most, list(order_by), token
        )

    return list(get_results_from_paginated_fn(page, _PAGE))
