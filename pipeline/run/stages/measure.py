"""Measure a stream's model beside its edits, as rows of the table `steps`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.cells import Cell
from pipeline.material import HARNESS
from rledit.measurements import Measurements
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
        material = cell.open_material()
        asked, found = cell.material.documents, len(material.text)
        self._texts = {"documents": found, "asked_for": asked} if material.text else None
        self._at_points = Measurements(model, edits, own, material)
        self._every_batch = Measurements(model, edits, cheap, material)

    @property
    def facts(self) -> dict[str, Any]:
        """How much text perplexity is of, where that was asked for."""
        return {} if self._texts is None else {"text": self._texts}

    @property
    def samples(self) -> list[Sample]:
        """What of it the trunk's cache may come to hold."""
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
        from pipeline.harness import harness_scores  # an extra that few installations have

        return harness_scores(self._model, limit)
