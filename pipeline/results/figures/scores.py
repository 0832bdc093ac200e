"""Figures of scores at the end of the stream: all editors, an ablation, a model's datasets."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping

from pandas import DataFrame

from pipeline.results.figures.canvas import (
    at_end,
    editor_bars,
    legend,
    mean,
    over_seeds,
    panels,
    percent_axis,
    rendered,
    score_bars,
    stream_panels,
    tilt_if_crowded,
)
from pipeline.results.figures.figure_data import (
    FigureData,
    Picture,
    longest_stream,
    of_stream,
    streams_of,
)
from pipeline.results.figures.style import Style, point_handles, shown_in
from pipeline.results.tables import editor_label, stream_label


def bars(figure_data: FigureData) -> Iterator[Picture]:
    """Bars of Eff, Gen and Spe of every editor on every stream."""
    yield Picture(
        title="Scores at the end of the stream",
        text=f"Efficacy, generalization and specificity by {figure_data.protocol}; mean over "
        "seeds, bars of one standard deviation.",
        svg=draw_bars(figure_data.rows, figure_data.style),
    )


def draw_bars(rows: DataFrame, style: Style) -> bytes:
    """A panel per stream, from final rows of one model, dataset and protocol."""
    figure, drawn = stream_panels(rows, columns=1, width=7.2, height=2.6)
    for axis, here in drawn:
        done = here[here["status"] == "done"]
        labels = list(shown_in(done, style))
        score_bars(axis, done, labels, 0.8 / 3)
        axis.set_xticks(range(len(labels)), labels)
        tilt_if_crowded(axis, labels)
        percent_axis(axis, "y", "score (%)")
    legend(figure, *drawn[0][0].get_legend_handles_labels())
    return rendered(figure)


def frontier(figure_data: FigureData) -> Iterator[Picture]:
    """Efficacy against specificity: a point per editor, a panel per stream."""
    yield Picture(
        title="What an edit costs the rest of the model",
        text=f"Efficacy against specificity by {figure_data.protocol}; up and to the right is "
        "better. Bars: one standard deviation over seeds.",
        svg=draw_frontier(figure_data.rows, figure_data.style),
    )


def draw_frontier(rows: DataFrame, style: Style) -> bytes:
    """Points at the mean over seeds, with bars of one standard deviation."""
    figure, drawn = stream_panels(rows, columns=2, width=3.6, height=3.4)
    done = rows[rows["status"] == "done"]
    for axis, here in drawn:
        for label, (colour, marker) in style.items():
            own = here[here["status"] == "done"]
            (x,), (dx,) = over_seeds(own, [label], "specificity")
            (y,), (dy,) = over_seeds(own, [label], "efficacy")
            if not (math.isnan(x) or math.isnan(y)):
                axis.errorbar(x, y, xerr=dx, yerr=dy, color=colour, marker=marker, markersize=7,
                              markeredgewidth=1.6, elinewidth=0.9, linestyle="none")  # fmt: skip
        percent_axis(axis, "x", "specificity (%)")
        percent_axis(axis, "y", "efficacy (%)")
    legend(figure, *point_handles(shown_in(done, style)))
    return rendered(figure)


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
                svg=draw_ablation(own.loc[[i for rows in compared for i in rows.index]]),
            )


def draw_ablation(rows: DataFrame) -> bytes:
    """Bars of an editor's variants; the one without a name, or else the first, is compared with."""
    variants = sorted(set(rows["variant"]))
    labels = [editor_label(rows["editor"].iloc[0], variant) for variant in variants]
    height = 0.9 + 0.62 * len(variants)
    figure, drawn = stream_panels(rows, columns=2, width=3.6, height=height)
    for i, (axis, here) in enumerate(drawn):
        for places, means, spreads in score_bars(axis, here, labels, 0.27, horizontal=True):
            for place, centre, spread in zip(places, means, spreads, strict=True):
                if math.isfinite(centre):
                    change = "" if place == places[0] else f" ({centre - means[0]:+.1f})"
                    at_end(axis, centre + spread, place, f"{centre:.1f}{change}")
        percent_axis(axis, "x", "score (%)")
        axis.set_xlim(0, 135)  # room for the numbers
        names = [variant or "as it is" for variant in variants]
        axis.set_yticks(range(len(names)), names if i % 2 == 0 else [""] * len(names))
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
    legend(figure, *drawn[0][0].get_legend_handles_labels())
    return rendered(figure)


def composite(figure_data: FigureData) -> Iterator[Picture]:
    """(Eff + Gen + Spe/2) / 2.5 over all datasets of a model that has several."""
    datasets = sorted(set(figure_data.done["dataset"]))
    if len(datasets) < 2:
        return
    longest = longest_stream(figure_data.done)
    scores = composite_scores(of_stream(figure_data.done, longest))
    if scores:
        yield Picture(
            title=f"Over {' and '.join(datasets)}, {stream_label(longest)}",
            text=f"(Eff + Gen + Spe/2) / 2.5 by {figure_data.protocol}, mean over the datasets, "
            "for methods that finished on all of them. Bars: one standard deviation over seeds.",
            svg=draw_composite(scores, figure_data.style),
        )


def composite_scores(rows: DataFrame) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation over seeds by editor; only editors with every dataset.

    Args:
        rows: final rows of `runs` of one model, stream and protocol.
    """
    value = (rows["efficacy"] + rows["generalization"] + 0.5 * rows["specificity"]) / 2.5
    scored = rows.assign(value=value).dropna(subset=["value"])
    found: dict[str, list[float]] = {}
    for (label, _), own in scored.groupby(["label", "seed"]):
        if own["dataset"].nunique() == rows["dataset"].nunique():
            found.setdefault(label, []).append(mean(own["value"]))
    return {
        label: (mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
        for label, values in found.items()
    }


def draw_composite(
    scores: Mapping[str, tuple[float, float]], style: Style, fmt: str = "svg"
) -> bytes:
    """A bar per method, from what `composite_scores` gives."""
    labels = [name for name in style if name in scores]
    figure, (axis,) = panels(1, columns=1, width=7.2, height=0.9 + 0.3 * len(labels))
    means, spreads = [scores[n][0] for n in labels], [scores[n][1] for n in labels]
    editor_bars(axis, labels, means, spreads, style, [f"{centre:.1f}" for centre in means])
    percent_axis(axis, "x", "composite score (%)")
    axis.set_xlim(0, 106)
    axis.grid(axis="y", visible=False)
    return rendered(figure)
