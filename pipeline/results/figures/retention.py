"""Efficacy by edit age at the end of the stream: who forgets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.results.figures.ages import efficacy_by_age
from pipeline.results.figures.canvas import (
    TITLE_SIZE,
    legend,
    panels,
    percent_axis,
    rendered,
    stream_of,
    stream_title,
    streams_of,
)
from pipeline.results.figures.look import (
    Look,
    Row,
    label_of,
    line_handles,
    line_marker,
    line_style,
    shown_in,
)
from pipeline.results.figures.subject import Picture, Subject
from pipeline.results.tables import Stream


def pictures(subject: Subject) -> Iterator[Picture]:
    """A line per editor, a panel per stream."""
    rows = efficacy_by_age(subject)
    last: dict[Stream, int] = {}
    for row in rows:
        last[stream_of(row)] = max(last.get(stream_of(row), 0), row["checkpoint"])
    at_end = [row for row in rows if row["checkpoint"] == last[stream_of(row)]]
    if at_end:
        yield Picture(
            title="Retention by age",
            text="Efficacy of the edits by how many edits came after them, at the end of the "
            "stream. A line that falls to the right forgets.",
            svg=draw(at_end, subject.look),
        )


def draw(rows: Sequence[Row], look: Look, fmt: str = "svg") -> bytes:
    """Efficacy by edit age at the end of the stream, a line per editor and a panel per stream.

    Args:
        rows: (editor, variant, n_batches, batch_size, age, score) where age is the number of
            edits applied after the scored one's batch.
    """
    streams = streams_of(rows)
    figure, axes = panels(len(streams), columns=2, width=3.6, height=2.9)
    for axis, stream in zip(axes, streams, strict=True):
        here = [row for row in rows if stream_of(row) == stream]
        for label, (colour, marker) in look.items():
            points = sorted((r["age"], r["score"]) for r in here if label_of(r) == label)
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, marker=line_marker(marker),
                          markersize=4, linewidth=1.4,
                          linestyle=line_style(colour, marker))  # fmt: skip
        percent_axis(axis, "y", "efficacy (%)")
        axis.set_xlabel("edit age (edits applied since)")
        axis.set_title(stream_title(stream), fontsize=TITLE_SIZE, loc="left")
    legend(figure, *line_handles(shown_in(rows, look)))
    return rendered(figure, fmt)
