"""Cost against edits: set-up first, then every edit's time on top of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.results.figures.canvas import longest_stream, stream_of
from pipeline.results.figures.figure_data import FigureData, Picture
from pipeline.results.figures.lines import draw_lines
from pipeline.results.figures.style import Row, Style, label_of
from pipeline.results.tables import UNEDITED, stream_label

TOTAL = "set-up and editing so far (s)"
EACH = "editing (ms per edit)"


def pictures(figure_data: FigureData) -> Iterator[Picture]:
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
    if not rows:
        return
    longest = longest_stream(rows)
    kept = [row for row in rows if stream_of(row) == longest and row["editor"] != UNEDITED]
    if kept:
        yield Picture(
            title=f"Cost against edits, {stream_label(longest)}",
            text="Left: training and key covariance before the first edit, plus all editing so "
            "far. Right: what one edit takes at that point of the stream, set-up apart; a line "
            "that rises costs more the longer the stream. Logarithmic; mean over seeds.",
            svg=draw(kept, figure_data.style),
        )


def draw(rows: Sequence[Row], style: Style, fmt: str = "svg") -> bytes:
    """Both panels.

    Args:
        rows: (editor, variant, step, total_seconds, edit_ms).
    """
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {TOTAL: {}, EACH: {}}
    for row in rows:
        lines[TOTAL].setdefault(label_of(row), []).append((row["step"], row["total_seconds"]))
        lines[EACH].setdefault(label_of(row), []).append((row["step"], row["edit_ms"]))
    return draw_lines(lines, style, x_label="edits applied", logarithmic=lines, fmt=fmt)
