"""Scores at the end of the stream, a group of bars per editor."""

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
    tilt_if_crowded,
)
from pipeline.results.figures.figure_data import FigureData, Picture
from pipeline.results.figures.style import Row, Style, label_of
from pipeline.results.protocols import SCORE_DEFINITIONS

# Greys: the colours of these figures mean editors.
BAR_COLOURS = {"efficacy": "#2b2b2b", "generalization": "#858585", "specificity": "#cccccc"}
BAR_HATCHES = {"efficacy": "", "generalization": "", "specificity": "//"}


def pictures(figure_data: FigureData) -> Iterator[Picture]:
    """Bars of Eff, Gen and Spe of every editor on every stream."""
    yield Picture(
        title="Scores at the end of the stream",
        text=f"Efficacy, generalization and specificity by {figure_data.protocol}; mean over "
        "seeds, bars of one standard deviation.",
        svg=draw(figure_data.rows, figure_data.style),
    )


def draw(rows: Sequence[Row], style: Style, fmt: str = "svg") -> bytes:
    """Bars of Eff, Gen and Spe per editor, a panel per stream.

    Args:
        rows: final rows of `runs` of one model, dataset and protocol.
    """
    streams = streams_of(rows)
    figure, axes = panels(len(streams), columns=1, width=7.2, height=2.6)
    for axis, stream in zip(axes, streams, strict=True):
        here = [row for row in rows if stream_of(row) == stream and row["status"] == "done"]
        labels = [name for name in style if any(label_of(row) == name for row in here)]
        width = 0.8 / len(BAR_COLOURS)
        for i, (score, colour) in enumerate(BAR_COLOURS.items()):
            means, spreads = over_seeds(here, labels, score)
            places = [x + (i - 1) * width for x in range(len(labels))]
            axis.bar(
                places,
                means,
                width,
                yerr=[spread or math.nan for spread in spreads],
                color=colour,
                hatch=BAR_HATCHES[score],
                edgecolor="white",
                linewidth=0.5,
                error_kw={"elinewidth": 0.9, "capsize": 2, "ecolor": "#D55E00"},
                label=SCORE_DEFINITIONS[score][0],
            )
        axis.set_xticks(range(len(labels)), labels)
        tilt_if_crowded(axis, labels)
        percent_axis(axis, "y", "score (%)")
        axis.set_title(stream_title(stream), fontsize=TITLE_SIZE, loc="left")
    legend(figure, *axes[0].get_legend_handles_labels())
    return rendered(figure, fmt)
