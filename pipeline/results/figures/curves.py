"""Figures of what is measured with every batch, along the stream."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pipeline.results.figures.canvas import (
    TITLE_SIZE,
    legend,
    panels,
    rendered,
    stream_of,
    stream_title,
    streams_of,
)
from pipeline.results.figures.figure_data import FigureData, Picture
from pipeline.results.figures.style import Row, Style, label_of, line_handles, line_style, shown_in
from pipeline.results.query import quoted

METRICS = {
    "shift_norm": "‖ΔW‖ of the batch",
    "weight_change_norm": "‖W − W₀‖",
    "realised_cosine": "realised cosine",
}


def pictures(figure_data: FigureData) -> Iterator[Picture]:
    """A picture per metric that was recorded: a line per editor, a panel per stream."""
    for metric, label in METRICS.items():
        rows = figure_data.ask(
            f"""SELECT editor, variant, n_batches, batch_size, step, metric, avg(value) AS value
            FROM curves WHERE {{here}} AND metric = {quoted(metric)} AND isfinite(value)
            GROUP BY ALL ORDER BY ALL"""
        )
        if rows:
            yield Picture(
                title=f"Along the stream: {label}",
                text="Per batch of edits, mean over seeds.",
                svg=draw(rows, figure_data.style, metric, label),
            )


def draw(rows: Sequence[Row], style: Style, metric: str, label: str, fmt: str = "svg") -> bytes:
    """One per-batch quantity over the stream (mean over seeds), a panel per stream.

    Args:
        rows: rows of `curves`.
        metric: which one, e.g. `shift_norm`.
        label: the axis label with its unit.
    """
    rows = [row for row in rows if row["metric"] == metric and row["value"] is not None]
    streams = streams_of(rows)
    figure, axes = panels(len(streams), columns=2, width=3.6, height=2.7)
    for axis, stream in zip(axes, streams, strict=True):
        here = [row for row in rows if stream_of(row) == stream]
        for name, (colour, marker) in style.items():
            steps: dict[int, list[float]] = {}
            for row in here:
                if label_of(row) == name:
                    steps.setdefault(row["step"], []).append(row["value"])
            points = [(step, math.fsum(v) / len(v)) for step, v in sorted(steps.items())]
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, linewidth=1.4,
                          linestyle=line_style(colour, marker))  # fmt: skip
        axis.set_xlabel("edits applied")
        axis.set_ylabel(label)
        axis.set_title(stream_title(stream), fontsize=TITLE_SIZE, loc="left")
    legend(figure, *line_handles(shown_in(rows, style), markers=False))
    return rendered(figure, fmt)
