"""Draws the scores at the end of a stream over the optimiser steps of the network's training,
for reports of grids that vary them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from pipeline.results.figures.canvas import TITLE_SIZE, legend, panels, percent_axis, rendered
from pipeline.results.figures.figure_data import FigureData, Picture
from pipeline.results.query import query, quoted
from pipeline.results.tables import stream_label

FEWEST_COUNTS = 3
SCORES = {"efficacy": "Eff", "generalization": "Gen", "specificity_self": "Spe (self)"}
MEAN = "mean"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")

Stream = tuple[int, int]
Points = Mapping[str, Sequence[tuple[int, dict[str, float]]]]
"""Method and recipe → optimiser steps with the scores after them, one per cell."""


def pictures(figure_data: FigureData) -> Iterator[Picture]:
    """A picture per stream on which a method was trained for several numbers of steps."""
    rows = _rows(figure_data)
    for stream in dict.fromkeys((row["n_batches"], row["batch_size"]) for row in rows):
        points: dict[str, list[tuple[int, dict[str, float]]]] = {}
        for row in rows:
            if (row["n_batches"], row["batch_size"]) == stream:
                scores = {name: row[name] for name in SCORES if row[name] is not None}
                line = f"{row['editor']}, {row['reference']}"
                points.setdefault(line, []).append((row["optimiser_steps"], scores))
        several = {k: v for k, v in points.items() if len({n for n, _ in v}) >= FEWEST_COUNTS}
        if several:
            yield Picture(
                title=f"What training buys, {stream_label(stream)}",
                text=f"Scores at the end of the stream by {figure_data.protocol}, and their mean, "
                "against the optimiser steps that the network was trained for, by recipe; mean "
                "over seeds. Specificity is against the unedited model's answers.",
                svg=draw(several),
            )


def _rows(figure_data: FigureData) -> list[dict[str, Any]]:
    """Cells of hypernetworks: recipe, optimiser steps made, and final scores.

    A cell is one row, at however many addresses it stands. A training step is an optimiser step per
    batch where the setting `optimise` says so. A network that was not trained has made none.
    """
    setting = "c.resolved->>'$.settings.{}'"
    batch = setting.format("optimise")
    length = f"coalesce(CAST({setting.format('trajectory_batches')} AS INTEGER), r.n_batches)"
    sql = f"""
        SELECT DISTINCT r.editor, r.n_batches, r.batch_size,
               {setting.format("reference")} AS reference,
               coalesce(t.steps, 0) * CASE WHEN {batch} = 'batch' THEN {length} ELSE 1 END
                   AS optimiser_steps, {", ".join(f"r.{name}" for name in SCORES)}, r.cell
        FROM (SELECT * FROM runs WHERE {figure_data.where} AND status = 'done' AND final
                  AND protocol = {quoted(figure_data.protocol)}) AS r
        JOIN cells AS c ON c.cell = r.cell
        LEFT JOIN (SELECT cell, max(step) AS steps FROM curves WHERE metric = 'train_loss'
                   GROUP BY cell) AS t ON t.cell = r.cell
        WHERE {batch} IS NOT NULL ORDER BY ALL"""
    return query(sql, figure_data.connection).dicts()


def draw(points: Points) -> bytes:
    """A panel per score and one for their mean, a line per method and recipe.

    The axis is logarithmic but for its beginning, where no step has been made.
    """
    columns = [*SCORES, MEAN]
    figure, axes = panels(len(columns), columns=2, width=3.6, height=2.6)
    counts = sorted({n for line in points.values() for n, _ in line})
    for axis, column in zip(axes, columns, strict=True):
        for (_, line), colour in zip(points.items(), _colours(points), strict=True):
            at = {n: _mean([_score(s, column) for m, s in line if m == n]) for n, _ in line}
            there = sorted((n, value) for n, value in at.items() if math.isfinite(value))
            if there:
                axis.plot(*zip(*there, strict=True), color=colour, marker="o", markersize=4,
                          linewidth=1.4)  # fmt: skip
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xticks(counts)
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
        percent_axis(axis, "y", "score (%)")
        axis.set_title(SCORES.get(column, column), fontsize=TITLE_SIZE, loc="left")
        axis.set_xlabel("optimiser steps")
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=4, linewidth=1.4)
        for colour in _colours(points)
    ]
    legend(figure, handles, list(points))
    return rendered(figure)


def _colours(points: Points) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(len(points))]


def _score(scores: Mapping[str, float], column: str) -> float:
    return _mean(list(scores.values())) if column == MEAN else scores.get(column, math.nan)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(known) / len(known) if known else math.nan
