"""Frontier: efficacy against specificity, a point per editor."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pipeline.results.figures.canvas import (
    TITLE_SIZE,
    legend,
    over_seeds,
    panels,
    percent_axis,
    rendered,
    stream_of,
    stream_title,
    streams_of,
)
from pipeline.results.figures.figure_data import FigureData, Picture
from pipeline.results.figures.style import Row, Style, point_handles, shown_in


def pictures(figure_data: FigureData) -> Iterator[Picture]:
    """A point per editor, a panel per stream."""
    yield Picture(
        title="What an edit costs the rest of the model",
        text=f"Efficacy against specificity by {figure_data.protocol}; up and to the right is "
        "better. Bars: one standard deviation over seeds.",
        svg=draw(figure_data.rows, figure_data.style),
    )


def draw(rows: Sequence[Row], style: Style, fmt: str = "svg") -> bytes:
    """Efficacy against specificity, a point per editor (mean, with bars of std over seeds)."""
    streams = streams_of(rows)
    figure, axes = panels(len(streams), columns=2, width=3.6, height=3.4)
    for axis, stream in zip(axes, streams, strict=True):
        here = [row for row in rows if stream_of(row) == stream and row["status"] == "done"]
        for label, (colour, marker) in style.items():
            (x,), (dx,) = over_seeds(here, [label], "specificity")
            (y,), (dy,) = over_seeds(here, [label], "efficacy")
            if not (math.isnan(x) or math.isnan(y)):
                axis.errorbar(x, y, xerr=dx, yerr=dy, color=colour, marker=marker, markersize=7,
                              markeredgewidth=1.6, elinewidth=0.9, linestyle="none")  # fmt: skip
        percent_axis(axis, "x", "specificity (%)")
        percent_axis(axis, "y", "efficacy (%)")
        axis.set_title(stream_title(stream), fontsize=TITLE_SIZE, loc="left")
    done = [row for row in rows if row["status"] == "done"]
    legend(figure, *point_handles(shown_in(done, style)))
    return rendered(figure, fmt)
