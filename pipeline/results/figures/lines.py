"""Line plots over a common axis, one panel per quantity, shared by several figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from pipeline.results.figures.canvas import TITLE_SIZE, legend, panels, percent_axis, rendered
from pipeline.results.figures.style import Style, line_handles, line_marker, line_style

_WIDTH, _COLUMNS = 7.2, 3

# quantity -> editor label -> (x, y) points; several y at one x are averaged.
Lines = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]


def draw_lines(
    lines: Lines,
    style: Style,
    *,
    x_label: str,
    y_label: str = "",
    percent: Iterable[str] = (),
    logarithmic: Iterable[str] = (),
    fmt: str = "svg",
) -> bytes:
    """A panel per quantity, a line per editor.

    Args:
        lines: The points; the quantity is the panel's title.
        percent: Quantities with an axis from 0 to 100.
        logarithmic: Quantities on a logarithmic axis.
    """
    columns = min(len(lines), _COLUMNS)
    figure, axes = panels(len(lines), columns=columns, width=_WIDTH / columns, height=2.6)
    for i, (axis, (quantity, editors)) in enumerate(zip(axes, lines.items(), strict=False)):
        for label, (colour, marker) in style.items():
            points = _means(editors.get(label, ()))
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, marker=line_marker(marker),
                          markersize=4, linewidth=1.4,
                          linestyle=line_style(colour, marker))  # fmt: skip
        _scale(axis, quantity in set(percent), quantity in set(logarithmic))
        axis.set_title(quantity, fontsize=TITLE_SIZE, loc="left")
        axis.set_ylabel(y_label if i % columns == 0 else "")
        axis.set_xlabel(x_label)
        few_ticks(axis)
    drawn = {label for editors in lines.values() for label in editors}
    legend(figure, *line_handles({n: v for n, v in style.items() if n in drawn}))
    return rendered(figure, fmt)


def few_ticks(axis: Axes) -> None:
    """Few round numbers on the x-axis, thousands as `k`."""
    axis.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: thousands(x)))


def thousands(number: float) -> str:
    """`20000` as `20k`."""
    return f"{number / 1000:g}k" if abs(number) >= 1000 else f"{number:g}"


def _scale(axis: Axes, percent: bool, logarithmic: bool) -> None:
    if percent:
        percent_axis(axis, "y", "")
    elif logarithmic:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())


def _means(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    at: dict[float, list[float]] = {}
    for x, y in points:
        if math.isfinite(y):
            at.setdefault(x, []).append(y)
    return [(x, math.fsum(ys) / len(ys)) for x, ys in sorted(at.items())]
