"""Time of editing, and apart from it the time of set-up."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pipeline.results.figures.canvas import longest_stream, over_seeds, panels, rendered, stream_of
from pipeline.results.figures.costs import EDITING, SETUP, costs
from pipeline.results.figures.figure_data import FigureData, Picture
from pipeline.results.figures.style import Row, Style, label_of, shown_in
from pipeline.results.tables import UNEDITED, stream_label

PANELS = {EDITING: "editing (s per edit)", SETUP: "set-up (s per edit)"}


def pictures(figure_data: FigureData) -> Iterator[Picture]:
    """Bars per editor on the longest stream."""
    rows = costs(figure_data)
    if not rows:
        return
    longest = longest_stream(rows)
    yield Picture(
        title=f"Time, {stream_label(longest)}",
        text="Seconds of editing, and apart from them those of what comes before the first edit: "
        "training a network, and summing key covariance of the target modules; both divided by "
        "the edits of the stream. Times depend on the machine and on what else it does.",
        svg=draw([row for row in rows if stream_of(row) == longest], figure_data.style),
    )


def draw(rows: Sequence[Row], style: Style, fmt: str = "svg") -> bytes:
    """Seconds per edit of editing, and apart from them those of set-up, per editor.

    Args:
        rows: Rows of `costs` of one stream.
    """
    edited = [row for row in rows if row["editor"] != UNEDITED]
    labels = [name for name in shown_in(edited, style) if _costs_time(edited, name)]
    figure, axes = panels(2, columns=2, width=3.6, height=0.9 + 0.3 * max(len(labels), 2))
    for axis, (column, name) in zip(axes, PANELS.items(), strict=True):
        means, spreads = over_seeds(edited, labels, column)
        axis.barh(
            range(len(labels)),
            means,
            xerr=[spread or math.nan for spread in spreads],
            color=[style[label][0] for label in labels],
            error_kw={"elinewidth": 0.9, "capsize": 2},
        )
        axis.set_yticks(range(len(labels)), labels if axis is axes[0] else [""] * len(labels))
        axis.set_ylim(max(len(labels), 1) - 0.5, -0.5)
        ends = [m + s for m, s in zip(means, spreads, strict=True)]
        top = max((end for end in ends if math.isfinite(end)), default=0.0)
        for place, (mean, end) in enumerate(zip(means, ends, strict=True)):
            known = math.isfinite(mean) and mean > 0
            axis.annotate(f"{mean:.3g}" if known else "none", (end if known else 0, place),
                          xytext=(3, 0), textcoords="offset points", va="center",
                          fontsize=8)  # fmt: skip
        axis.set_xlim(0, top * 1.22 or 1)
        axis.set_xlabel(name)
        axis.grid(axis="y", visible=False)
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    return rendered(figure, fmt)


def _costs_time(rows: Sequence[Row], label: str) -> bool:
    return any(row[column] for row in rows if label_of(row) == label for column in PANELS)
