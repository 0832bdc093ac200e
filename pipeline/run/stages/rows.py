"""Rows of the lake that say how a stream's edits are scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from pipeline.plan.cells import Cell
from rledit.records import Edit
from rledit.scoring import EditScore
from rledit.stream import StreamScored

SCORES = ("efficacy", "generalization", "specificity", "specificity_self")
_LEFT_OUT = {
    "superseded_rephrases": "n_rephrases_superseded",
    "superseded_locality": "n_locality_superseded",
}


def edit_rows(event: StreamScored, edits: list[Edit], cell: Cell) -> Iterator[dict[str, Any]]:
    """Rows of the table `edits`: one per edit and protocol."""
    for score in event.scores:
        yield {
            "checkpoint": event.n_edits,
            "protocol": score.protocol,
            "edit_index": score.edit_index,
            "batch_index": score.edit_index // cell.stream.batch_size,
            "edit_id": edits[score.edit_index].edit_id,
            **{name: getattr(score, name) for name in SCORES},
            "superseded": score.superseded,
        }


def free_rows(event: StreamScored, edits: list[Edit]) -> Iterator[dict[str, Any]]:
    """Rows of the table `free_answers`: those that a judge is to score."""
    for score in event.scores:
        for answer in score.free:
            yield {
                "checkpoint": event.n_edits,
                "edit_index": score.edit_index,
                "edit_id": edits[score.edit_index].edit_id,
                **asdict(answer),
                "superseded": score.superseded,
            }


def left_out_rows(event: StreamScored) -> Iterator[dict[str, Any]]:
    """How many probes of edits that stand are superseded, where some are."""
    # Every protocol asks the same questions.
    distinct = {score.edit_index: score for score in event.scores}.values()
    for metric, name in _LEFT_OUT.items():
        if count := sum(getattr(score, name) for score in distinct if not score.superseded):
            yield {"step": event.n_edits, "metric": metric, "value": float(count)}


def score_rows(event: StreamScored, cell: Cell) -> Iterator[dict[str, Any]]:
    """Means over the edits that no later edit of the stream supersedes.

    Before the first edit, over those that none will have superseded at the end.
    """
    for name in cell.protocols:
        own = [s for s in event.scores if s.protocol == name]
        current = [s for s in own if not s.superseded]
        yield {
            "checkpoint": event.n_edits,
            "n_edits": event.n_edits,
            "final": event.n_edits == cell.n_edits,
            "protocol": name,
            **{score: _mean(current, score) for score in SCORES},
            "n_scored": len(current),
            "n_superseded": len(own) - len(current),
        }


def _mean(scores: list[EditScore], name: str) -> float | None:
    values = [v for s in scores if (v := getattr(s, name)) is not None]
    return sum(values) / len(values) if values else None
