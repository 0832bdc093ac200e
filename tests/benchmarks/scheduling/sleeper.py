"""An editor that only sleeps: cells of a known length, to measure everything around them.

It is named in a grid as ``tests.benchmarks.scheduling.sleeper:SleepEditor`` and goes the way of
every other editor.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from rledit.editors.base import Editor
from rledit.tokenization import EditBatch


@dataclass(frozen=True, kw_only=True)
class SleepConfig:
    """Settings of the sleeper.

    Attributes:
        seconds: How long one batch takes.
        modules: Nothing is edited.
    """

    seconds: float = 10.0
    modules: tuple[str, ...] = ()


class SleepEditor(Editor):
    """Sleeps through every batch and leaves the model as it is."""

    name = "sleep"
    Config = SleepConfig

    def edit(self, batch: EditBatch) -> dict[str, float]:
        """Sleep."""
        time.sleep(self.config.seconds)
        return {}
