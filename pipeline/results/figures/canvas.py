"""Canvas shared by all figures: panels, axes, legends, and the bytes of the picture."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.results.figures.style import Row, label_of
from pipeline.results.tables import Stream, stream_label

TITLE_SIZE = 11
_LEGEND_LINE = 0.19  # inches


def stream_of(row: Row) -> Stream:
    """The stream of a row, as (batches, edits per batch)."""
    return (row["n_batches"], row["batch_size"])


def streams_of(rows: Sequence[Row]) -> list[Stream]:
    """The streams among `rows`, the shortest first."""
    return sorted({stream_of(row) for row in rows}, key=lambda s: (s[0] * s[1], s))


def longest_stream(rows: Sequence[Row]) -> Stream:
    """The stream of most edits; among several of these the one with most editors."""

    def size(stream: Stream) -> tuple[int, int]:
        editors = {label_of(row) for row in rows if stream_of(row) == stream}
        return (stream[0] * stream[1], len(editors))

    return max(streams_of(rows), key=size)


def stream_title(stream: Stream) -> str:
    """`n×m = edits`, for the title of a panel."""
    return f"{stream_label(stream)} = {stream[0] * stream[1]} edits"


def over_seeds(
    rows: Sequence[Row], labels: Sequence[str], column: str
) -> tuple[list[float], list[float]]:
    """Mean and sample standard deviation per editor; NaN without a value, 0 for one seed."""
    means, spreads = [], []
    for label in labels:
        values = [r[column] for r in rows if label_of(r) == label and r[column] is not None]
        means.append(math.fsum(values) / len(values) if values else math.nan)
        spreads.append(statistics.stdev(values) if len(values) > 1 else 0.0)
    return means, spreads


def panels(
    n: int,
    *,
    columns: int,
    width: float,
    height: float,
    share: bool = False,
    polar: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure with `n` panels; none at all becomes one empty panel."""
    n = max(n, 1)
    across = min(n, columns)
    down = math.ceil(n / across)
    figure = Figure(figsize=(max(width * across, 3.6), height * down), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        down,
        across,
        squeeze=False,
        sharex=share,
        sharey=share,
        subplot_kw={"projection": "polar"} if polar else {},
    )
    axes = list(grid.flat)
    for axis in axes[n:]:
        axis.remove()
    for axis in () if polar else axes[:n]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=9)
    return figure, axes[:n]


def percent_axis(axis: Axes, which: str, label: str) -> None:
    """Scale axis `x` or `y` from 0 to 100 %, with room for the markers at both ends."""
    axis.set(**{f"{which}lim": (-3, 106), f"{which}label": label})
    getattr(axis, f"set_{which}ticks")(range(0, 101, 20))


def tilt_if_crowded(axis: Axes, labels: Sequence[str]) -> None:
    """Tilt the labels below an axis where they would run into each other."""
    if sum(len(label) + 2 for label in labels) > 88:
        for text in axis.get_xticklabels():
            text.set(rotation=25, ha="right", rotation_mode="anchor")


def thinned(values: Sequence[int], most: int) -> tuple[list[int], list[str]]:
    """At most `most` evenly spaced ticks, as (positions, labels)."""
    step = max(1, math.ceil(len(values) / most))
    places = list(range(0, len(values), step))
    return places, [str(values[i]) for i in places]


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """One legend above all panels, read along the lines."""
    if not labels:
        return
    # About eleven characters and a handle fit an inch at this size.
    width = max(len(label) for label in labels) * 0.075 + 0.5
    most = max(1, min(len(labels), int(figure.get_figwidth() / width)))
    lines = math.ceil(len(labels) / most)
    columns = math.ceil(len(labels) / lines)  # lines of equal length
    figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * (lines - 1))
    # matplotlib fills a legend column by column; reading goes along the lines.
    order = [i for start in range(columns) for i in range(start, len(labels), columns)]
    figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        fontsize=9,
        columnspacing=1.2,
        handletextpad=0.5,
    )


def rendered(figure: Figure, fmt: str) -> bytes:
    """The picture as `svg` or `png`; the same figure gives the same bytes.

    Raises:
        ValueError: The format is another.
    """
    if fmt not in ("svg", "png"):
        raise ValueError(f"unknown figure format {fmt!r}; choose svg or png")
    out = io.BytesIO()
    # No date and no random ids in the file.
    metadata = {"Date": None} if fmt == "svg" else {}
    with matplotlib.rc_context({"svg.hashsalt": "rledit"}):
        figure.savefig(out, format=fmt, dpi=150, metadata=metadata)
    return out.getvalue()
