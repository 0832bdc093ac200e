"""Radar plots: every score of an editor in one outline, for each length of stream."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import matplotlib
from matplotlib.lines import Line2D
from matplotlib.projections.polar import PolarAxes

from pipeline.results.figures.canvas import (
    TITLE_SIZE,
    legend,
    panels,
    rendered,
    stream_of,
    stream_title,
)
from pipeline.results.figures.costs import TOTAL, costs
from pipeline.results.figures.downstream import DOWNSTREAM, measured
from pipeline.results.figures.figure_data import FigureData, Picture
from pipeline.results.figures.style import Row, Style, label_of
from pipeline.results.tables import UNEDITED, Stream

# editor label -> stream -> axis -> percent
Shapes = Mapping[str, Mapping[Stream, Mapping[str, float]]]
SCORES = {"efficacy": "Eff", "generalization": "Gen", "specificity": "Spe"}
SPEED, DOWNSTREAM_AXIS = "speed", "ability"
LINE_STYLES = ("-", "--", "-.", ":")
FEWEST_AXES = 3


def pictures(figure_data: FigureData) -> Iterator[Picture]:
    """A panel per editor, a line per stream."""
    shapes = shapes_of(figure_data.done, measured(figure_data), costs(figure_data))
    axes = _axes(shapes)
    if len(axes) < FEWEST_AXES:
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
    rows: Sequence[Row], abilities: Sequence[Row] = (), times: Sequence[Row] = ()
) -> Shapes:
    """Means over seeds by editor, stream and axis.

    Args:
        rows: final rows of `runs` of one protocol.
        abilities: rows of `abilities.measured`.
        times: rows of `costs`.
    """
    found: dict[str, dict[Stream, dict[str, float]]] = {}
    for row in rows:
        if row["editor"] != UNEDITED:
            found.setdefault(label_of(row), {}).setdefault(stream_of(row), {})
    for label, streams in found.items():
        for stream, shape in streams.items():
            here = [r for r in rows if label_of(r) == label and stream_of(r) == stream]
            for score, name in SCORES.items():
                _put(shape, name, [r[score] for r in here])
            rivals = [r for r in times if stream_of(r) == stream and r["editor"] != UNEDITED]
            _put(shape, SPEED, _speeds(label, rivals))
            last = [
                r for r in abilities
                if label_of(r) == label and r["batch_size"] == stream[1]
                and r["step"] == stream[0] * stream[1] and DOWNSTREAM.match(r["metric"])
            ]  # fmt: skip
            # A longer stream that was scored for this one answers where it was not run itself.
            last = [r for r in last if stream_of(r) == stream] or last
            _put(shape, DOWNSTREAM_AXIS, [r["value"] for r in last])
    return found


def draw(shapes: Shapes, style: Style, fmt: str = "svg") -> bytes:
    """The radars."""
    labels = [name for name in style if name in shapes]
    names = _axes(shapes)
    streams = sorted({s for of in shapes.values() for s in of}, key=lambda s: (s[0] * s[1], s))
    angles = [2 * math.pi * i / len(names) for i in range(len(names))]
    figure, axes = panels(len(labels), columns=4, width=2.0, height=2.1, polar=True)
    figure.get_layout_engine().set(h_pad=0.12)  # type: ignore[union-attr, call-arg]
    colours = matplotlib.colormaps["cividis"]
    styles = {
        stream: (colours(0.85 * i / max(len(streams) - 1, 1)), LINE_STYLES[i % len(LINE_STYLES)])
        for i, stream in enumerate(streams)
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
        axis.tick_params(axis="x", pad=1)
        axis.set_ylim(0, 100)
        axis.set_yticks([25, 50, 75, 100], [])
        axis.grid(color="#dddddd", linewidth=0.6)
        axis.spines["polar"].set_color("#bbbbbb")
        axis.set_title(label, fontsize=TITLE_SIZE)
    handles = [Line2D([], [], color=c, linestyle=s, linewidth=1.5) for c, s in styles.values()]
    legend(figure, handles, [stream_title(stream) for stream in styles])
    return rendered(figure, fmt)


def _axes(shapes: Shapes) -> list[str]:
    """The axes that some editor has, in a fixed order."""
    found = {name for of in shapes.values() for shape in of.values() for name in shape}
    return [name for name in (*SCORES.values(), DOWNSTREAM_AXIS, SPEED) if name in found]


def _speeds(label: str, rivals: Sequence[Row]) -> list[float]:
    """Per seed, the least time per edit of all editors over this one's, in percent."""
    spent = [row[TOTAL] for row in rivals if label_of(row) == label and row[TOTAL]]
    fastest = min((row[TOTAL] for row in rivals if row[TOTAL]), default=0.0)
    return [100 * fastest / seconds for seconds in spent]


def _put(shape: dict[str, float], name: str, values: Sequence[float | None]) -> None:
    known = [value for value in values if value is not None]
    if known:
        shape[name] = math.fsum(known) / len(known)
