"""Retention: efficacy by edit age, at the end of the stream and along it."""

from __future__ import annotations

from collections.abc import Iterator

from pandas import DataFrame

from pipeline.results.figures.canvas import (
    TITLE_SIZE,
    legend,
    panels,
    percent_axis,
    plot_lines,
    rendered,
    stream_panels,
    thinned,
)
from pipeline.results.figures.figure_data import FigureData, Picture, longest_stream, of_stream
from pipeline.results.figures.findings import extremes, flat, ranges, span
from pipeline.results.figures.style import Style, line_handles, shown_in
from pipeline.results.query import quoted
from pipeline.results.tables import UNEDITED, Stream, stream_label

_BINS = 10  # a stream of 400 batches is still a readable line
_COLUMNS = 4


def efficacy_by_age(figure_data: FigureData) -> DataFrame:
    """Mean efficacy by editor, stream, checkpoint and age.

    Age counts the edits applied after the scored edit's own batch, rounded down to a tenth of the
    stream. An edit that a later one rewrites is not expected to hold, and is left out.

    Returns:
        Rows (editor, variant, n_batches, batch_size, checkpoint, age, score).
    """
    width = f"(batch_size * CAST(ceil(n_batches / {_BINS}) AS INTEGER))"
    return figure_data.ask(
        f"""
        SELECT editor, variant, n_batches, batch_size, checkpoint,
               {width} * (greatest(0, checkpoint - (batch_index + 1) * batch_size) // {width})
                   AS age,
               avg(efficacy) AS score
        FROM edits
        WHERE {{here}} AND protocol = {quoted(figure_data.protocol)} AND NOT superseded
              AND efficacy IS NOT NULL
        GROUP BY ALL ORDER BY ALL"""
    )


def by_age(figure_data: FigureData) -> Iterator[Picture]:
    """A line per editor, a panel per stream."""
    rows = efficacy_by_age(figure_data)
    if rows.empty:
        return
    last = rows.groupby(["n_batches", "batch_size"])["checkpoint"].transform("max")
    at_end, style = rows[rows["checkpoint"] == last], figure_data.style
    edited = at_end[at_end["editor"] != UNEDITED]
    stream = longest_stream(at_end)
    found = ranges(of_stream(edited, stream), "age", "score")
    if flat(found, percent=True):
        said = (
            f"Efficacy does not depend on an edit's age: {span(found, '.1f')} %." if found else ""
        )
        if said:
            yield Picture(title="Retention by age", text=said)
        return
    figure, drawn = stream_panels(at_end, columns=2, width=3.6, height=2.9)
    for axis, here in drawn:
        plot_lines(axis, here, style, "age", "score")
        percent_axis(axis, "y", "efficacy (%)")
        axis.set_xlabel("edit age (edits applied since)")
    legend(figure, *line_handles(shown_in(at_end, style)))
    yield Picture(
        title="Retention by age",
        text=f"{_forgotten(of_stream(edited, stream), stream)}Efficacy of the edits by how many "
        f"edits came after them, at the end of the stream, by {figure_data.protocol}. A line that "
        "falls to the right forgets.",
        svg=rendered(figure),
    )


def _forgotten(rows: DataFrame, stream: Stream) -> str:
    """What the older half of the edits has lost against the newer one, most and least."""
    half = stream[0] * stream[1] / 2
    new, old = (own.groupby("label")["score"].mean()
                for own in (rows[rows["age"] < half], rows[rows["age"] >= half]))  # fmt: skip
    lost = {str(label): float(value) for label, value in (new - old).dropna().items()}
    if not lost:
        return ""
    least, most = extremes(lost)
    said = f"From the newer to the older half of the edits {most} goes from {new[most]:.1f} to "
    return said + (f"{old[most]:.1f} %" + ("" if least == most else
                   f", {least} from {new[least]:.1f} to {old[least]:.1f} %") + ". ")  # fmt: skip


def heat_map(figure_data: FigureData) -> Iterator[Picture]:
    """A map per editor on the longest stream, where it was scored more than once."""
    rows = efficacy_by_age(figure_data)
    if rows.empty:
        return
    longest = longest_stream(rows)
    mapped = of_stream(rows, longest)
    if mapped["checkpoint"].nunique() > 2 and not flat(_all(mapped), percent=True):
        yield Picture(
            title=f"Retention along the stream, {stream_label(longest)}",
            text="Efficacy by stream position (across) and edit age (up); grey: no such age.",
            svg=_draw_maps(mapped, figure_data.style),
        )


def _all(rows: DataFrame) -> dict[str, tuple[float, float]]:
    """Least and largest efficacy over positions and ages, by edited model."""
    edited = rows[rows["editor"] != UNEDITED].groupby("label")["score"]
    return {str(label): (float(own.min()), float(own.max())) for label, own in edited}


def _draw_maps(rows: DataFrame, style: Style) -> bytes:
    """Efficacy over stream position and edit age, a panel per editor."""
    labels = list(shown_in(rows, style))
    positions, ages = (sorted(set(rows[name])) for name in ("checkpoint", "age"))
    figure, axes = panels(len(labels), columns=_COLUMNS, width=1.8, height=2.0)
    for axis, label in zip(axes, labels, strict=True):
        own = rows[rows["label"] == label].pivot(index="age", columns="checkpoint", values="score")
        grid = own.reindex(index=ages, columns=positions).to_numpy()
        image = axis.imshow(grid, origin="lower", aspect="auto", cmap="cividis", vmin=0, vmax=100)
        axis.set_facecolor("#eeeeee")  # an age that does not exist yet
        axis.set_xticks(*thinned(positions, 4))
        axis.set_yticks(*thinned(ages, 6))
        axis.set_title(label, fontsize=TITLE_SIZE, loc="left")
        axis.grid(False)
        axis.set_ylabel("edit age (edits)")
        axis.set_xlabel("edits applied")
    figure.colorbar(image, ax=list(axes), label="efficacy (%)", orientation="horizontal",
                    shrink=0.3, aspect=24)  # fmt: skip
    return rendered(figure)
