"""One HTML page that sets two grids, or a grid in two lakes, beside each other."""

from __future__ import annotations

import math
import os
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.results.figures import canvas, framed, styles
from pipeline.results.figures.figure_data import Picture
from pipeline.results.figures.findings import POINTS
from pipeline.results.figures.inline import pieces
from pipeline.results.figures.labels import height_for, name_points
from pipeline.results.figures.style import DARK
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import CellRecord
from pipeline.results.pages import render_page
from pipeline.results.protocol_captions import definition, shown_protocol
from pipeline.results.query import connect, runs
from pipeline.results.report import ReportError, no_grid
from pipeline.results.report_facts import provenance, short_hashes
from pipeline.results.tables import MEAN, MEAN_OF, editor_label, method_order
from pipeline.storage.object_store import Storage

Row = Mapping[str, Any]
SUBJECT = ("scale", "model", "dataset", "prompt", "n_batches", "batch_size")
METRICS = {"efficacy": "Eff", "generalization": "Gen", "specificity": "Spe", MEAN: "Mean",
           "edit_ms": "ms/edit"}  # fmt: skip
_SEVERAL = "\0"  # a field that has one value on either side is not matched by


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two: a grid in a lake."""

    name: str
    grid: str
    lake: Lake
    records: Sequence[CellRecord]
    rows: Sequence[Row]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A figure on both sides.

    Attributes:
        a: Mean over seeds on the first side.
        b: On the second.
        change: b − a, over the seeds that both have where there are any.
        spread: Standard deviation of the change over these seeds; None for fewer than two.
    """

    a: float | None
    b: float | None
    change: float | None
    spread: float | None

    @property
    def text(self) -> str:
        """The change as a table prints it."""
        if self.change is None:
            return "–"
        spread = "" if self.spread is None else f" ± {self.spread:.1f}"
        return f"{self.change:+.1f}{spread}"


@dataclass(frozen=True, kw_only=True)
class ComparisonLine:
    """A method on both sides, on one model, dataset and stream."""

    editor: str
    variant: str
    pairs: Mapping[str, Pair]

    @property
    def label(self) -> str:
        """The method's name."""
        return editor_label(self.editor, self.variant)


@dataclass(frozen=True, kw_only=True)
class ComparisonBlock:
    """All methods on one model, dataset and stream, by one protocol."""

    title: str
    protocol: str
    lines: Sequence[ComparisonLine]


def write_comparison(
    first: tuple[str | Lake, str],
    second: tuple[str | Lake, str],
    out: str | os.PathLike[str],
    *,
    protocols: Mapping[str, str] | None = None,
) -> str:
    """Writes the page and returns where it is.

    Methods are matched by name, models, datasets, prompts and streams by their values; in what has
    one value on either side the two may differ, and the page says so: the same grid on another
    model, data set or stream can be compared.

    Args:
        first: lake and grid of side A.
        second: of side B.
        protocols: the protocol of each dataset; else the first that both sides were scored by.

    Raises:
        ReportError: a side has no finished cell, or nothing is on both sides.
    """
    sides = (_side("A", *first), _side("B", *second))
    blocks = compare(*sides, protocols or {})
    folder, _, name = os.fspath(out).rpartition("/")
    a, b = sides
    shown = [(block, _arrows(block, f"b{i}-")) for i, block in enumerate(blocks)]
    text = render_page(
        "pipeline.results",
        "comparison",
        "html",
        title=f"{a.grid} against {b.grid}" if a.grid != b.grid else f"{a.grid} in two lakes",
        sides=sides,
        colours=DARK.items(),
        findings=[finding(block) for block in blocks],
        blocks=shown,
        metrics=METRICS,
        definitions={block.protocol: definition(block.protocol) for block in blocks},
        differences=_differences(a, b),
        alone=_alone(a, b),
        settings=_settings(a, b),
        two_lakes=str(a.lake.storage) != str(b.lake.storage),
    )
    Storage(folder or ("/" if os.fspath(out).startswith("/") else ".")).write_bytes(
        name, text.encode()
    )
    return os.fspath(out)


def _side(name: str, lake: str | Lake, grid: str) -> Side:
    lake = lake if isinstance(lake, Lake) else Lake(lake)
    records = lake.shown() if lake.exists() else []
    own = [record for record in records if record.address.grid == grid]
    if not own:
        raise ReportError(no_grid(lake, grid, {record.address.grid for record in records}))
    rows = [row for row in runs(connect(lake, own), grid) if row["status"] == "done"]
    if not rows:
        raise ReportError(f"grid {grid!r} in {lake.storage} has no finished cell to compare")
    return Side(name=name, grid=grid, lake=lake, records=own, rows=rows)


def compare(a: Side, b: Side, protocols: Mapping[str, str]) -> list[ComparisonBlock]:
    """Every method that both sides have, by model, dataset and stream.

    Raises:
        ReportError: there is none.
    """
    blocks = []
    for left, right in _matched(a, b):
        scored = [row for row in left if row["protocol"] in {r["protocol"] for r in right}]
        protocol = shown_protocol(scored, protocols)
        sides = [[row for row in rows if row["protocol"] == protocol] for rows in (left, right)]
        methods = [{(row["editor"], row["variant"]) for row in rows} for rows in sides]
        shared = sorted(methods[0] & methods[1], key=lambda method: method_order(*method))
        if protocol is None or not shared:
            continue
        lines = [_line(*method, *sides) for method in shared]
        blocks.append(
            ComparisonBlock(title=_title(left[0], right[0]), protocol=protocol, lines=lines)
        )
    if not blocks:
        raise ReportError(
            f"no method of grid {a.grid!r} ({a.lake.storage}) and of grid {b.grid!r} "
            f"({b.lake.storage}) was scored on the same model, dataset and stream by the same "
            f"protocol. A has {_has(a)}; B has {_has(b)}"
        )
    return blocks


def _matched(a: Side, b: Side) -> list[tuple[list[Row], list[Row]]]:
    """The rows of either side on each model, dataset and stream that both have."""
    free = {
        name
        for name in SUBJECT
        if len({row[name] for row in a.rows}) == len({row[name] for row in b.rows}) == 1
    }
    left, right = (_placed(side.rows, free) for side in (a, b))
    return [(left[place], right[place]) for place in left if place in right]


def _placed(rows: Sequence[Row], free: set[str]) -> dict[tuple[Any, ...], list[Row]]:
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        place = tuple(_SEVERAL if name in free else row[name] for name in SUBJECT)
        found.setdefault(place, []).append(row)
    return found


def _title(left: Row, right: Row) -> str:
    """Dataset, model and stream; both where they differ."""

    def both(texts: Sequence[str]) -> str:
        return " → ".join(dict.fromkeys(texts))

    dataset = both([row["dataset"] for row in (left, right)])
    model = both([row["model"] for row in (left, right)])
    stream = both([f"{row['n_batches']}×{row['batch_size']}" for row in (left, right)])
    return f"{dataset} on {model}, {stream}"


def _has(side: Side) -> str:
    return "; ".join(dict.fromkeys(_title(row, row) for row in side.rows))


def _line(editor: str, variant: str, left: Sequence[Row], right: Sequence[Row]) -> ComparisonLine:
    own = [
        {row["seed"]: row for row in rows if (row["editor"], row["variant"]) == (editor, variant)}
        for rows in (left, right)
    ]
    return ComparisonLine(
        editor=editor, variant=variant, pairs={metric: _pair(metric, *own) for metric in METRICS}
    )


def _pair(metric: str, left: Mapping[int, Row], right: Mapping[int, Row]) -> Pair:
    a, b = (
        {seed: value for seed, row in rows.items() if (value := _value(row, metric)) is not None}
        for rows in (left, right)
    )
    means = [math.fsum(side.values()) / len(side) if side else None for side in (a, b)]
    changes = [b[seed] - a[seed] for seed in sorted(a.keys() & b.keys())]
    change = math.fsum(changes) / len(changes) if changes else None
    if change is None and means[0] is not None and means[1] is not None:
        change = means[1] - means[0]
    spread = statistics.stdev(changes) if len(changes) > 1 else None
    return Pair(a=means[0], b=means[1], change=change, spread=spread)


def _value(row: Row, metric: str) -> float | None:
    parts = [row[name] for name in (MEAN_OF if metric == MEAN else (metric,))]
    return None if any(part is None for part in parts) else math.fsum(parts) / len(parts)


def finding(block: ComparisonBlock) -> str:
    """What differs most, as a sentence."""
    changes = {
        (line.label, metric): pair.change
        for line in block.lines
        for metric, pair in line.pairs.items()
        if metric != "edit_ms" and pair.change is not None
    }
    where = f"{block.title}, by {block.protocol}"
    if not changes:
        return f"{where}: nothing was scored on both sides."
    if not any(round(abs(change), 6) for change in changes.values()):
        return f"{where}: all scores of {_methods(len(block.lines))} are equal."
    (label, metric), most = max(changes.items(), key=lambda item: abs(item[1]))
    up, down = ([n for (n, m), c in changes.items() if m == MEAN and sign * c > POINTS]
                for sign in (1, -1))  # fmt: skip
    said = f"the largest change is {label}'s {METRICS[metric]}, {most:+.1f} points"
    return (
        f"{where}: {said}; of {_methods(len(block.lines))} {len(up)} gain and {len(down)} lose "
        f"more than {POINTS:.0f} points of the mean from A to B."
    )


def _methods(n: int) -> str:
    return f"{n} method{'' if n == 1 else 's'}"


def _arrows(block: ComparisonBlock, prefix: str) -> Any:
    """Efficacy against specificity, an arrow from A to B for every method that moved a point."""
    points: dict[str, tuple[float, float, float, float]] = {}
    for line in block.lines:
        across, up = line.pairs["specificity"], line.pairs["efficacy"]
        ends = (across.a, up.a, across.b, up.b)
        known = [value for value in ends if value is not None]
        if len(known) == len(ends):
            points[line.label] = (known[0], known[1], known[2], known[3])
    moved = {name: p for name, p in points.items() if math.dist(p[:2], p[2:]) >= 1}
    if not moved:
        return None
    style = styles(framed([{"editor": ln.editor, "variant": ln.variant} for ln in block.lines]))
    figure, (axis,) = canvas.panels(1, columns=1, width=3.6, height=height_for(len(points)))
    for label, (x, y, to_x, to_y) in points.items():
        colour, marker = style[label]
        axis.plot(to_x, to_y, color=colour, marker=marker, markersize=7, markeredgewidth=1.6)
        if label in moved:
            axis.annotate("", (to_x, to_y), (x, y),
                          arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.2,
                                      "shrinkB": 5})  # fmt: skip
    canvas.percent_axis(axis, "x", "Spe (%)")
    canvas.percent_axis(axis, "y", "Eff (%)")
    axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    canvas.settle(figure)
    heads = [(to_x, to_y) for _, _, to_x, to_y in points.values()]
    arrows = [((x, y), (to_x, to_y)) for x, y, to_x, to_y in moved.values()]
    name_points(figure, axis, heads, list(points), arrows)
    picture = Picture(
        title="From A to B",
        text="Efficacy against specificity: the arrow begins at A, the marker is B; no arrow: less "
        "than a point. Up and to the right is better.",
        svg=canvas.rendered(figure),
    )
    return {"title": picture.title, "text": picture.text, "pieces": pieces(picture.svg, prefix)}


def _differences(a: Side, b: Side) -> list[tuple[str, str, str]]:
    """What was run differently: name, on side A, on side B."""
    left, right = (dict(provenance(side.records)) for side in (a, b))
    names = ("model", "data", "prompts", "scale", "streams", "seeds", "code version",
             "threads × ranks", "versions", "training + editing + scoring")  # fmt: skip
    found = [(name, left.get(name, ""), right.get(name, "")) for name in names]
    return [(name, short_hashes(x), short_hashes(y)) for name, x, y in found if x != y]


def _settings(a: Side, b: Side) -> list[tuple[str, str, str, str]]:
    """Settings of methods in which the two differ: method, name, on side A, on side B.

    Where a method does not differ so everywhere, it says on which model, dataset and stream.
    """
    known = [
        {r.address.cell_key: _flat(r.values["resolved"].get("settings") or {}) for r in s.records}
        for s in (a, b)
    ]
    places: Counter[str] = Counter()
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for rows in _matched(a, b):
        left, right = (_by_method(*side) for side in zip(rows, known, strict=True))
        for label in (label for label in left if label in right):
            places[label] += 1
            one, two = left[label], right[label]
            for name in sorted(one.keys() | two.keys()):
                x, y = (", ".join(own.get(name, ["–"])) for own in (one, two))
                if x != y:
                    title = _title(rows[0][0], rows[1][0])
                    found.setdefault((label, name, x, y), []).append(title)
    return [
        (label if len(on) == places[label] else f"{label}: {'; '.join(on)}", name, x, y)
        for (label, name, x, y), on in found.items()
    ]


def _by_method(
    rows: Sequence[Row], known: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, list[str]]]:
    """By method and name, the values that a setting has in its cells of all seeds, each once."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        own = found.setdefault(editor_label(row["editor"], row["variant"]), {})
        for name, value in known[row["cell"]].items():
            if str(value) not in own.setdefault(name, []):
                own[name].append(str(value))
    return found


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        inner = isinstance(value, Mapping)
        found |= _flat(value, f"{before}{name}.") if inner else {f"{before}{name}": _plain(value)}
    return found


def _plain(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _alone(a: Side, b: Side) -> list[str]:
    """Methods that only one side has."""
    left, right = ({editor_label(r["editor"], r["variant"]) for r in s.rows} for s in (a, b))
    return [
        f"Only in {side.name}: {', '.join(sorted(own))}."
        for side, own in ((a, left - right), (b, right - left))
        if own
    ]
