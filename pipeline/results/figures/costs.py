"""Seconds per edit of every stream: set-up apart from editing, as the tables count them.

Set-up is what comes before the first edit: training a network, and summing key covariance of the
linear layers that the method edits. A longer stream that was scored for a shorter one answers for
it, with its whole set-up and the edits up to there.
"""

from __future__ import annotations

from typing import Any

from pipeline.results.figures.figure_data import FigureData
from pipeline.results.figures.style import label_of

SETUP, EDITING, TOTAL = "setup_per_edit", "editing_per_edit", "seconds_per_edit"


def costs(figure_data: FigureData) -> list[dict[str, Any]]:
    """Rows (editor, variant, n_batches, batch_size, seed, `SETUP`, `EDITING`, `TOTAL`)."""
    rows = figure_data.ask(
        """
        WITH spent AS (
            SELECT c.*, coalesce(train_seconds, 0) + coalesce(moments, 0) AS setup
            FROM (SELECT cell, editor, variant, n_batches AS whole, batch_size, seed, identity,
                         train_seconds, edit_seconds
                  FROM cells WHERE {here} AND status = 'done') AS c
            LEFT JOIN (SELECT cell, max(value) AS moments FROM curves
                       WHERE metric = 'statistics_seconds' GROUP BY cell) AS m USING (cell)),
        streams AS (
            SELECT cell, whole AS n_batches FROM spent
            UNION
            SELECT cell, unnest(CAST(identity->'$.also_after' AS INTEGER[])) FROM spent),
        so_far AS (
            SELECT cell, n_batches, sum(value) AS seconds
            FROM streams JOIN (SELECT DISTINCT cell, step, batch_size, value FROM curves
                               WHERE metric = 'edit_seconds') AS e USING (cell)
            WHERE step <= n_batches * batch_size GROUP BY cell, n_batches)
        SELECT editor, variant, n_batches, batch_size, seed, n_batches = whole AS own, setup,
               CASE WHEN n_batches = whole THEN edit_seconds ELSE seconds END AS editing
        FROM streams JOIN spent USING (cell) LEFT JOIN so_far USING (cell, n_batches)
        ORDER BY own, editor, variant, n_batches, batch_size, seed"""
    )
    # A stream's own cell comes last, and so in place of a longer one.
    found = {(label_of(r), r["n_batches"], r["batch_size"], r["seed"]): r for r in rows}
    return [_per_edit(row) for row in found.values()]


def _per_edit(row: dict[str, Any]) -> dict[str, Any]:
    n_edits = row["n_batches"] * row["batch_size"]
    setup, editing = row["setup"] / n_edits, (row["editing"] or 0.0) / n_edits
    kept = {name: row[name] for name in ("editor", "variant", "n_batches", "batch_size", "seed")}
    return kept | {SETUP: setup, EDITING: editing, TOTAL: setup + editing}
