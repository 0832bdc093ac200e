"""Costs of cells that ran, as the lake has them, carried over to cells like them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.cells import Cell
from pipeline.estimate.seconds import Seconds
from pipeline.results.records import CellRecord, scale_of

# What two cells have in common for one's cost to stand for the other's: the closest first.
_LIKENESS: tuple[tuple[str, ...], ...] = (
    ("variant", "dataset", "batch_size", "n_batches"),
    ("variant", "dataset", "batch_size"),
    ("variant", "batch_size"),
    ("variant",),
    (),
)
_ALWAYS = ("scale", "model", "editor")


class Measurements:
    """What finished cells cost.

    Args:
        records: Cells of the lake, of any grid.
    """

    def __init__(self, records: Sequence[CellRecord]) -> None:
        self._records = [r for r in records if r.done and r.values.get("edit_ms") is not None]

    def seconds(self, cell: Cell) -> Seconds | None:
        """Time of a cell by those most like it; None where there is none."""
        alike = self.like(cell)
        if not alike:
            return None
        n_edits = cell.n_edits
        trained = _median(alike, lambda r: (r.values["train_seconds"] or 0.0) / _training(r))
        return Seconds(
            setup=trained * _steps(cell) if cell.trains else 0.0,
            edit=_median(alike, lambda r: r.values["edit_ms"]) * n_edits / 1000,
            score=_median(alike, _score_seconds) * n_edits,
            measured=True,
        )

    def peak_gb(self, cell: Cell) -> float | None:
        """Peak memory of the cells most like it."""
        peaks = [r.values["peak_memory_gb"] for r in self.like(cell)]
        return max((peak for peak in peaks if peak is not None), default=None)

    def like(self, cell: Cell) -> list[CellRecord]:
        """The finished cells that have most in common with this one."""
        own = {
            "scale": scale_of(cell.scale, cell.model.checkpoint),
            "model": cell.model.name,
            "editor": cell.editor_name,
            "variant": cell.editor.variant,
            "dataset": cell.dataset.name,
            "batch_size": cell.stream.batch_size,
            "n_batches": cell.stream.n_batches,
        }
        for names in _LIKENESS:
            wanted = (*_ALWAYS, *names)
            found = [
                r for r in self._records
                if all(getattr(r.address, n) == own[n] for n in wanted)
            ]  # fmt: skip
            if found:
                return found
        return []


def _median(records: Sequence[CellRecord], value: Callable[[CellRecord], float]) -> float:
    return statistics.median(value(record) for record in records)


def _score_seconds(record: CellRecord) -> float:
    return (record.values["score_seconds"] or 0.0) / max(record.values["n_edits"] or 1, 1)


def _training(record: CellRecord) -> float:
    """Edits that a finished cell trained on, as far as its settings tell."""
    settings: dict[str, Any] = record.values["identity"].get("settings", {})
    batches = settings.get("trajectory_batches") or record.address.n_batches
    steps = settings.get("train_steps", 1) * settings.get("trajectories_per_step", 1)
    return float(max(batches * record.address.batch_size * steps, 1))


def _steps(cell: Cell) -> float:
    return float(cell.trained_batches * cell.stream.batch_size)
