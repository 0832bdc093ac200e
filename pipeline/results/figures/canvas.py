"""Canvas shared by all figures: panels, axes, lines, bars, legends, and the picture's bytes."""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox
from pandas import DataFrame

from pipeline.results.figures.figure_data import of_stream, streams_of
from pipeline.results.figures.inline import KEY, PANEL
from pipeline.results.figures.style import Style, line_handles, line_options, shown_in
from pipeline.results.protocol_captions import SCORE_DEFINITIONS
from pipeline.results.tables import Stream, stream_label

TITLE_SIZE = 11
ERROR_BARS: dict[str, Any] = {"elinewidth": 0.9, "capsize": 2}
# Greys: the colours of these figures mean editors.
_SCORE_BARS = {
    "efficacy": ("#2b2b2b", ""),
    "generalization": ("#858585", ""),
    "specificity": ("#cccccc", "//"),
}
MARKERS = 8  # at most so many along a line, roughly
_LEGEND_LINE = 0.19  # inches
_PAGE_WIDTH, _PANELS_ACROSS = 7.2, 3
_MARGIN = 3.0  # points around a panel that a page shows by itself


def stream_title(stream: Stream) -> str:
    """`n×m = edits`, for the title of a panel."""
    return f"{stream_label(stream)} = {stream[0] * stream[1]} edits"


def mean(values: Iterable[float]) -> float:
    """Mean of numbers that are there; NaN without any."""
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan


def over_seeds(
    rows: DataFrame, labels: Sequence[str], column: str
) -> tuple[list[float], list[float]]:
    """Mean and sample standard deviation per editor; NaN without a value, 0 for one seed."""
    values = [rows.loc[rows["label"] == label, column].dropna().tolist() for label in labels]
    spreads = [statistics.stdev(own) if len(own) > 1 else 0.0 for own in values]
    return [mean(own) for own in values], spreads


def panels(
    n: int,
    *,
    columns: int,
    width: float,
    height: float,
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


def stream_panels(
    rows: DataFrame, *, columns: int, width: float, height: float
) -> tuple[Figure, list[tuple[Axes, DataFrame]]]:
    """A figure with a titled panel per stream, the shortest first, and the stream's rows."""
    streams = streams_of(rows)
    figure, axes = panels(len(streams), columns=columns, width=width, height=height)
    for axis, stream in zip(axes, streams, strict=False):
        axis.set_title(stream_title(stream), fontsize=TITLE_SIZE, loc="left")
    return figure, [(axis, of_stream(rows, s)) for axis, s in zip(axes, streams, strict=False)]


def percent_axis(axis: Axes, which: str, label: str) -> None:
    """Scale axis `x` or `y` from 0 to 100 %, with room for the markers at both ends."""
    axis.set(**{f"{which}lim": (-3, 106), f"{which}label": label})
    getattr(axis, f"set_{which}ticks")(range(0, 101, 20))


def thinned(values: Sequence[int], most: int) -> tuple[list[int], list[str]]:
    """At most `most` evenly spaced ticks, as (positions, labels)."""
    step = max(1, math.ceil(len(values) / most))
    places = list(range(0, len(values), step))
    return places, [str(values[i]) for i in places]


def plot_lines(axis: Axes, rows: DataFrame, style: Style, x: str, y: str) -> None:
    """A line per editor: the mean of column `y` at each value of column `x`."""
    there = rows[rows[y].map(lambda value: value is not None and math.isfinite(value))]
    for label, look in style.items():
        means = there[there["label"] == label].groupby(x)[y].agg(mean)
        if len(means):
            axis.plot(means.index, means, markevery=max(1, round(len(means) / MARKERS)),
                      **line_options(*look))  # fmt: skip


def draw_lines(
    rows: DataFrame,
    titles: Mapping[str, str],
    style: Style,
    *,
    x: str = "step",
    x_label: str = "edits applied",
    y_label: str = "",
    percent: Collection[str] = (),
    logarithmic: Collection[str] = (),
) -> bytes:
    """A panel per quantity, a line per editor.

    Args:
        titles: The columns that are drawn, with the titles of their panels.
        percent: Columns with an axis from 0 to 100.
        logarithmic: Columns on a logarithmic axis.
    """
    columns = min(len(titles), _PANELS_ACROSS)
    figure, axes = panels(len(titles), columns=columns, width=_PAGE_WIDTH / columns, height=2.6)
    for i, (axis, (column, title)) in enumerate(zip(axes, titles.items(), strict=True)):
        plot_lines(axis, rows, style, x, column)
        if column in percent:
            percent_axis(axis, "y", "")
        elif column in logarithmic:
            log_axis(axis)
        axis.set_title(title, fontsize=TITLE_SIZE, loc="left")
        axis.set_ylabel(y_label if i % columns == 0 else "")
        axis.set_xlabel(x_label)
        axis.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
        axis.xaxis.set_major_formatter(FuncFormatter(lambda number, _: thousands(number)))
    drawn = rows[rows[list(titles)].notna().any(axis=1)]
    legend(figure, *line_handles(shown_in(drawn, style)))
    return rendered(figure)


def thousands(number: float) -> str:
    """`20000` as `20k`."""
    return f"{number / 1000:g}k" if abs(number) >= 1000 else f"{number:g}"


def log_axis(axis: Axes, which: str = "y") -> None:
    """Scale axis `x` or `y` logarithmically, with numbers as the tables print them.

    Two ticks have numbers at least: what spans less than two decades has them at 1, 2 and 5 too,
    what spans more than four at every other power of ten or fewer.
    """
    axis.set(**{f"{which}scale": "log"})
    own = getattr(axis, f"{which}axis")
    low, high = (math.log10(end) for end in sorted(own.get_view_interval()))
    decades = math.floor(high) - math.ceil(low) + 1  # powers of ten in sight
    if decades < 2:
        spread = high - low
        subs = (1, 2, 5) if spread > 0.8 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
        own.set_major_locator(LogLocator(subs=subs, numticks=50))
    else:
        own.set_major_locator(LogLocator(numticks=5))
    own.set_major_formatter(FuncFormatter(lambda number, _: thousands(number)))
    own.set_minor_formatter(NullFormatter())


def score_bars(
    axis: Axes, rows: DataFrame, labels: Sequence[str], width: float, *, horizontal: bool = False
) -> list[tuple[list[float], list[float], list[float]]]:
    """Eff, Gen and Spe side by side at each editor's place on the axis.

    Returns:
        Places, means and standard deviations of the bars, score by score.
    """
    drawn = []
    for i, (score, (colour, hatch)) in enumerate(_SCORE_BARS.items()):
        means, spreads = over_seeds(rows, labels, score)
        places = [place + (i - 1) * width for place in range(len(labels))]
        errors = [spread or math.nan for spread in spreads]
        look: dict[str, Any] = {
            "color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.5,
            "error_kw": ERROR_BARS | {"ecolor": "#D55E00"}, "label": SCORE_DEFINITIONS[score][0],
        }  # fmt: skip
        if horizontal:
            axis.barh(places, means, width, xerr=errors, **look)
        else:
            axis.bar(places, means, width, yerr=errors, **look)
        drawn.append((places, means, spreads))
    return drawn


def editor_bars(
    axis: Axes, labels: Sequence[str], means: Sequence[float], spreads: Sequence[float],
    style: Style, texts: Sequence[str],
) -> None:  # fmt: skip
    """A horizontal bar per editor with its figure behind it; a figure that is NaN has no bar."""
    axis.barh(range(len(labels)), means, xerr=[spread or math.nan for spread in spreads],
              color=[style[label][0] for label in labels], error_kw=ERROR_BARS)  # fmt: skip
    for place, (centre, spread, text) in enumerate(zip(means, spreads, texts, strict=True)):
        if centre > 0:
            at_end(axis, centre + spread, place, text)
        else:  # at the axis, wherever that begins
            axis.annotate(text, (0, place), xycoords=("axes fraction", "data"), xytext=(3, 0),
                          textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(max(len(labels), 1) - 0.5, -0.5)
    axis.grid(axis="y", visible=False)


def at_end(axis: Axes, end: float, place: float, text: str) -> None:
    """A figure behind the end of a horizontal bar."""
    axis.annotate(text, (end, place), xytext=(3, 0), textcoords="offset points", va="center",
                  fontsize=8)  # fmt: skip


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
    drawn = figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        fontsize=9,
        columnspacing=1.2,
        handletextpad=0.5,
    )
    for i, handle, text in zip(order, drawn.legend_handles, drawn.get_texts(), strict=True):
        text.set_gid(f"{KEY}-{i:03}-text")
        if handle is not None:
            handle.set_gid(f"{KEY}-{i:03}")


def settle(figure: Figure) -> None:
    """Fixes where the axes are, for what is placed in pixels after that."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def rendered(figure: Figure) -> bytes:
    """The picture as SVG; the same figure gives the same bytes, without a date or random ids.

    Text is text. ``<view>`` elements name the place of every panel and of every legend entry, for
    pages that show them apart (`inline.pieces`).
    """
    settle(figure)
    for i, axis in enumerate(figure.axes):
        axis.set_gid(f"{PANEL}-{i:03}")
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "rledit", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", dpi=150, metadata={"Date": None})
    figure.draw_without_rendering()  # places in the figure's own resolution, not in the file's
    views = [_view(figure, name, artists) for name, artists in _parts(figure).items()]
    head, tail, rest = out.getvalue().partition(b"</metadata>")
    return head + tail + "\n".join(["", *filter(None, views)]).encode() + rest


def _parts(figure: Figure) -> dict[str, list[Artist]]:
    """The artists of every panel, and the handle and text of every legend entry, by name."""
    found = [*(part for drawn in figure.legends
               for part in (*filter(None, drawn.legend_handles), *drawn.get_texts())),
             *figure.axes]  # fmt: skip
    parts: dict[str, list[Artist]] = {}
    for artist in found:
        if (name := artist.get_gid()) is not None:
            parts.setdefault(name.removesuffix("-text"), []).append(artist)
    return dict(sorted(parts.items()))


def _view(figure: Figure, name: str, artists: Sequence[Artist]) -> str:
    """Where artists lie in the SVG, whose unit is the point and whose y points down."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    box = Bbox.union([box for a in artists if (box := a.get_tightbbox(renderer)) is not None])
    scale = 72 / figure.dpi
    left, bottom, right, top = (end * scale for end in box.padded(_MARGIN / scale).extents)
    y = figure.get_figheight() * 72 - top
    place = f"{left:.1f} {y:.1f} {right - left:.1f} {top - bottom:.1f}"
    return f'<view id="{name}-view" viewBox="{place}"/>'
