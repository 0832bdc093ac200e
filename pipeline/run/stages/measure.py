"""Measure a stream's model beside its edits, as rows of the table `steps`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.config.grid import HARNESS
from pipeline.plan.cell_data import open_eval_data
from pipeline.plan.cells import Cell
from rledit.measurements.registry import Measurements
from rledit.model import EditableModel
from rledit.records import Edit
from rledit.tokenization import Sample

EVERY_BATCH = ("perplexity",)


class StreamMeasures:
    """What a cell asks to be measured, on the current weights.

    Perplexity is measured after every batch, the rest at checkpoints; all of it before the first
    edit too.

    Args:
        cell: The cell.
        model: Its model.
        edits: All edits of its stream.
    """

    def __init__(self, cell: Cell, model: EditableModel, edits: Sequence[Edit]) -> None:
        self._model = model
        self._limit = cell.material.harness_limit if HARNESS in cell.measurements else None
        own = [name for name in cell.measurements if name != HARNESS]
        cheap = [name for name in own if name in EVERY_BATCH]
        eval_data = open_eval_data(cell)
        asked, found = cell.material.documents, len(eval_data.text)
        self._texts = {"documents": found, "asked_for": asked} if eval_data.text else None
        self._at_points = Measurements(model, edits, own, eval_data)
        self._every_batch = Measurements(model, edits, cheap, eval_data)

    @property
    def metadata(self) -> dict[str, Any]:
        """How much text perplexity is of, where that was asked for."""
        return {} if self._texts is None else {"text": self._texts}

    @property
    def samples(self) -> list[Sample]:
        """What of it the prefix cache may come to hold."""
        return self._at_points.samples

    def rows(self, n_edits: int, checkpoint: bool) -> Iterator[dict[str, Any]]:
        """Rows after so many edits, 0 for the unedited model."""
        values: dict[str, float]
        values = (self._at_points if checkpoint else self._every_batch).measure(n_edits)
        if checkpoint and self._limit is not None:
            values = {**values, **self._harness(self._limit)}
        for name, value in values.items():
            yield {"step": n_edits, "metric": name, "value": float(value)}

    def _harness(self, limit: int) -> Mapping[str, float]:
        from pipeline.inputs.lm_harness import (
            harness_scores,  # an extra that few installations have
        )

        return harness_scores(self._model, limit)
