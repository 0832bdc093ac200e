"""Teacher-forced: all answer tokens are right (ROME's definition, arXiv 2202.05262)."""

from __future__ import annotations

from rledit.protocols.reading import Reading


def score(reading: Reading) -> float:
    """1 if every answer token is predicted right, else 0."""
    return float(bool((reading.predicted == reading.expected).all()))


def agreement(reading: Reading, other: Reading) -> float:
    """1 if two models predict the same tokens at all answer positions, else 0."""
    return float(bool((reading.predicted == other.predicted).all()))
