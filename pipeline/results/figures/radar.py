"""Radar plots: every score of an editor in one outline, for each length of stream."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from matplotlib.lines import Line2D
from matplotlib.projections.polar import PolarAxes
from pandas import DataFrame

from pipeline.results.figures.along import DOWNSTREAM, SCORES, downstream_rows
from pipeline.results.figures.canvas import (
    TITLE_SIZE,
    legend,
    mean,
    panels,
    rendered,
    stream_title,
)
from pipeline.results.figures.costs import TOTAL, costs
from pipeline.results.figures.figure_data import FigureData, Picture, of_stream
from pipeline.results.figures.style import GREY, INK, Style
from pipeline.results.tables import UNEDITED, Stream

# editor label -> stream -> axis -> percent
Shapes = Mapping[str, Mapping[Stream, Mapping[str, float]]]
SPEED, DOWNSTREAM_AXIS = "speed", "ability"
LINE_STYLES = ("-", "--", "-.", ":")
FEWEST_AXES = 3


def radar(figure_data: FigureData) -> Iterator[Picture]:
    """A panel per editor, a line per stream; one stream alone is a row of the table."""
    shapes = shapes_of(figure_data.done, downstream_rows(figure_data), costs(figure_data))
    axes = _axes(shapes)
    if len(axes) < FEWEST_AXES or len({s for of in shapes.values() for s in of}) < 2:
        return
    text = f"Eff, Gen and Spe in percent by {figure_data.protocol}"
    if SPEED in axes:
        text += (
            "; speed: time per edit, set-up included, of the fastest editor over this one's, in "
            "percent"
        )
    if DOWNSTREAM_AXIS in axes:
        text += "; ability: mean F1 of the downstream tasks after the stream"
    yield Picture(
        title="All scores at a glance",
        text=f"{text}. Larger is better; a shape that shrinks from stream to stream degrades.",
        svg=draw(shapes, figure_data.style),
    )


def shapes_of(
    rows: DataFrame, abilities: DataFrame | None = None, times: DataFrame | None = None
) -> Shapes:
    """Means over seeds by editor, stream and axis, from final rows of `runs` of one protocol."""
    found: dict[str, dict[Stream, dict[str, float]]] = {}
    edited = rows[rows["editor"] != UNEDITED]
    for (label, *where), here in edited.groupby(["label", "n_batches", "batch_size"]):
        stream = (where[0], where[1])
        shape = {name: mean(here[score].dropna()) for score, name in SCORES.items()}
        if times is not None:
            shape[SPEED] = _speed(label, of_stream(times, stream))
        if abilities is not None:
            shape[DOWNSTREAM_AXIS] = _ability(label, stream, abilities)
        known = {name: value for name, value in shape.items() if not math.isnan(value)}
        found.setdefault(label, {})[stream] = known
    return found


def draw(shapes: Shapes, style: Style) -> bytes:
    """The radars."""
    labels = [name for name in style if name in shapes]
    names = _axes(shapes)
    streams = sorted({s for of in shapes.values() for s in of}, key=lambda s: (s[0] * s[1], s))
    angles = [2 * math.pi * i / len(names) for i in range(len(names))]
    figure, axes = panels(len(labels), columns=4, width=2.0, height=2.1, polar=True)
    figure.get_layout_engine().set(h_pad=0.12)  # type: ignore[union-attr, call-arg]
    # Colours mean editors: streams are told apart by their dashes, the longest one is dark.
    styles = {
        stream: (GREY if stream != streams[-1] else INK, LINE_STYLES[i % len(LINE_STYLES)])
        for i, stream in enumerate(reversed(streams))
    }
    for axis, label in zip(axes, labels, strict=True):
        assert isinstance(axis, PolarAxes)
        axis.set_theta_zero_location("N")
        axis.set_theta_direction(-1)
        for stream, (colour, dashes) in styles.items():
            shape = shapes[label].get(stream, {})
            points = [(a, shape[name]) for a, name in zip(angles, names, strict=True)
                      if name in shape]  # fmt: skip
            if points:
                around = [*points, points[0]]
                axis.plot(*zip(*around, strict=True), color=colour, linestyle=dashes, linewidth=1.5)
                axis.fill(*zip(*points, strict=True), color=colour, alpha=0.08)
        axis.set_xticks(angles, names, fontsize=9)
        axis.tick_params(axis="x", pad=4)
        axis.set_ylim(0, 100)
        axis.set_yticks([25, 50, 75, 100], [])
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.spines["polar"].set_color("#dddddd")
        axis.set_title(label, fontsize=TITLE_SIZE, pad=10)
    handles = [Line2D([], [], color=c, linestyle=s, linewidth=1.5) for c, s in styles.values()]
    legend(figure, handles, [stream_title(stream) for stream in styles])
    return rendered(figure)


def _axes(shapes: Shapes) -> list[str]:
    """The axes that some editor has, in a fixed order."""
    found = {name for of in shapes.values() for shape in of.values() for name in shape}
    return [name for name in (*SCORES.values(), DOWNSTREAM_AXIS, SPEED) if name in found]


def _speed(label: str, times: DataFrame) -> float:
    """The least time per edit of all editors over this one's, in percent, mean over seeds."""
    spent = times[(times["editor"] != UNEDITED) & (times[TOTAL] > 0)]
    own = spent.loc[spent["label"] == label, TOTAL]
    return mean(100 * spent[TOTAL].min() / own)


def _ability(label: str, stream: Stream, abilities: DataFrame) -> float:
    """Mean F1 of the downstream tasks after the stream."""
    last = abilities[
        (abilities["label"] == label)
        & (abilities["batch_size"] == stream[1])
        & (abilities["step"] == stream[0] * stream[1])
        & abilities["metric"].str.match(DOWNSTREAM)
    ]
    # A longer stream that was scored for this one answers where it was not run itself.
    own = of_stream(last, stream)
    return mean((own if len(own) else last)["value"])
