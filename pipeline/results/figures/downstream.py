"""Figures of downstream tasks, and of the quality of free text, along the stream."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from pipeline.results.figures.canvas import longest_stream, stream_of
from pipeline.results.figures.figure_data import FigureData, Picture
from pipeline.results.figures.lines import draw_lines
from pipeline.results.figures.style import Row, Style, label_of
from pipeline.results.tables import Stream, stream_label

DOWNSTREAM = re.compile(r"^ability_(?P<task>.+)_f1$")
TEXT = {"perplexity": "perplexity", "fluency": "fluency", "consistency": "consistency"}


def pictures(figure_data: FigureData) -> Iterator[Picture]:
    """F1 per task, then perplexity, fluency and consistency, on the longest stream with them."""
    rows = measured(figure_data)
    tasks = {m: _task(m) for m in sorted({r["metric"] for r in rows}) if DOWNSTREAM.match(m)}
    if tasks:
        stream, kept = _longest(rows, tasks)
        yield Picture(
            title=f"Downstream tasks, {stream_label(stream)}",
            text="Weighted F1 on tasks that have nothing to do with the edits, before editing and "
            "along the stream; the model answers with at most five tokens. Mean over seeds.",
            svg=draw(kept, figure_data.style, tasks, percent=True),
        )
    texts = {name: label for name, label in TEXT.items() if any(r["metric"] == name for r in rows)}
    if texts:
        stream, kept = _longest(rows, texts)
        yield Picture(
            title=f"Free text, {stream_label(stream)}",
            text="Perplexity (lower is better), and fluency and consistency of what the model "
            "writes (higher is better), before editing and along the stream. Mean over seeds.",
            svg=draw(kept, figure_data.style, texts),
        )


def measured(figure_data: FigureData) -> list[Row]:
    """Rows (editor, variant, n_batches, batch_size, metric, step, value) of these metrics."""
    names = ", ".join(f"'{name}'" for name in TEXT)
    return list(
        figure_data.ask(
            f"""SELECT editor, variant, n_batches, batch_size, metric, step, avg(value) AS value
            FROM curves
            WHERE {{here}} AND isfinite(value)
                  AND (metric IN ({names}) OR regexp_matches(metric, '^ability_.+_f1$'))
            GROUP BY ALL ORDER BY ALL"""
        )
    )


def draw(
    rows: Sequence[Row],
    style: Style,
    titles: Mapping[str, str],
    *,
    percent: bool = False,
    fmt: str = "svg",
) -> bytes:
    """A panel per metric, a line per editor.

    Args:
        rows: (editor, variant, metric, step, value) of one stream.
        titles: The metrics with the titles of their panels.
        percent: Whether all metrics are percentages.
    """
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {t: {} for t in titles.values()}
    for row in rows:
        if row["metric"] in titles:
            panel = lines[titles[row["metric"]]]
            panel.setdefault(label_of(row), []).append((row["step"], row["value"]))
    return draw_lines(
        lines,
        style,
        x_label="edits applied",
        y_label="F1 (%)" if percent else "",
        percent=lines if percent else (),
        fmt=fmt,
    )


def _longest(rows: Sequence[Row], metrics: Mapping[str, str]) -> tuple[Stream, list[Row]]:
    own = [row for row in rows if row["metric"] in metrics]
    stream = longest_stream(own)
    return stream, [row for row in own if stream_of(row) == stream]


def _task(metric: str) -> str:
    match = DOWNSTREAM.match(metric)
    assert match is not None
    return match["task"].replace("_", " ").upper()
