"""Seconds per edit of every stream: set-up apart from editing, as the tables count them.

Set-up is what comes before the first edit: training a network, and summing key covariance of the
linear layers that the method edits. A longer stream that was scored for a shorter one answers for
it, with its whole set-up and the edits up to there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from pandas import DataFrame

from pipeline.results.figures.canvas import draw_lines, editor_bars, over_seeds, panels, rendered
from pipeline.results.figures.figure_data import FigureData, Picture, longest_stream, of_stream
from pipeline.results.figures.style import Style, shown_in
from pipeline.results.tables import UNEDITED, stream_label

SETUP, EDITING, TOTAL = "setup_per_edit", "editing_per_edit", "seconds_per_edit"
PANELS = {EDITING: "editing (s per edit)", SETUP: "set-up (s per edit)"}


def costs(figure_data: FigureData) -> DataFrame:
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
               coalesce(CASE WHEN n_batches = whole THEN edit_seconds ELSE seconds END, 0)
                   AS editing
        FROM streams JOIN spent USING (cell) LEFT JOIN so_far USING (cell, n_batches)
        ORDER BY own, editor, variant, n_batches, batch_size, seed"""
    )
    # A stream's own cell comes last, and so in place of a longer one.
    rows = rows.drop_duplicates(["label", "n_batches", "batch_size", "seed"], keep="last")
    n_edits = rows["n_batches"] * rows["batch_size"]
    setup, editing = rows["setup"] / n_edits, rows["editing"] / n_edits
    return rows.assign(**{SETUP: setup, EDITING: editing, TOTAL: setup + editing})


def time_bars(figure_data: FigureData) -> Iterator[Picture]:
    """Bars of the seconds per edit of every editor on the longest stream, set-up apart."""
    rows = costs(figure_data)
    if rows.empty:
        return
    longest = longest_stream(rows)
    yield Picture(
        title=f"Time, {stream_label(longest)}",
        text="Seconds of editing, and apart from them those of what comes before the first edit: "
        "training a network, and summing key covariance of the target modules; both divided by "
        "the edits of the stream. Times depend on the machine and on what else it does.",
        svg=draw_times(of_stream(rows, longest), figure_data.style),
    )


def draw_times(rows: DataFrame, style: Style) -> bytes:
    """A panel for editing and one for set-up, from rows of `costs` of one stream."""
    edited = rows[rows["editor"] != UNEDITED]
    timed = edited[edited[list(PANELS)].fillna(0).any(axis=1)]
    labels = list(shown_in(timed, style))
    figure, axes = panels(2, columns=2, width=3.6, height=0.9 + 0.3 * max(len(labels), 2))
    for axis, (column, name) in zip(axes, PANELS.items(), strict=True):
        means, spreads = over_seeds(edited, labels, column)
        texts = [f"{mean:.3g}" if mean > 0 else "none" for mean in means]
        editor_bars(axis, labels, means, spreads, style, texts, named=axis is axes[0])
        ends = [m + s for m, s in zip(means, spreads, strict=True)]
        top = max((end for end in ends if math.isfinite(end)), default=0.0)
        axis.set_xlim(0, top * 1.22 or 1)
        axis.set_xlabel(name)
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    return rendered(figure)


def total_time(figure_data: FigureData) -> Iterator[Picture]:
    """Seconds spent and milliseconds per edit against edits made, on the longest stream."""
    # A twentieth of the stream is one point: single batches are as noisy as the machine.
    rows = figure_data.ask(
        """
        WITH batches AS (
            SELECT e.cell, editor, variant, n_batches, batch_size, seed, step,
                   value AS seconds,
                   sum(value) OVER (PARTITION BY e.cell, variant, dataset ORDER BY step) AS so_far,
                   coalesce(c.train_seconds, 0) + coalesce(m.moments, 0) AS setup,
                   CAST(ceil(n_batches / 20) AS INTEGER) * batch_size AS width
            FROM (SELECT * FROM curves WHERE {here} AND metric = 'edit_seconds') AS e
            JOIN (SELECT DISTINCT cell, train_seconds FROM cells) AS c ON c.cell = e.cell
            LEFT JOIN (SELECT cell, max(value) AS moments FROM curves
                       WHERE metric = 'statistics_seconds' GROUP BY cell) AS m
                ON m.cell = e.cell)
        SELECT editor, variant, n_batches, batch_size, max(step) AS step,
               max(setup + so_far) AS total_seconds,
               1000 * sum(seconds) / (count(*) * batch_size) AS edit_ms
        FROM batches
        GROUP BY editor, variant, n_batches, batch_size, seed, (step - 1) // width
        ORDER BY ALL"""
    )
    if rows.empty:
        return
    longest = longest_stream(rows)
    kept = of_stream(rows[rows["editor"] != UNEDITED], longest)
    titles = {
        "total_seconds": "set-up and editing so far (s)",
        "edit_ms": "editing (ms per edit)",
    }
    if len(kept):
        yield Picture(
            title=f"Cost against edits, {stream_label(longest)}",
            text="Left: training and key covariance before the first edit, plus all editing so "
            "far. Right: what one edit takes at that point of the stream, set-up apart; a line "
            "that rises costs more the longer the stream. Logarithmic; mean over seeds.",
            svg=draw_lines(kept, titles, figure_data.style, logarithmic=titles),
        )
