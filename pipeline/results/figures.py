"""Plots of results, as SVG or PNG bytes, from rows of the views; nothing is drawn that no row says.

Every editor has one colour and one marker in all figures of a report (Okabe-Ito colours, told
apart without colour vision; markers and line styles for print).
"""

from __future__ import annotations

import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.results.protocols import SCORE_DEFINITIONS
from pipeline.results.tables import (
    FIRST_EDITORS,
    UNEDITED,
    Stream,
    editor_label,
    stream_label,
)

Row = Mapping[str, Any]

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#B8A800", "#7B4FA3")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_REFERENCE = {UNEDITED: ("#222222", "_"), "untrained": ("#8a8a8a", "x")}
# Greys: the colours of these figures mean editors.
_BAR_COLOURS = {"efficacy": "#2b2b2b", "generalization": "#858585", "specificity": "#cccccc"}
_BAR_HATCHES = {"efficacy": "", "generalization": "", "specificity": "//"}
_STYLE = {"size": 10, "title": 11}

Look = Mapping[str, tuple[str, str]]  # editor label -> (colour, marker)


def looks(rows: Iterable[Row]) -> dict[str, tuple[str, str]]:
    """Gives every editor among `rows` its colour and marker; the references are grey."""
    found = sorted(
        {(row["editor"], row["variant"]) for row in rows},
        key=lambda e: (_place(e[0]), e),
    )
    chosen: dict[str, tuple[str, str]] = {}
    used = 0
    for editor, variant in found:
        if editor in _REFERENCE and not variant:
            chosen[editor_label(editor)] = _REFERENCE[editor]
            continue
        # Past eight editors colours repeat with the next marker, so the pair stays unique.
        marker = _MARKERS[(used + used // len(_COLOURS)) % len(_MARKERS)]
        chosen[editor_label(editor, variant)] = (_COLOURS[used % len(_COLOURS)], marker)
        used += 1
    return chosen


def score_bars(rows: Sequence[Row], look: Look, fmt: str = "svg") -> bytes:
    """Bars of Eff, Gen and Spe per editor, a panel per stream.

    Args:
        rows: final rows of `runs` of one model, dataset and protocol.
    """
    streams = streams_of(rows)
    figure, axes = _panels(len(streams), columns=1, width=7.2, height=2.6)
    for axis, stream in zip(axes, streams, strict=True):
        here = [row for row in rows if _stream(row) == stream and row["status"] == "done"]
        labels = [name for name in look if any(_label(row) == name for row in here)]
        width = 0.8 / len(_BAR_COLOURS)
        for i, (score, colour) in enumerate(_BAR_COLOURS.items()):
            means, spreads = _over_seeds(here, labels, score)
            places = [x + (i - 1) * width for x in range(len(labels))]
            axis.bar(
                places,
                means,
                width,
                yerr=[spread or math.nan for spread in spreads],
                color=colour,
                hatch=_BAR_HATCHES[score],
                edgecolor="white",
                linewidth=0.5,
                error_kw={"elinewidth": 0.9, "capsize": 2, "ecolor": "#D55E00"},
                label=SCORE_DEFINITIONS[score][0],
            )
        axis.set_xticks(range(len(labels)), labels)
        _tilt_if_crowded(axis, labels)
        _percent(axis, "y", "score (%)")
        axis.set_title(_stream_title(stream), fontsize=_STYLE["title"], loc="left")
    _legend(figure, *axes[0].get_legend_handles_labels())
    return _rendered(figure, fmt)


def retention(rows: Sequence[Row], look: Look, fmt: str = "svg") -> bytes:
    """Efficacy by edit age at the end of the stream, a line per editor and a panel per stream.

    Args:
        rows: (editor, variant, n_batches, batch_size, age, score) where age is the number of
            edits applied after the scored one's batch.
    """
    streams = streams_of(rows)
    figure, axes = _panels(len(streams), columns=2, width=3.6, height=2.9)
    for axis, stream in zip(axes, streams, strict=True):
        here = [row for row in rows if _stream(row) == stream]
        for label, (colour, marker) in look.items():
            points = sorted((r["age"], r["score"]) for r in here if _label(r) == label)
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, marker=_line_marker(marker),
                          markersize=4, linewidth=1.4)  # fmt: skip
        _percent(axis, "y", "efficacy (%)")
        axis.set_xlabel("edit age (edits applied since)")
        axis.set_title(_stream_title(stream), fontsize=_STYLE["title"], loc="left")
    shown = {_label(row) for row in rows}
    _legend(figure, *_line_handles({name: v for name, v in look.items() if name in shown}))
    return _rendered(figure, fmt)


def retention_map(rows: Sequence[Row], look: Look, fmt: str = "svg") -> bytes:
    """Efficacy over stream position and edit age, a panel per editor.

    Args:
        rows: (editor, variant, checkpoint, age, score) of one stream.
    """
    labels = [name for name in look if any(_label(row) == name for row in rows)]
    positions = sorted({row["checkpoint"] for row in rows})
    ages = sorted({row["age"] for row in rows})
    figure, axes = _panels(len(labels), columns=3, width=2.4, height=2.3, share=True)
    image = None
    for i, (axis, label) in enumerate(zip(axes, labels, strict=True)):
        grid = [[math.nan] * len(positions) for _ in ages]
        for row in rows:
            if _label(row) == label:
                grid[ages.index(row["age"])][positions.index(row["checkpoint"])] = row["score"]
        image = axis.imshow(grid, origin="lower", aspect="auto", cmap="cividis", vmin=0, vmax=100)
        axis.set_facecolor("#eeeeee")  # an age that does not exist yet
        axis.set_xticks(*_thinned(positions, 5))
        axis.set_yticks(*_thinned(ages, 6))
        axis.set_title(label, fontsize=_STYLE["title"], loc="left")
        axis.grid(False)
        if i % 3 == 0:
            axis.set_ylabel("edit age (edits)")
        if i + 3 >= len(labels):  # nothing below it, even where the last row is not full
            axis.set_xlabel("edits applied")
            axis.tick_params(labelbottom=True)
    if image is not None:
        figure.colorbar(image, ax=list(axes), label="efficacy (%)", shrink=0.8)
    return _rendered(figure, fmt)


def frontier(rows: Sequence[Row], look: Look, fmt: str = "svg") -> bytes:
    """Efficacy against specificity, a point per editor (mean, with bars of std over seeds)."""
    streams = streams_of(rows)
    figure, axes = _panels(len(streams), columns=2, width=3.6, height=3.4)
    for axis, stream in zip(axes, streams, strict=True):
        here = [row for row in rows if _stream(row) == stream and row["status"] == "done"]
        for label, (colour, marker) in look.items():
            (x,), (dx,) = _over_seeds(here, [label], "specificity")
            (y,), (dy,) = _over_seeds(here, [label], "efficacy")
            if not (math.isnan(x) or math.isnan(y)):
                axis.errorbar(x, y, xerr=dx, yerr=dy, color=colour, marker=marker, markersize=7,
                              markeredgewidth=1.6, elinewidth=0.9, linestyle="none")  # fmt: skip
        _percent(axis, "x", "specificity (%)")
        _percent(axis, "y", "efficacy (%)")
        axis.set_title(_stream_title(stream), fontsize=_STYLE["title"], loc="left")
    shown = {_label(row) for row in rows if row["status"] == "done"}
    _legend(figure, *_point_handles({name: v for name, v in look.items() if name in shown}))
    return _rendered(figure, fmt)


def cost_bars(rows: Sequence[Row], look: Look, fmt: str = "svg") -> bytes:
    """Milliseconds per edit, and apart from them the seconds of set-up, per editor.

    Args:
        rows: final rows of `runs` of one protocol and one stream.
    """
    done = [row for row in rows if row["status"] == "done"]
    figure, axes = _panels(2, columns=2, width=3.6, height=3.0)
    shown = {
        column: [
            label
            for label in look
            if any(_label(row) == label and row[column] is not None for row in done)
        ]
        for column in ("edit_ms", "train_seconds")
    }
    longest = max(map(len, shown.values()))
    for axis, column, name in (
        (axes[0], "edit_ms", "editing (ms per edit)"),
        (axes[1], "train_seconds", "set-up: training (s)"),
    ):
        labels = shown[column]
        means, spreads = _over_seeds(done, labels, column)
        axis.barh(
            range(len(labels)),
            means,
            xerr=[spread or math.nan for spread in spreads],
            color=[look[label][0] for label in labels],
            error_kw={"elinewidth": 0.9, "capsize": 2},
        )
        axis.set_yticks(range(len(labels)), labels)
        axis.set_ylim(max(longest, 1) - 0.5, -0.5)  # bars of one height in both panels
        top = max((m + s for m, s in zip(means, spreads, strict=True)), default=0.0)
        digits = 2 if top < 10 else 1
        for place, (mean, spread) in enumerate(zip(means, spreads, strict=True)):
            axis.annotate(f"{mean:.{digits}f}", (mean + spread, place), xytext=(3, 0),
                          textcoords="offset points", va="center", fontsize=8)  # fmt: skip
        axis.set_xlim(0, top * 1.22 or 1)
        axis.set_xlabel(name)
        if not labels:
            axis.text(0.5, 0.5, "no editor has this cost", ha="center", transform=axis.transAxes)
    return _rendered(figure, fmt)


def curves(rows: Sequence[Row], look: Look, metric: str, label: str, fmt: str = "svg") -> bytes:
    """One per-batch quantity over the stream (mean over seeds), a panel per stream.

    Args:
        rows: rows of `curves`.
        metric: which one, e.g. `shift_norm`.
        label: the axis label with its unit.
    """
    rows = [row for row in rows if row["metric"] == metric and row["value"] is not None]
    streams = streams_of(rows)
    figure, axes = _panels(len(streams), columns=2, width=3.6, height=2.7)
    for axis, stream in zip(axes, streams, strict=True):
        here = [row for row in rows if _stream(row) == stream]
        for name, (colour, _) in look.items():
            steps: dict[int, list[float]] = {}
            for row in here:
                if _label(row) == name:
                    steps.setdefault(row["step"], []).append(row["value"])
            points = [(step, math.fsum(v) / len(v)) for step, v in sorted(steps.items())]
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, linewidth=1.4)
        axis.set_xlabel("edits applied")
        axis.set_ylabel(label)
        axis.set_title(_stream_title(stream), fontsize=_STYLE["title"], loc="left")
    shown = {_label(row) for row in rows}
    _legend(figure, *_line_handles({n: (c, "") for n, (c, _) in look.items() if n in shown}))
    return _rendered(figure, fmt)


def _place(editor: str) -> int:
    return FIRST_EDITORS.index(editor) if editor in FIRST_EDITORS else len(FIRST_EDITORS)


def _label(row: Row) -> str:
    return editor_label(row["editor"], row["variant"])


def _stream(row: Row) -> Stream:
    return (row["n_batches"], row["batch_size"])


def streams_of(rows: Sequence[Row]) -> list[Stream]:
    """The streams among `rows`, the shortest first."""
    return sorted({_stream(row) for row in rows}, key=lambda s: (s[0] * s[1], s))


def _stream_title(stream: Stream) -> str:
    return f"{stream_label(stream)} = {stream[0] * stream[1]} edits"


def _over_seeds(
    rows: Sequence[Row], labels: Sequence[str], column: str
) -> tuple[list[float], list[float]]:
    """Mean and sample standard deviation per editor; NaN without a value, 0 for one seed."""
    means, spreads = [], []
    for label in labels:
        values = [r[column] for r in rows if _label(r) == label and r[column] is not None]
        means.append(math.fsum(values) / len(values) if values else math.nan)
        spreads.append(statistics.stdev(values) if len(values) > 1 else 0.0)
    return means, spreads


def _panels(
    n: int, *, columns: int, width: float, height: float, share: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with `n` panels; none at all becomes one empty panel."""
    n = max(n, 1)
    across = min(n, columns)
    down = math.ceil(n / across)
    figure = Figure(figsize=(max(width * across, 3.6), height * down), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False, sharex=share, sharey=share)
    axes = list(grid.flat)
    for axis in axes[n:]:
        axis.remove()
    for axis in axes[:n]:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#dddddd", linewidth=0.6)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=9)
    return figure, axes[:n]


def _percent(axis: Axes, which: str, label: str) -> None:
    axis.set(**{f"{which}lim": (-3, 106), f"{which}label": label})
    getattr(axis, f"set_{which}ticks")(range(0, 101, 20))


def _tilt_if_crowded(axis: Axes, labels: Sequence[str]) -> None:
    if sum(len(label) + 2 for label in labels) > 88:
        for text in axis.get_xticklabels():
            text.set(rotation=25, ha="right", rotation_mode="anchor")


def _thinned(values: Sequence[int], most: int) -> tuple[list[int], list[str]]:
    """At most `most` evenly spaced ticks, as (positions, labels)."""
    step = max(1, math.ceil(len(values) / most))
    places = list(range(0, len(values), step))
    return places, [str(values[i]) for i in places]


def _line_marker(marker: str) -> str:
    return "" if marker == "_" else marker


def _line_handles(look: Look) -> tuple[list[Line2D], list[str]]:
    handles = [
        Line2D([], [], color=colour, marker=_line_marker(marker), markersize=4, linewidth=1.4)
        for colour, marker in look.values()
    ]
    return handles, list(look)


def _point_handles(look: Look) -> tuple[list[Line2D], list[str]]:
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=7, markeredgewidth=1.6,
               linestyle="none")
        for colour, marker in look.values()
    ]  # fmt: skip
    return handles, list(look)


def _legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    if not labels:
        return
    # About eleven characters and a handle fit an inch at this size.
    width = max(len(label) for label in labels) * 0.075 + 0.5
    columns = max(1, min(len(labels), int(figure.get_figwidth() / width)))
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


def _rendered(figure: Figure, fmt: str) -> bytes:
    if fmt not in ("svg", "png"):
        raise ValueError(f"unknown figure format {fmt!r}; choose svg or png")
    out = io.BytesIO()
    # No date and no random ids in the file: the same rows give the same bytes.
    metadata = {"Date": None} if fmt == "svg" else {}
    with matplotlib.rc_context({"svg.hashsalt": "rledit"}):
        figure.savefig(out, format=fmt, dpi=150, metadata=metadata)
    return out.getvalue()
