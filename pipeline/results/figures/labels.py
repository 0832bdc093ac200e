"""Names beside the points of a scatter plot, so placed that none lies on another or on a point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

SIZE = 8.0
_NEAR, _STEP, _FAR = 6.0, 7.0, 90.0  # points from a point to the nearest end of its name
_ANGLES = (0, 180, 90, 270, 30, 330, 150, 210, 60, 120, 240, 300)  # degrees, the best first
_POINT = 4.5  # half of a marker's width, in points
_ALONG = tuple(i / 24 for i in range(25))  # where a line is looked at
_LINE_FROM = 12.0  # names that are farther away have a line to their point

Point = tuple[float, float]


class Box(NamedTuple):
    """A rectangle in pixels; tens of thousands are tried, and matplotlib's own takes its time."""

    x0: float
    y0: float
    x1: float
    y1: float

    @classmethod
    def of(cls, box: Bbox) -> Box:
        """The same rectangle."""
        return cls(*map(float, box.extents))

    @property
    def centre(self) -> Point:
        """Its middle."""
        return (self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2

    @property
    def area(self) -> float:
        """In square pixels."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def padded(self, by: float) -> Box:
        """Larger on every side."""
        return Box(self.x0 - by, self.y0 - by, self.x1 + by, self.y1 + by)


def height_for(names: int) -> float:
    """Height, in inches, of a panel in which so many named points find room."""
    return 3.5 + 0.25 * max(0, names - 16)


def name_points(
    figure: Figure,
    axis: Axes,
    points: Sequence[Point],
    names: Sequence[str],
    arrows: Sequence[tuple[Point, Point]] = (),
) -> None:
    """Writes a name beside every point; the figure's layout must not change after this.

    Crowded points come first. A name for which no free place is found within the axes takes the
    one on which least lies.

    Args:
        arrows: Lines that names keep clear of, in the axes' units.
    """
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    scale = figure.dpi / 72
    where = [_pixels(axis, point) for point in points]
    half = _POINT * scale
    taken = [Box(x, y, x, y).padded(half) for x, y in where]
    lines = [(_pixels(axis, start), _pixels(axis, end)) for start, end in arrows]
    inside = Box.of(axis.get_window_extent(renderer))
    for i in sorted(range(len(names)), key=lambda i: -_crowd(where, i, 40 * scale)):
        size = axis.text(0, 0, names[i], fontsize=SIZE)
        box = size.get_window_extent(renderer)
        size.remove()
        options = list(_places(where[i], box.width, box.height, scale))
        costs = [_cost(place, where[i], taken, lines, inside) + 0.02 * n
                 for n, place in enumerate(options)]  # fmt: skip
        place = options[costs.index(min(costs))]
        taken.append(place.padded(0.5 * scale))
        centre = place.centre
        far = _distance(where[i], place) > _LINE_FROM * scale
        if far:
            lines.append((where[i], centre))
        axis.annotate(
            names[i], points[i], xycoords="data", fontsize=SIZE, ha="center", va="center",
            xytext=((centre[0] - where[i][0]) / scale, (centre[1] - where[i][1]) / scale),
            textcoords="offset points", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "#8a8a8a", "linewidth": 0.6, "shrinkA": 0,
                        "shrinkB": _POINT} if far else None,
        )  # fmt: skip


def _pixels(axis: Axes, point: Point) -> Point:
    x, y = axis.transData.transform(point)
    return float(x), float(y)


def _crowd(where: Sequence[Point], i: int, radius: float) -> int:
    return sum(math.dist(where[i], other) < radius for other in where)


def _places(at: Point, width: float, height: float, scale: float) -> Iterator[Box]:
    """Where a name of this size may stand, the nearest first."""
    for step in range(int((_FAR - _NEAR) / _STEP)):
        reach = (_NEAR + step * _STEP) * scale
        for angle in _ANGLES:
            dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            x = at[0] + dx * (reach + width / 2) if abs(dx) > 0.1 else at[0]
            y = at[1] + dy * (reach + height / 2)
            left, low = x - width / 2, y - height / 2
            yield Box(left, low, left + width, low + height)


def _cost(
    place: Box, at: Point, taken: Sequence[Box], lines: Sequence[tuple[Point, Point]], inside: Box
) -> float:  # fmt: skip
    """How much of a place is taken, or lies outside."""
    overlap = sum(_common(place, other) for other in taken)
    within = _common(place, inside) / place.area
    crossed = sum(_meets(line, place) for line in lines)
    cost = 10 * overlap + 1000 * (1 - within) + 50 * crossed
    if cost or _distance(at, place) <= _LINE_FROM:
        return cost
    through = sum(_meets((at, place.centre), other) for other in taken if not _holds(other, at))
    return 30.0 * through


def _common(a: Box, b: Box) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return width * height if width > 0 and height > 0 else 0.0


def _holds(box: Box, point: Point) -> bool:
    return box.x0 <= point[0] <= box.x1 and box.y0 <= point[1] <= box.y1


def _meets(line: tuple[Point, Point], box: Box) -> bool:
    (ax, ay), (bx, by) = line
    if max(ax, bx) < box.x0 or min(ax, bx) > box.x1 or max(ay, by) < box.y0 or min(ay, by) > box.y1:
        return False
    return any(_holds(box, (ax + (bx - ax) * t, ay + (by - ay) * t)) for t in _ALONG)


def _distance(point: Point, box: Box) -> float:
    dx = max(box.x0 - point[0], 0.0, point[0] - box.x1)
    dy = max(box.y0 - point[1], 0.0, point[1] - box.y1)
    return math.hypot(dx, dy)
