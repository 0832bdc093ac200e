"""One thing that a grid needs before it can run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Need:
    """One thing a grid needs.

    Attributes:
        text: What, for the reader.
        missing: Whether it is not there, so that the grid cannot run yet.
        download_gb: What will be fetched for it; None: something, of a size that is not known.
    """

    text: str
    missing: bool = False
    download_gb: float | None = 0.0
