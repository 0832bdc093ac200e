"""Measures how a memory editor routes a stream's prompts, and gives rows of the table `steps`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.plan.cells import Cell
from rledit.editors import Editor
from rledit.editors.overlay_editor import OverlayEditor
from rledit.measurements.routing import routing
from rledit.scoring import Scorer


def routing_rows(
    editor: Editor, scorer: Scorer, cell: Cell, n_edits: int
) -> Iterator[dict[str, Any]]:
    """Rows at a checkpoint; none for an editor that writes into matrices."""
    if not isinstance(editor, OverlayEditor):
        return
    places = [i for i in cell.scored_places or range(cell.n_edits) if i < n_edits]
    asked = scorer.asked(n_edits)
    for name, value in routing(editor.memory, dict(zip(places, asked, strict=True))).items():
        yield {"step": n_edits, "metric": name, "value": value}
