"""An empty tracking database by MLflow's schema as it is, once made by all of its migrations.

They take a second or two for each database; a test session makes a hundred.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import pytest


def quick_schema(patch: pytest.MonkeyPatch) -> None:
    """Let MLflow migrate the first SQLite database of this process, and copy it to the others."""
    if "mlflow" in sys.modules:
        from mlflow.store.db import utils

        patch.setattr(utils, "_initialize_tables", _tables_by(utils._initialize_tables))


@cache
def _tables_by(migrate: Any) -> Any:
    """MLflow's function that makes the tables, with a memory."""
    statements: list[str] = []

    def make(engine: Any) -> None:
        if engine.dialect.name != "sqlite":
            migrate(engine)
            return
        if not statements:
            migrate(engine)
        connection = engine.raw_connection()
        try:
            if statements:
                connection.driver_connection.executescript("\n".join(statements))
            else:
                statements.extend(connection.driver_connection.iterdump())
        finally:
            connection.close()

    return make
