"""Names beside the points of a scatter plot, so placed that none lies on another or on a point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

SIZE = 8.0
_NEAR, _STEP, _FAR = 6.0, 7.0, 90.0  # points from a point to the nearest end of its name
_ANGLES = (0, 180, 90, 270, 30, 330, 150, 210, 60, 120, 240, 300)  # degrees, the best first
_POINT = 4.5  # half of a marker's width, in points
_LINE_FROM = 12.0  # names that are farther away have a line to their point

Point = tuple[float, float]


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
    taken = [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in where]
    lines = [(_pixels(axis, start), _pixels(axis, end)) for start, end in arrows]
    inside = axis.get_window_extent(renderer)
    for i in sorted(range(len(names)), key=lambda i: -_crowd(where, i, 40 * scale)):
        size = axis.text(0, 0, names[i], fontsize=SIZE)
        box = size.get_window_extent(renderer)
        size.remove()
        options = list(_places(where[i], box.width, box.height, scale))
        costs = [_cost(place, where[i], taken, lines, inside) + 0.02 * n
                 for n, place in enumerate(options)]  # fmt: skip
        place = options[costs.index(min(costs))]
        taken.append(place.padded(0.5 * scale))
        centre = ((place.x0 + place.x1) / 2, (place.y0 + place.y1) / 2)
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


def _places(at: Point, width: float, height: float, scale: float) -> Iterator[Bbox]:
    """Where a name of this size may stand, the nearest first."""
    for step in range(int((_FAR - _NEAR) / _STEP)):
        reach = (_NEAR + step * _STEP) * scale
        for angle in _ANGLES:
            dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            x = at[0] + dx * (reach + width / 2) if abs(dx) > 0.1 else at[0]
            y = at[1] + dy * (reach + height / 2)
            yield Bbox.from_bounds(x - width / 2, y - height / 2, width, height)


def _cost(
    place: Bbox, at: Point, taken: Sequence[Bbox], lines: Sequence[tuple[Point, Point]],
    inside: Bbox,
) -> float:  # fmt: skip
    """How much of a place is taken, or lies outside."""
    overlap = sum(_common(place, other) for other in taken)
    within = _common(place, inside) / (place.width * place.height)
    centre = ((place.x0 + place.x1) / 2, (place.y0 + place.y1) / 2)
    crossed = sum(_meets(line, place) for line in lines)
    cost = 10 * overlap + 1000 * (1 - within) + 50 * crossed
    if cost or _distance(at, place) <= _LINE_FROM:
        return cost
    through = sum(_meets((at, centre), other) for other in taken if not _holds(other, at))
    return 30.0 * through


def _common(a: Bbox, b: Bbox) -> float:
    shared = Bbox.intersection(a, b)
    return 0.0 if shared is None else float(shared.width * shared.height)


def _holds(box: Bbox, point: Point) -> bool:
    return bool(box.x0 <= point[0] <= box.x1 and box.y0 <= point[1] <= box.y1)


def _meets(line: tuple[Point, Point], box: Bbox) -> bool:
    (ax, ay), (bx, by) = line
    steps = [i / 24 for i in range(25)]
    return any(_holds(box, (ax + (bx - ax) * t, ay + (by - ay) * t)) for t in steps)


def _distance(point: Point, box: Bbox) -> float:
    dx = max(box.x0 - point[0], 0.0, point[0] - box.x1)
    dy = max(box.y0 - point[1], 0.0, point[1] - box.y1)
    return math.hypot(dx, dy)
