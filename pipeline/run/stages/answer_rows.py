"""Answers in words of a sample of a stream's edits, as rows of the table `answers`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

from pipeline.plan.cells import Cell
from rledit.model import EditableModel
from rledit.records import Edit
from rledit.written_answers import Answers, sampled

Rows = list[dict[str, Any]]


class StreamAnswers:
    """What a cell asks to be kept of the model's answers.

    A moment is asked once: rows that a resumed stream brings with it are left as they are, unless
    they are of another sample, and what the unedited model says can be asked at any time. So the
    rows do not depend on interruptions.

    Args:
        cell: The cell.
        model: Its model.
        edits: All edits of its stream.
    """

    def __init__(self, cell: Cell, model: EditableModel, edits: Sequence[Edit]) -> None:
        wanted = len(edits) if cell.answers.sample == "all" else cell.answers.sample
        places = sampled(len(edits), wanted, cell.seed)
        probes: Any = cell.probes
        self._model = model
        self._edits = edits
        self._places = set(places)
        self._answers = Answers(model, edits, places, probes, cell.seed) if places else None
        self._at_all = cell.answers.at == "checkpoints"

    def add_missing(self, rows: Rows, n_edits: int) -> float:
        """Add the answers after so many edits, 0 for the unedited model, where they are due.

        Args:
            rows: The stream's rows so far; those of a moment that is there already stay.
            n_edits: Edits made.

        Returns:
            Seconds it took.
        """
        # What the model says along the way cannot be asked again.
        again = n_edits in (0, len(self._edits))
        due = self._at_all or again
        there = {row["edit_index"] for row in rows if row["checkpoint"] == n_edits}
        if self._answers is None:
            rows.clear()
            return 0.0
        if not due or (there == self._places if again else there):
            return 0.0
        began = time.perf_counter()
        if there:  # of another sample than the grid has now
            kept = (r for r in rows if r["checkpoint"] != n_edits)
            rows[:] = [r for r in kept if r["edit_index"] in self._places]
        before = [row for row in rows if row["checkpoint"] == 0]
        if n_edits == len(self._edits) and before and not self._model.weights.names:
            # Nothing is edited, so nothing has changed.
            rows += [{**row, "checkpoint": n_edits} for row in before]
        else:
            rows += self._asked(self._answers, n_edits)
        return time.perf_counter() - began

    def _asked(self, answers: Answers, n_edits: int) -> Rows:
        unedited = nullcontext() if n_edits else self._model.weights.unedited()
        with unedited:
            found = answers.ask(n_edits)
        return [
            {
                "checkpoint": n_edits,
                "edit_id": self._edits[answer.edit_index].edit_id,
                **asdict(answer),
                "tokens": list(answer.tokens),
            }
            for answer in found
        ]
