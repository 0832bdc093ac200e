"""Retention along the stream: efficacy over stream position and edit age."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pipeline.results.figures.canvas import (
    TITLE_SIZE,
    longest_stream,
    panels,
    rendered,
    stream_of,
    thinned,
)
from pipeline.results.figures.figure_data import FigureData, Picture
from pipeline.results.figures.retention import efficacy_by_age
from pipeline.results.figures.style import Row, Style, label_of
from pipeline.results.tables import stream_label

_COLUMNS = 4


def pictures(figure_data: FigureData) -> Iterator[Picture]:
    """A map per editor on the longest stream, where it was scored more than once."""
    rows = efficacy_by_age(figure_data)
    if not rows:
        return
    longest = longest_stream(rows)
    mapped = [row for row in rows if stream_of(row) == longest]
    if len({row["checkpoint"] for row in mapped}) > 1:
        yield Picture(
            title=f"Retention along the stream, {stream_label(longest)}",
            text="Efficacy by stream position (across) and edit age (up); grey: no such age.",
            svg=draw(mapped, figure_data.style),
        )


def draw(rows: Sequence[Row], style: Style, fmt: str = "svg") -> bytes:
    """Efficacy over stream position and edit age, a panel per editor.

    Args:
        rows: (editor, variant, checkpoint, age, score) of one stream.
    """
    labels = [name for name in style if any(label_of(row) == name for row in rows)]
    positions = sorted({row["checkpoint"] for row in rows})
    ages = sorted({row["age"] for row in rows})
    figure, axes = panels(len(labels), columns=_COLUMNS, width=1.8, height=1.9, share=True)
    image = None
    for i, (axis, label) in enumerate(zip(axes, labels, strict=True)):
        grid = [[math.nan] * len(positions) for _ in ages]
        for row in rows:
            if label_of(row) == label:
                grid[ages.index(row["age"])][positions.index(row["checkpoint"])] = row["score"]
        image = axis.imshow(grid, origin="lower", aspect="auto", cmap="cividis", vmin=0, vmax=100)
        axis.set_facecolor("#eeeeee")  # an age that does not exist yet
        axis.set_xticks(*thinned(positions, 4))
        axis.set_yticks(*thinned(ages, 6))
        axis.set_title(label, fontsize=TITLE_SIZE, loc="left")
        axis.grid(False)
        if i % _COLUMNS == 0:
            axis.set_ylabel("edit age (edits)")
        if i + _COLUMNS >= len(labels):  # nothing below it, even where the last row is not full
            axis.set_xlabel("edits applied")
            axis.tick_params(labelbottom=True)
    if image is not None:
        figure.colorbar(image, ax=list(axes), label="efficacy (%)", shrink=0.8)
    return rendered(figure, fmt)
