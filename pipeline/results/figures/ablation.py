"""Ablation: scores of the variants of one editor, each without one of its parts."""

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
from pipeline.results.figures.score_bars import BAR_COLOURS, BAR_HATCHES
from pipeline.results.figures.style import Row
from pipeline.results.protocols import SCORE_DEFINITIONS
from pipeline.results.tables import Stream, editor_label


def pictures(figure_data: FigureData) -> Iterator[Picture]:
    """A picture per editor that has several variants, a panel per stream."""
    for editor in sorted({row["editor"] for row in figure_data.done}):
        own = [row for row in figure_data.done if row["editor"] == editor]
        compared = {s for s in streams_of(own) if len(_variants(own, s)) > 1}
        own = [row for row in own if stream_of(row) in compared]
        if own:
            yield Picture(
                title=f"Variants of {editor}",
                text=f"Efficacy, generalization and specificity by {figure_data.protocol}, and in "
                "brackets the difference to the first variant, in points. Mean over seeds; bars of "
                "one standard deviation.",
                svg=draw(own),
            )


def _variants(rows: Sequence[Row], stream: Stream) -> set[str]:
    return {row["variant"] for row in rows if stream_of(row) == stream}


def draw(rows: Sequence[Row], fmt: str = "svg") -> bytes:
    """Bars of every variant; the one without a name, or else the first, is what is compared with.

    Args:
        rows: final rows of `runs` of one editor under one protocol.
    """
    variants = sorted({row["variant"] for row in rows})
    streams = streams_of(rows)
    height = 0.9 + 0.62 * len(variants)
    figure, axes = panels(len(streams), columns=2, width=3.6, height=height)
    for axis, stream in zip(axes, streams, strict=True):
        here = [row for row in rows if stream_of(row) == stream]
        labels = [editor_label(rows[0]["editor"], variant) for variant in variants]
        for i, (score, colour) in enumerate(BAR_COLOURS.items()):
            means, spreads = over_seeds(here, labels, score)
            places = [y + (i - 1) * 0.27 for y in range(len(labels))]
            axis.barh(places, means, 0.27, xerr=[s or math.nan for s in spreads], color=colour,
                      hatch=BAR_HATCHES[score], edgecolor="white", linewidth=0.5,
                      error_kw={"elinewidth": 0.9, "capsize": 2, "ecolor": "#D55E00"},
                      label=SCORE_DEFINITIONS[score][0])  # fmt: skip
            for place, mean, spread in zip(places, means, spreads, strict=True):
                if math.isfinite(mean):
                    change = "" if place == places[0] else f" ({mean - means[0]:+.1f})"
                    axis.annotate(f"{mean:.1f}{change}", (mean + spread, place), xytext=(3, 0),
                                  textcoords="offset points", va="center", fontsize=8)  # fmt: skip
        percent_axis(axis, "x", "score (%)")
        axis.set_xlim(0, 135)  # room for the numbers
        first = axis is axes[0] or (len(streams) > 1 and axes.index(axis) % 2 == 0)
        names = [variant or "as it is" for variant in variants]
        axis.set_yticks(range(len(names)), names if first else [""] * len(names))
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_title(stream_title(stream), fontsize=TITLE_SIZE, loc="left")
        axis.grid(axis="y", visible=False)
    legend(figure, *axes[0].get_legend_handles_labels())
    return rendered(figure, fmt)
