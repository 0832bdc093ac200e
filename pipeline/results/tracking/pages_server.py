"""MLflow's own pages over a tracking store: where they are, and a server that shows them."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import NoReturn

from pipeline.results.tracking.experiment import Tracked
from pipeline.results.tracking.saved_views import COMPARISON, TABLE
from pipeline.results.tracking.uri import TrackingError, page_of, sqlite_path
from pipeline.storage.redaction import redact
from pipeline.storage.run_paths import sqlite_uri

HOST = "127.0.0.1"


def page_lines(server: str, found: Sequence[Tracked]) -> Iterator[str]:
    """Where a server shows each experiment's runs, and the comparison of its editors."""
    for one in found:
        yield f"{one.name}: {page_of(server, one.experiment_id, TABLE)}"
        yield f"  editors side by side: {page_of(server, one.experiment_id, COMPARISON)}"


def chosen(uri: str, found: Sequence[Tracked], grid: str | None) -> list[Tracked]:
    """The experiments of a grid, of whichever lakes; of all grids where none is named.

    Raises:
        TrackingError: There are none; says what there is.
    """
    names = sorted({one.grid for one in found})
    if not found:
        raise TrackingError(
            f"{redact(uri)}: there are no tracked runs; run a grid first, or name another folder "
            "with --results, or another store with --tracking"
        )
    kept = [one for one in found if grid in (None, one.grid, one.name)]
    if not kept and grid is not None:
        near = get_close_matches(grid, names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise TrackingError(
            f"{redact(uri)}: no tracked runs of grid {grid!r}{hint} Grids there: {', '.join(names)}"
        )
    return kept


def check_port(port: int) -> None:
    """Raises TrackingError where another program listens on a port of this machine."""
    with contextlib.closing(socket.socket()) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((HOST, port))
        except OSError as error:
            raise TrackingError(
                f"port {port} of this machine cannot be used ({error.strerror}); name another with "
                "--port"
            ) from None


def become_server(uri: str, port: int) -> NoReturn:
    """Turns this process into MLflow's server over a database, for browsers of this machine."""
    database = sqlite_path(uri)
    environment = os.environ | {
        # Not an argument: other users of the machine can read those, and it may hold a password.
        "MLFLOW_BACKEND_STORE_URI": uri if database is None else sqlite_uri(database),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # half a dozen processes, for agents
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONWARNINGS": "ignore",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    if database is not None:
        os.chdir(database.parent)  # it makes folders where it starts
    program = [sys.executable, "-m", "mlflow", "server"]
    sys.stdout.flush()
    os.execve(
        sys.executable,
        [*program, "--host", HOST, "--port", str(port), "--workers", "1"],
        {str(key): str(value) for key, value in environment.items()},
    )
