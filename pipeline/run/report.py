"""How stages tell how far they are; the driver decides what becomes of it."""

from __future__ import annotations

from typing import Literal, Protocol

Stage = Literal["prepare", "statistics", "train", "edit"]


class Report(Protocol):
    """Called by stages with the work done so far."""

    def __call__(self, stage: Stage, done: int, total: int) -> None:
        """`done` of `total` units of a stage are finished."""
        ...


def silent(stage: Stage, done: int, total: int) -> None:
    """A report nobody reads."""
