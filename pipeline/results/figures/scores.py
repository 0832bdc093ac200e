"""Figures of scores at the end of the stream: all editors, an ablation, a model's datasets."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping

from pandas import DataFrame

from pipeline.results.figures import canvas
from pipeline.results.figures.figure_data import (
    FigureData,
    Picture,
    longest_stream,
    of_stream,
    streams_of,
)
from pipeline.results.figures.findings import listed
from pipeline.results.figures.labels import height_for, name_points
from pipeline.results.figures.style import shown_in
from pipeline.results.tables import UNEDITED, Stream, editor_label, stream_label

_Point = tuple[float, float, float, float]  # specificity, efficacy, and their spreads


def frontier(figure_data: FigureData) -> Iterator[Picture]:
    """Efficacy against specificity: a named point per editor, a panel per stream."""
    streams = {stream: _points(figure_data, stream) for stream in streams_of(figure_data.rows)}
    streams = {stream: points for stream, points in streams.items() if len(points) > 1}
    if not streams:
        return
    height = height_for(max(map(len, streams.values())))
    figure, axes = canvas.panels(len(streams), columns=2, width=3.6, height=height)
    for axis, (stream, points) in zip(axes, streams.items(), strict=True):
        axis.set_title(canvas.stream_title(stream), fontsize=canvas.TITLE_SIZE, loc="left")
        for label, (x, y, dx, dy) in points.items():
            colour, marker = figure_data.style[label]
            axis.errorbar(x, y, xerr=dx or None, yerr=dy or None, color=colour, marker=marker,
                          markersize=7, markeredgewidth=1.6, elinewidth=0.9,
                          linestyle="none")  # fmt: skip
        canvas.percent_axis(axis, "x", "Spe (%)")
        canvas.percent_axis(axis, "y", "Eff (%)")
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
    canvas.settle(figure)
    for axis, points in zip(axes, streams.values(), strict=True):
        places = [(x, y) for x, y, _, _ in points.values()]
        name_points(figure, axis, places, list(points))
    yield Picture(
        title="What an edit costs the rest of the model",
        text=f"{_undominated(streams)} Efficacy against specificity by "
        f"{figure_data.protocol}; up and to the right is better"
        f"{'; bars: one standard deviation over seeds' if _spread(streams) else ''}.",
        svg=canvas.rendered(figure),
    )


def _points(figure_data: FigureData, stream: Stream) -> dict[str, _Point]:
    """Specificity and efficacy of every editor that has both, with their spreads."""
    done = of_stream(figure_data.done, stream)
    found = {}
    for label in shown_in(done, figure_data.style):
        (x,), (dx,) = canvas.over_seeds(done, [label], "specificity")
        (y,), (dy,) = canvas.over_seeds(done, [label], "efficacy")
        if not (math.isnan(x) or math.isnan(y)):
            found[label] = (x, y, dx, dy)
    return found


def _undominated(streams: Mapping[Stream, Mapping[str, _Point]]) -> str:
    """Which methods no other one beats in both scores, on the longest stream that is drawn."""
    stream = list(streams)[-1]
    edited = {k: v for k, v in streams[stream].items() if k != editor_label(UNEDITED)}
    best = [
        name
        for name, (x, y, *_) in edited.items()
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b, *_ in edited.values())
    ]
    of = f" after {stream_label(stream)}" if len(streams) > 1 else ""
    if len(best) == len(edited):
        return f"No method is ahead of another in both scores{of}."
    verb = "is" if len(best) == 1 else "are"
    return f"Of {len(edited)} methods {listed(best)} {verb} not behind another in both scores{of}."


def _spread(streams: Mapping[Stream, Mapping[str, _Point]]) -> bool:
    return any(dx or dy for points in streams.values() for *_, dx, dy in points.values())


def ablation(figure_data: FigureData) -> Iterator[Picture]:
    """A picture per editor that has several variants, a panel per stream."""
    for editor, own in figure_data.done.groupby("editor"):
        compared = [of_stream(own, stream) for stream in streams_of(own)]
        compared = [rows for rows in compared if rows["variant"].nunique() > 1]
        if compared:
            yield Picture(
                title=f"Variants of {editor}",
                text=f"Efficacy, generalization and specificity by {figure_data.protocol}, and in "
                "brackets the difference to the first variant, in points. Mean over seeds; bars of "
                "one standard deviation.",
                svg=_draw_ablation(own.loc[[i for rows in compared for i in rows.index]]),
            )


def _draw_ablation(rows: DataFrame) -> bytes:
    """Bars of an editor's variants; the one without a name, or else the first, is compared with."""
    variants = sorted(set(rows["variant"]))
    labels = [editor_label(rows["editor"].iloc[0], variant) for variant in variants]
    height = 0.9 + 0.62 * len(variants)
    figure, drawn = canvas.stream_panels(rows, columns=2, width=3.6, height=height)
    for i, (axis, here) in enumerate(drawn):
        for places, means, spreads in canvas.score_bars(axis, here, labels, 0.27, horizontal=True):
            for place, centre, spread in zip(places, means, spreads, strict=True):
                if math.isfinite(centre):
                    compared = place != places[0] and math.isfinite(means[0])
                    change = f" ({centre - means[0]:+.1f})" if compared else ""
                    canvas.at_end(axis, centre + spread, place, f"{centre:.1f}{change}")
        canvas.percent_axis(axis, "x", "score (%)")
        axis.set_xlim(0, 135)  # room for the numbers
        names = [variant or "as it is" for variant in variants]
        axis.set_yticks(range(len(names)), names if i % 2 == 0 else [""] * len(names))
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
    canvas.legend(figure, *drawn[0][0].get_legend_handles_labels())
    return canvas.rendered(figure)


def composite(figure_data: FigureData) -> Iterator[Picture]:
    """(Eff + Gen + Spe/2) / 2.5 over all datasets of a model that has several, a bar per method."""
    done, style = figure_data.done, figure_data.style
    datasets = sorted(set(done["dataset"]))
    longest = longest_stream(done) if len(datasets) > 1 else None
    scores = {} if longest is None else composite_scores(of_stream(done, longest))
    if longest is None or not scores:
        return
    labels = [name for name in style if name in scores]
    figure, (axis,) = canvas.panels(1, columns=1, width=4.4, height=0.9 + 0.3 * len(labels))
    means, spreads = [scores[n][0] for n in labels], [scores[n][1] for n in labels]
    canvas.editor_bars(axis, labels, means, spreads, style, [f"{centre:.1f}" for centre in means])
    canvas.percent_axis(axis, "x", "composite score (%)")
    axis.set_xlim(0, 112)
    axis.grid(axis="y", visible=False)
    yield Picture(
        title=f"Over {' and '.join(datasets)}, {stream_label(longest)}",
        text=f"(Eff + Gen + Spe/2) / 2.5 by {figure_data.protocol}, mean over the datasets, "
        "for methods that finished on all of them. Bars: one standard deviation over seeds.",
        svg=canvas.rendered(figure),
    )


def composite_scores(rows: DataFrame) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation over seeds by editor; only editors with every dataset."""
    value = (rows["efficacy"] + rows["generalization"] + 0.5 * rows["specificity"]) / 2.5
    scored = rows.assign(value=value).dropna(subset=["value"])
    found: dict[str, list[float]] = {}
    for (label, _), own in scored.groupby(["label", "seed"]):
        if own["dataset"].nunique() == rows["dataset"].nunique():
            found.setdefault(label, []).append(canvas.mean(own["value"]))
    return {
        label: (canvas.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
        for label, values in found.items()
    }
