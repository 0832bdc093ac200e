"""Scores along the stream, at every point where everything edited so far was scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.results.figures.canvas import longest_stream, stream_of, streams_of
from pipeline.results.figures.figure_data import FigureData, Picture
from pipeline.results.figures.lines import draw_lines
from pipeline.results.figures.style import Row, Style, label_of
from pipeline.results.protocols import SCORE_DEFINITIONS
from pipeline.results.query import quoted
from pipeline.results.tables import stream_label

SCORES = ("efficacy", "generalization", "specificity")


def pictures(figure_data: FigureData) -> Iterator[Picture]:
    """Eff, Gen and Spe against edits on the longest stream that was scored more than once."""
    rows = figure_data.ask(
        f"""SELECT editor, variant, n_batches, batch_size, n_edits, {", ".join(SCORES)}
        FROM runs WHERE {{here}} AND protocol = {quoted(figure_data.protocol)} ORDER BY ALL"""
    )
    several = {s for s in streams_of(rows) if len({r["n_edits"] for r in _of(rows, s)}) > 1}
    if several:
        stream = longest_stream([row for row in rows if stream_of(row) in several])
        yield Picture(
            title=f"Scores along the stream, {stream_label(stream)}",
            text=f"Mean over all edits made so far, by {figure_data.protocol}, mean over seeds.",
            svg=draw(_of(rows, stream), figure_data.style),
        )


def draw(rows: Sequence[Row], style: Style, fmt: str = "svg") -> bytes:
    """A panel per score, a line per editor.

    Args:
        rows: rows of `runs` of one stream, all checkpoints.
    """
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for score in SCORES:
        panel = lines.setdefault(SCORE_DEFINITIONS[score][0], {})
        for row in rows:
            if row[score] is not None:
                panel.setdefault(label_of(row), []).append((row["n_edits"], row[score]))
    return draw_lines(
        lines, style, x_label="edits applied", y_label="score (%)", percent=lines, fmt=fmt
    )


def _of(rows: Sequence[Row], stream: tuple[int, int]) -> list[Row]:
    return [row for row in rows if stream_of(row) == stream]
