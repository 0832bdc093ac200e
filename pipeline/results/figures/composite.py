"""Composite score of a method over all datasets of a model: (Eff + Gen + Spe/2) / 2.5."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

from pipeline.results.figures.canvas import (
    longest_stream,
    panels,
    percent_axis,
    rendered,
    stream_of,
)
from pipeline.results.figures.figure_data import FigureData, Picture
from pipeline.results.figures.style import Row, Style, label_of
from pipeline.results.tables import stream_label


def pictures(figure_data: FigureData) -> Iterator[Picture]:
    """Bars on the longest stream, for a model with several datasets."""
    datasets = sorted({row["dataset"] for row in figure_data.done})
    if len(datasets) < 2:
        return
    longest = longest_stream(figure_data.done)
    scores = composite([row for row in figure_data.done if stream_of(row) == longest])
    if scores:
        yield Picture(
            title=f"Over {' and '.join(datasets)}, {stream_label(longest)}",
            text=f"(Eff + Gen + Spe/2) / 2.5 by {figure_data.protocol}, mean over the datasets, "
            "for methods that finished on all of them. Bars: one standard deviation over seeds.",
            svg=draw(scores, figure_data.style),
        )


def composite(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation over seeds by editor; only editors with every dataset.

    Args:
        rows: final rows of `runs` of one model, stream and protocol.
    """
    datasets = {row["dataset"] for row in rows}
    by_seed: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        parts = (row["efficacy"], row["generalization"], row["specificity"])
        if None not in parts:
            value = (parts[0] + parts[1] + 0.5 * parts[2]) / 2.5
            by_seed.setdefault((label_of(row), row["seed"]), {})[row["dataset"]] = value
    found: dict[str, list[float]] = {}
    for (label, _), values in by_seed.items():
        if set(values) == datasets:
            found.setdefault(label, []).append(math.fsum(values.values()) / len(values))
    return {
        label: (math.fsum(v) / len(v), statistics.stdev(v) if len(v) > 1 else 0.0)
        for label, v in found.items()
    }


def draw(scores: Mapping[str, tuple[float, float]], style: Style, fmt: str = "svg") -> bytes:
    """A bar per method.

    Args:
        scores: What `composite` gives.
    """
    labels = [name for name in style if name in scores]
    figure, (axis,) = panels(1, columns=1, width=7.2, height=0.9 + 0.3 * len(labels))
    means, spreads = [scores[n][0] for n in labels], [scores[n][1] for n in labels]
    axis.barh(range(len(labels)), means, xerr=[s or math.nan for s in spreads],
              color=[style[name][0] for name in labels],
              error_kw={"elinewidth": 0.9, "capsize": 2})  # fmt: skip
    for place, (mean, spread) in enumerate(zip(means, spreads, strict=True)):
        axis.annotate(f"{mean:.1f}", (mean + spread, place), xytext=(3, 0),
                      textcoords="offset points", va="center", fontsize=8)  # fmt: skip
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    percent_axis(axis, "x", "composite score (%)")
    axis.set_xlim(0, 106)
    axis.grid(axis="y", visible=False)
    return rendered(figure, fmt)
