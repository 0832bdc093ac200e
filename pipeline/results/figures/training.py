"""Learning curves of networks that were validated while they were trained, the best marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pipeline.results.figures.canvas import TITLE_SIZE, legend, panels, percent_axis, rendered
from pipeline.results.figures.figure_data import FigureData, Picture
from pipeline.results.query import query
from pipeline.results.tables import editor_label, stream_label

BEST = "validation_best"
# The mean decides; greys as in the bars of scores.
LINES = {
    "validation_efficacy": ("Eff", "#2b2b2b", "-"),
    "validation_generalization": ("Gen", "#858585", "--"),
    "validation_specificity_self": ("Spe (self)", "#858585", ":"),
    "validation_score": ("mean", "#0072B2", "-"),
}

_Place = tuple[int, int, int]
"""Batches, edits per batch and seed of a cell."""


def pictures(figure_data: FigureData) -> Iterator[Picture]:
    """A picture per editor with a panel per cell; none where nothing was validated."""
    sql = f"""SELECT editor, variant, n_batches, batch_size, seed, metric, step, value
        FROM curves WHERE {figure_data.where} AND metric LIKE 'validation_%' AND isfinite(value)
        ORDER BY ALL"""
    rows = query(sql, figure_data.connection).dicts()
    for label in dict.fromkeys(editor_label(row["editor"], row["variant"]) for row in rows):
        own = [row for row in rows if editor_label(row["editor"], row["variant"]) == label]
        yield Picture(
            title=f"Training of {label}",
            text=f"{_best(own)}On a stream of the validation pool, after its last batch, by "
            "teacher-forced token accuracy; specificity against the unedited model's answers. Step "
            "0 is the untrained network; the star is the state that edits.",
            svg=draw(own),
        )


def _best(rows: Sequence[dict[str, Any]]) -> str:
    """What training brought to the validation stream: the mean before it and at its best."""
    said = []
    for place in sorted({_place(row) for row in rows}):
        here = [row for row in rows if _place(row) == place]
        scores = {row["step"]: row["value"] for row in here if row["metric"] == "validation_score"}
        best = [(row["step"], row["value"]) for row in here if row["metric"] == BEST]
        if best and 0 in scores:
            step, value = best[-1]
            said.append(f"{scores[0]:.1f} % to {value:.1f} % at step {step} of {max(scores)}")
    return f"Training takes the mean from {'; from '.join(said)}. " if said else ""


def draw(rows: Sequence[dict[str, Any]]) -> bytes:
    """A panel per cell of one editor: scores of the validation stream over training steps.

    Args:
        rows: Rows of `curves` with `validation_*` metrics.
    """
    places = sorted({_place(row) for row in rows})
    figure, axes = panels(len(places), columns=3, width=3.6, height=2.7)
    for axis, place in zip(axes, places, strict=True):
        here = [row for row in rows if _place(row) == place]
        for metric, (_, colour, dashes) in LINES.items():
            points = sorted((r["step"], r["value"]) for r in here if r["metric"] == metric)
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, linestyle=dashes,
                          linewidth=1.4, marker=".", markersize=4)  # fmt: skip
        best = [(r["step"], r["value"]) for r in here if r["metric"] == BEST]
        if best:
            axis.plot(*zip(*best, strict=True), linestyle="none", marker="*", markersize=11,
                      color=LINES["validation_score"][1])  # fmt: skip
        percent_axis(axis, "y", "score (%)")
        axis.set_xlabel("training steps")
        axis.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        title = f"{stream_label(place[:2])}, seed {place[2]}"
        axis.set_title(title, fontsize=TITLE_SIZE, loc="left")
    drawn = {row["metric"] for row in rows}
    shown = [look for metric, look in LINES.items() if metric in drawn]
    handles = [Line2D([], [], color=c, linestyle=d, linewidth=1.4) for _, c, d in shown]
    star = Line2D([], [], color=LINES["validation_score"][1], marker="*", linestyle="none")
    legend(figure, [*handles, star], [*(name for name, _, _ in shown), "best"])
    return rendered(figure)


def _place(row: dict[str, Any]) -> _Place:
    return row["n_batches"], row["batch_size"], row["seed"]
