"""Plots of results for reports, drawn from rows of the lake's views alone.

A figure is a file with `pictures(figure_data)`, which yields none where its data is not there, and
a line in one of the two registries, in the order of the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pipeline.results.figures import (
    ablation,
    along,
    batch_sizes,
    composite,
    curves,
    downstream,
    frontier,
    heat_map,
    optimiser_steps,
    radar,
    retention,
    score_bars,
    time_bars,
    total_time,
    training,
)
from pipeline.results.figures.canvas import longest_stream, streams_of
from pipeline.results.figures.figure_data import FigureData, Picture
from pipeline.results.figures.style import Style, styles

Figure = Callable[[FigureData], Iterable[Picture]]

# Of one model on one dataset.
FIGURES: dict[str, Figure] = {
    "scores": score_bars.pictures,
    "frontier": frontier.pictures,
    "radar": radar.pictures,
    "ablation": ablation.pictures,
    "along": along.pictures,
    "batch_sizes": batch_sizes.pictures,
    "retention": retention.pictures,
    "heat_map": heat_map.pictures,
    "abilities": downstream.pictures,
    "time": time_bars.pictures,
    "total_time": total_time.pictures,
    "curves": curves.pictures,
    "training": training.pictures,
    "optimiser_steps": optimiser_steps.pictures,
}
# Of one model on all its datasets.
OVERVIEWS: dict[str, Figure] = {"composite": composite.pictures}

__all__ = [
    "FIGURES",
    "OVERVIEWS",
    "Figure",
    "FigureData",
    "Picture",
    "Style",
    "longest_stream",
    "streams_of",
    "styles",
]
