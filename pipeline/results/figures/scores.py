"""Figures of scores at the end of the stream: all editors, an ablation, a model's datasets."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from pandas import DataFrame

from pipeline.results.figures import canvas
from pipeline.results.figures.figure_data import (
    FigureData,
    Picture,
    longest_stream,
    of_stream,
    streams_of,
)
from pipeline.results.figures.style import point_handles, shown_in
from pipeline.results.tables import editor_label, stream_label


def bars(figure_data: FigureData) -> Iterator[Picture]:
    """Bars of Eff, Gen and Spe of every editor, a panel per stream."""
    figure, drawn = canvas.stream_panels(figure_data.rows, columns=1, width=7.2, height=2.6)
    for axis, here in drawn:
        done = here[here["status"] == "done"]
        labels = list(shown_in(done, figure_data.style))
        canvas.score_bars(axis, done, labels, 0.8 / 3)
        axis.set_xticks(range(len(labels)), labels)
        canvas.tilt_if_crowded(axis, labels)
        canvas.percent_axis(axis, "y", "score (%)")
    canvas.legend(figure, *drawn[0][0].get_legend_handles_labels())
    yield Picture(
        title="Scores at the end of the stream",
        text=f"Efficacy, generalization and specificity by {figure_data.protocol}; mean over "
        "seeds, bars of one standard deviation.",
        svg=canvas.rendered(figure),
    )


def frontier(figure_data: FigureData) -> Iterator[Picture]:
    """Efficacy against specificity: a point per editor, a panel per stream."""
    figure, drawn = canvas.stream_panels(figure_data.rows, columns=2, width=3.6, height=3.4)
    for axis, here in drawn:
        done = here[here["status"] == "done"]
        for label, (colour, marker) in figure_data.style.items():
            (x,), (dx,) = canvas.over_seeds(done, [label], "specificity")
            (y,), (dy,) = canvas.over_seeds(done, [label], "efficacy")
            if not (math.isnan(x) or math.isnan(y)):
                axis.errorbar(x, y, xerr=dx, yerr=dy, color=colour, marker=marker, markersize=7,
                              markeredgewidth=1.6, elinewidth=0.9, linestyle="none")  # fmt: skip
        canvas.percent_axis(axis, "x", "specificity (%)")
        canvas.percent_axis(axis, "y", "efficacy (%)")
    canvas.legend(figure, *point_handles(shown_in(figure_data.done, figure_data.style)))
    yield Picture(
        title="What an edit costs the rest of the model",
        text=f"Efficacy against specificity by {figure_data.protocol}; up and to the right is "
        "better. Bars: one standard deviation over seeds.",
        svg=canvas.rendered(figure),
    )


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
                    change = "" if place == places[0] else f" ({centre - means[0]:+.1f})"
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
    figure, (axis,) = canvas.panels(1, columns=1, width=7.2, height=0.9 + 0.3 * len(labels))
    means, spreads = [scores[n][0] for n in labels], [scores[n][1] for n in labels]
    canvas.editor_bars(axis, labels, means, spreads, style, [f"{centre:.1f}" for centre in means])
    canvas.percent_axis(axis, "x", "composite score (%)")
    axis.set_xlim(0, 106)
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
