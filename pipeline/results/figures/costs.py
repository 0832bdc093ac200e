"""Seconds per edit of every stream: set-up apart from editing, as the tables count them.

Set-up is what comes before the first edit: training a network, and summing key covariance of the
linear layers that the method edits. A longer stream that was scored for a shorter one answers for
it, with its whole set-up and the edits up to there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from pandas import DataFrame

from pipeline.results.figures.canvas import (
    draw_lines,
    editor_bars,
    log_axis,
    over_seeds,
    panels,
    rendered,
)
from pipeline.results.figures.figure_data import FigureData, Picture, longest_stream, of_stream
from pipeline.results.figures.findings import extremes, flat, ranges
from pipeline.results.figures.style import Style, shown_in
from pipeline.results.tables import UNEDITED, stream_label

SETUP, EDITING, TOTAL = "setup_per_edit", "editing_per_edit", "seconds_per_edit"
PANELS = {"edit_ms": "editing (ms/edit)", "setup_s": "set-up (s)"}


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
    """Bars of editing and set-up of every editor on the longest stream, in the tables' units."""
    rows = costs(figure_data)
    if rows.empty:
        return
    longest = longest_stream(rows)
    here = of_stream(rows, longest)
    edited = here[(here["editor"] != UNEDITED) & (here[EDITING] > 0)]
    said = ""
    if edited["label"].nunique() > 1:
        times = {
            str(n): 1000 * float(v) for n, v in edited.groupby("label")[EDITING].mean().items()
        }
        least, most = extremes(times)
        said = (f"An edit takes {times[least]:.3g} ms with {least}, {times[most]:.3g} ms with "
                f"{most}. ")  # fmt: skip
    yield Picture(
        title=f"Time, {stream_label(longest)}",
        text=f"{said}Editing, and apart from it what comes before the first edit: training a "
        "network, and summing key covariance of the target modules. Logarithmic. Times depend on "
        "the machine and on what else it does.",
        svg=draw_times(here, figure_data.style),
    )


def draw_times(rows: DataFrame, style: Style) -> bytes:
    """A panel for editing and one for set-up, from rows of `costs` of one stream."""
    edited = rows[rows["editor"] != UNEDITED]
    timed = edited[edited[[SETUP, EDITING]].fillna(0).any(axis=1)]
    shown = edited.assign(
        edit_ms=1000 * edited[EDITING].astype(float),
        setup_s=edited[SETUP].astype(float) * edited["n_batches"] * edited["batch_size"],
    )
    labels = list(shown_in(timed, style))
    figure, axes = panels(2, columns=2, width=3.6, height=0.9 + 0.26 * max(len(labels), 2))
    for axis, (column, name) in zip(axes, PANELS.items(), strict=True):
        means, spreads = over_seeds(shown, labels, column)
        texts = [f"{mean:.3g}" if mean > 0 else "none" for mean in means]
        editor_bars(axis, labels, means, spreads, style, texts)
        known = [mean for mean in means if math.isfinite(mean) and mean > 0]
        if known:
            axis.set_xlim(min(known) / 2, max(known) * (max(known) / min(known)) ** 0.25 * 2)
            log_axis(axis, "x")
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
        "edit_ms": "editing (ms/edit)",
    }
    found = ranges(kept, "step", "edit_ms")
    said = ""
    if found and flat(found, percent=False):
        del titles["edit_ms"]
        said = "What an edit takes does not depend on how many came before it. "
    if len(kept):
        right = (
            ""
            if said
            else (
                " Right: what one edit takes at that point of the stream, set-up apart; a line "
                "that rises costs more the longer the stream."
            )
        )
        yield Picture(
            title=f"Cost against edits, {stream_label(longest)}",
            text=f"{_paid_back(kept)}{said}Training and key covariance before the first edit, plus "
            f"all editing so far.{right} Logarithmic; mean over seeds.",
            svg=draw_lines(kept, titles, figure_data.style, logarithmic=titles),
        )  # fmt: skip


def _paid_back(rows: DataFrame) -> str:
    """Who has spent least and most by the end, set-up included."""
    last = rows[rows["step"] == rows["step"].max()].groupby("label")["total_seconds"].mean()
    if len(last) < 2:
        return ""
    spent = {str(label): float(value) for label, value in last.items()}
    least, most = extremes(spent)
    return (f"All in all the stream takes {spent[least]:.3g} s with {least} and "
            f"{spent[most]:.3g} s with {most}. ")  # fmt: skip
