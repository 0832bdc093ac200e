"""Figures along the stream: scores, per-batch quantities, downstream tasks, batch sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from pandas import DataFrame

from pipeline.results.figures.canvas import (
    draw_lines,
    legend,
    plot_lines,
    rendered,
    stream_panels,
)
from pipeline.results.figures.figure_data import (
    FigureData,
    Picture,
    longest_stream,
    of_stream,
    streams_of,
)
from pipeline.results.figures.style import line_handles, shown_in
from pipeline.results.query import quoted
from pipeline.results.tables import UNEDITED, Stream, stream_label

SCORES = {"efficacy": "Eff", "generalization": "Gen", "specificity": "Spe"}
CURVES = {
    "shift_norm": "‖ΔW‖ of the batch",
    "weight_change_norm": "‖W − W₀‖",
    "realised_cosine": "realised cosine",
}
DOWNSTREAM = re.compile(r"^ability_(?P<task>.+)_f1$")
TEXT = ("perplexity", "fluency", "consistency")
BY_BATCH_SIZE = {
    **{name: f"{label} (%)" for name, label in SCORES.items()},
    "edit_ms": "editing (ms per edit)",
    "peak_memory_gb": "peak memory (GB)",
}
FEWEST_SIZES = 3


def scores(figure_data: FigureData) -> Iterator[Picture]:
    """Eff, Gen and Spe against edits on the longest stream that was scored more than once."""
    rows = figure_data.ask(
        f"""SELECT editor, variant, n_batches, batch_size, n_edits, {", ".join(SCORES)}
        FROM runs WHERE {{here}} AND protocol = {quoted(figure_data.protocol)} ORDER BY ALL"""
    )
    points = rows.groupby(["n_batches", "batch_size"])["n_edits"].transform("nunique")
    several = rows[points > 1]
    if len(several):
        stream = longest_stream(several)
        yield Picture(
            title=f"Scores along the stream, {stream_label(stream)}",
            text=f"Mean over all edits made so far, by {figure_data.protocol}, mean over seeds.",
            svg=draw_lines(of_stream(rows, stream), SCORES, figure_data.style, x="n_edits",
                           y_label="score (%)", percent=SCORES),
        )  # fmt: skip


def curves(figure_data: FigureData) -> Iterator[Picture]:
    """A picture per quantity that was recorded with every batch, a panel per stream."""
    for metric, label in CURVES.items():
        rows = figure_data.ask(
            f"""SELECT editor, variant, n_batches, batch_size, step, avg(value) AS value
            FROM curves WHERE {{here}} AND metric = {quoted(metric)} AND isfinite(value)
            GROUP BY ALL ORDER BY ALL"""
        )
        if rows.empty:
            continue
        figure, drawn = stream_panels(rows, columns=2, width=3.6, height=2.7)
        for axis, here in drawn:
            plot_lines(axis, here, figure_data.style, "step", "value", markers=False)
            axis.set_xlabel("edits applied")
            axis.set_ylabel(label)
        legend(figure, *line_handles(shown_in(rows, figure_data.style), markers=False))
        yield Picture(
            title=f"Along the stream: {label}",
            text="Per batch of edits, mean over seeds.",
            svg=rendered(figure),
        )


def downstream(figure_data: FigureData) -> Iterator[Picture]:
    """F1 per task, then perplexity, fluency and consistency, on the longest stream with them."""
    rows = downstream_rows(figure_data)
    there = sorted(set(rows["metric"]))
    tasks = {m: t["task"].replace("_", " ").upper() for m in there if (t := DOWNSTREAM.match(m))}
    if tasks:
        stream, wide = _longest(rows, tasks)
        yield Picture(
            title=f"Downstream tasks, {stream_label(stream)}",
            text="Weighted F1 on tasks that have nothing to do with the edits, before editing and "
            "along the stream; the model answers with at most five tokens. Mean over seeds.",
            svg=draw_lines(wide, tasks, figure_data.style, y_label="F1 (%)", percent=tasks),
        )
    texts = {name: name for name in TEXT if name in there}
    if texts:
        stream, wide = _longest(rows, texts)
        yield Picture(
            title=f"Free text, {stream_label(stream)}",
            text="Perplexity (lower is better), and fluency and consistency of what the model "
            "writes (higher is better), before editing and along the stream. Mean over seeds.",
            svg=draw_lines(wide, texts, figure_data.style),
        )


def downstream_rows(figure_data: FigureData) -> DataFrame:
    """Rows (editor, variant, n_batches, batch_size, metric, step, value) of these metrics."""
    return figure_data.ask(
        f"""SELECT editor, variant, n_batches, batch_size, metric, step, avg(value) AS value
        FROM curves
        WHERE {{here}} AND isfinite(value)
              AND (metric IN {TEXT} OR regexp_matches(metric, '^ability_.+_f1$'))
        GROUP BY ALL ORDER BY ALL"""
    )


def _longest(rows: DataFrame, metrics: Mapping[str, str]) -> tuple[Stream, DataFrame]:
    """The longest stream with some of the metrics, and its rows with a column per metric."""
    own = rows[rows["metric"].isin(list(metrics))]
    stream = longest_stream(own)
    wide = of_stream(own, stream).pivot(index=["label", "step"], columns="metric", values="value")
    return stream, wide.reindex(columns=list(metrics)).reset_index()


def batch_sizes(figure_data: FigureData) -> Iterator[Picture]:
    """Scores, time and memory against the batch size, for streams of equally many edits."""
    done = figure_data.done
    edits = done["n_batches"] * done["batch_size"]
    lengths = [n * m for n, m in streams_of(done)]
    for n_edits in sorted(set(lengths)):
        if lengths.count(n_edits) < FEWEST_SIZES:
            continue
        rows = done[edits == n_edits]
        # Nothing was edited in the unedited model's time.
        rows = rows.assign(edit_ms=rows["edit_ms"].mask(rows["editor"] == UNEDITED))
        titles = {name: t for name, t in BY_BATCH_SIZE.items() if rows[name].notna().any()}
        yield Picture(
            title=f"{n_edits} edits in batches of different sizes",
            text=f"Scores by {figure_data.protocol} after the stream, editing time (set-up "
            "apart) and peak memory against edits per batch; mean over seeds.",
            svg=draw_lines(rows, titles, figure_data.style, x="batch_size",
                           x_label="edits per batch", percent=SCORES, logarithmic=["edit_ms"]),
        )  # fmt: skip
