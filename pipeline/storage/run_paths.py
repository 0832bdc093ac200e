"""Paths of a run: results lake, tracking store and cache, each a URI."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class RunPaths:
    """The three places a run writes to. Paths are absolute: workers have folders of their own.

    Attributes:
        lake: URI of the Parquet lake.
        tracking: MLflow tracking URI, a database or a server.
        cache: URI of what can be made again: models, trained networks, statistics, resume states.
    """

    lake: str
    tracking: str
    cache: str

    @classmethod
    def under(
        cls,
        root: Path,
        lake: str | None = None,
        tracking: str | None = None,
        cache: str | None = None,
    ) -> RunPaths:
        """Default places under a results folder.

        Args:
            root: The results folder.
            lake: Another lake.
            tracking: Another tracking URI; without one, ``MLFLOW_TRACKING_URI`` if it is set.
            cache: Another cache.
        """
        root = root.absolute()
        database = sqlite_uri(root / "mlflow.db")
        return cls(
            lake=_absolute(lake or str(root / "lake")),
            tracking=tracking or os.environ.get("MLFLOW_TRACKING_URI") or database,
            cache=_absolute(cache or str(root / "cache")),
        )


def sqlite_uri(path: Path) -> str:
    """The URI of a database file; what has a meaning of its own in URIs is percent-encoded.

    Only that: MLflow makes an empty folder of the name as it stands in the URI.
    """
    return f"sqlite:///{str(path).replace('%', '%25').replace('?', '%3F')}"


def _absolute(uri: str) -> str:
    return uri if "://" in uri else str(Path(uri).expanduser().absolute())
