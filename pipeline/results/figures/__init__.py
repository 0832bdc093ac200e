"""Plots of results for reports, drawn from rows of the lake's views alone.

A figure is a function from `FigureData` to pictures, none where its data is not there, and a line
in one of the two registries, in the order of the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pipeline.results.figures import (
    along,
    costs,
    optimiser_steps,
    radar,
    retention,
    scores,
    training,
)
from pipeline.results.figures.figure_data import FigureData, Picture, framed, longest_stream
from pipeline.results.figures.style import Style, styles

Figure = Callable[[FigureData], Iterable[Picture]]

# Of one model on one dataset.
FIGURES: dict[str, Figure] = {
    "frontier": scores.frontier,
    "radar": radar.radar,
    "ablation": scores.ablation,
    "along": along.scores,
    "batch_sizes": along.batch_sizes,
    "retention": retention.by_age,
    "heat_map": retention.heat_map,
    "abilities": along.downstream,
    "time": costs.time_bars,
    "total_time": costs.total_time,
    "curves": along.curves,
    "training": training.pictures,
    "optimiser_steps": optimiser_steps.pictures,
}
# Where the report shows them, if not with what happened along the stream.
OUTCOME, COST = "outcome", "cost"
PLACES = {
    "frontier": OUTCOME, "ablation": OUTCOME, "composite": OUTCOME, "radar": OUTCOME,
    "time": COST, "total_time": COST,
}  # fmt: skip
# Of one model on all its datasets.
OVERVIEWS: dict[str, Figure] = {"composite": scores.composite}

__all__ = [
    "COST",
    "FIGURES",
    "OUTCOME",
    "OVERVIEWS",
    "PLACES",
    "Figure",
    "FigureData",
    "Picture",
    "Style",
    "framed",
    "longest_stream",
    "styles",
]
