"""Progress reports of stages; the driver decides what becomes of them."""

from __future__ import annotations

import importlib
import os
from typing import Literal, Protocol

WATCHER = "RLEDIT_WATCHER"

Stage = Literal[
    "prepare", "ask", "statistics", "calibrate", "prefixes", "train", "edit", "score", "commit"
]


class Report(Protocol):
    """Called by stages with the work done so far."""

    def __call__(
        self,
        stage: Stage,
        done: int,
        total: int,
        detail: str = "",
        left: float | None = None,
    ) -> None:
        """`done` of `total` units of a stage are finished; `detail` is more for whoever looks.

        `left` are the seconds that the stage takes yet, where it knows better than its rate tells.
        """
        ...


def silent(
    stage: Stage, done: int, total: int, detail: str = "", left: float | None = None
) -> None:
    """A report nobody reads."""


def watched(report: Report, task: str) -> Report:
    """`report`, followed by the watcher that the environment names, if it names one.

    ``RLEDIT_WATCHER=module:function`` is called as ``function(task, stage, done, total)`` in the
    worker, which waits for it to return. The fault run stops workers at chosen moments with it.

    Args:
        report: Where reports go.
        task: Key of the task that reports.
    """
    module, _, name = os.environ.get(WATCHER, "").partition(":")
    if not module:
        return report
    watch = getattr(importlib.import_module(module), name)

    def both(
        stage: Stage, done: int, total: int, detail: str = "", left: float | None = None
    ) -> None:
        report(stage, done, total, detail, left)
        watch(task, stage, done, total)

    return both
