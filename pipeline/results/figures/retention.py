"""Retention: efficacy by edit age at the end of the stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.results.figures.canvas import (
    TITLE_SIZE,
    legend,
    panels,
    percent_axis,
    rendered,
    stream_of,
    stream_title,
    streams_of,
)
from pipeline.results.figures.figure_data import FigureData, Picture
from pipeline.results.figures.style import (
    Row,
    Style,
    label_of,
    line_handles,
    line_marker,
    line_style,
    shown_in,
)
from pipeline.results.query import quoted
from pipeline.results.tables import Stream

_BINS = 10  # a stream of 400 batches is still a readable line


def efficacy_by_age(figure_data: FigureData) -> list[dict[str, Any]]:
    """Mean efficacy by editor, stream, checkpoint and age.

    Age counts the edits applied after the scored edit's own batch, rounded down to a tenth of the
    stream. An edit that a later one rewrites is not expected to hold, and is left out.

    Returns:
        Rows (editor, variant, n_batches, batch_size, checkpoint, age, score).
    """
    width = f"(batch_size * CAST(ceil(n_batches / {_BINS}) AS INTEGER))"
    return figure_data.ask(
        f"""
        SELECT editor, variant, n_batches, batch_size, checkpoint,
               {width} * (greatest(0, checkpoint - (batch_index + 1) * batch_size) // {width})
                   AS age,
               avg(efficacy) AS score
        FROM edits
        WHERE {{here}} AND protocol = {quoted(figure_data.protocol)} AND NOT superseded
              AND efficacy IS NOT NULL
        GROUP BY ALL ORDER BY ALL"""
    )


def pictures(figure_data: FigureData) -> Iterator[Picture]:
    """A line per editor, a panel per stream."""
    rows = efficacy_by_age(figure_data)
    last: dict[Stream, int] = {}
    for row in rows:
        last[stream_of(row)] = max(last.get(stream_of(row), 0), row["checkpoint"])
    at_end = [row for row in rows if row["checkpoint"] == last[stream_of(row)]]
    if at_end:
        yield Picture(
            title="Retention by age",
            text="Efficacy of the edits by how many edits came after them, at the end of the "
            "stream. A line that falls to the right forgets.",
            svg=draw(at_end, figure_data.style),
        )


def draw(rows: Sequence[Row], style: Style, fmt: str = "svg") -> bytes:
    """Efficacy by edit age at the end of the stream, a line per editor and a panel per stream.

    Args:
        rows: (editor, variant, n_batches, batch_size, age, score) where age is the number of
            edits applied after the scored one's batch.
    """
    streams = streams_of(rows)
    figure, axes = panels(len(streams), columns=2, width=3.6, height=2.9)
    for axis, stream in zip(axes, streams, strict=True):
        here = [row for row in rows if stream_of(row) == stream]
        for label, (colour, marker) in style.items():
            points = sorted((r["age"], r["score"]) for r in here if label_of(r) == label)
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, marker=line_marker(marker),
                          markersize=4, linewidth=1.4,
                          linestyle=line_style(colour, marker))  # fmt: skip
        percent_axis(axis, "y", "efficacy (%)")
        axis.set_xlabel("edit age (edits applied since)")
        axis.set_title(stream_title(stream), fontsize=TITLE_SIZE, loc="left")
    legend(figure, *line_handles(shown_in(rows, style)))
    return rendered(figure, fmt)
