"""Figures along the stream: scores, per-batch quantities, downstream tasks, batch sizes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from pandas import DataFrame

from pipeline.results.figures.canvas import draw_lines
from pipeline.results.figures.figure_data import (
    FigureData,
    Picture,
    longest_stream,
    of_stream,
    streams_of,
)
from pipeline.results.figures.findings import extremes, flat, ranges, sentences, span
from pipeline.results.query import quoted
from pipeline.results.tables import UNEDITED, Stream, stream_label

SCORES = {"efficacy": "Eff", "generalization": "Gen", "specificity": "Spe"}
CURVES = {
    "shift_norm": "‖ΔW‖ of the batch",
    "weight_change_norm": "‖W − W₀‖",
    "realised_cosine": "Realised cosine",
}
DOWNSTREAM = re.compile(r"^ability_(?P<task>.+)_f1$")
TEXT = ("perplexity", "fluency", "consistency")
BY_BATCH_SIZE = {
    **{name: f"{label} (%)" for name, label in SCORES.items()},
    "edit_ms": "editing (ms per edit)",
    "peak_memory_gb": "peak memory (GB)",
}
FEWEST_SIZES = 3
FEWEST_POINTS = 3  # two make a straight line between numbers of the table


def scores(figure_data: FigureData) -> Iterator[Picture]:
    """Eff, Gen and Spe against edits on the longest stream that was scored more than once."""
    rows = figure_data.ask(
        f"""SELECT editor, variant, n_batches, batch_size, n_edits, {", ".join(SCORES)}
        FROM runs WHERE {{here}} AND protocol = {quoted(figure_data.protocol)}
              AND status = 'done' ORDER BY ALL"""
    )
    points = rows.groupby(["n_batches", "batch_size"])["n_edits"].transform("nunique")
    several = rows[points >= FEWEST_POINTS]
    if several.empty:
        return
    stream = longest_stream(several)
    here = of_stream(rows, stream)
    edited = here[here["editor"] != UNEDITED]
    found = {name: ranges(edited, "n_edits", name) for name in SCORES}
    moving = {n: t for n, t in SCORES.items() if not flat(found[n], percent=True)}
    said = [f"{SCORES[name]} stays at {span(found[name], '.1f')} %." for name in SCORES
            if found[name] and name not in moving]  # fmt: skip
    yield Picture(
        title=f"Scores along the stream, {stream_label(stream)}",
        text=sentences([_lost(edited), *said, f"Mean over all edits made so far, by "
                        f"{figure_data.protocol}, mean over seeds."]),
        svg=draw_lines(here, moving, figure_data.style, x="n_edits", y_label="score (%)",
                       percent=SCORES) if moving else b"",
    )  # fmt: skip


def _lost(rows: DataFrame) -> str:
    """What efficacy and specificity are at the first and at the last point after edits.

    Of the method whose own changes most; nothing where that is not seen in the numbers.
    """
    edits = rows[rows["n_edits"] > 0]
    ends = (edits["n_edits"].min(), edits["n_edits"].max())
    said = []
    for name in ("efficacy", "specificity"):
        first, last = (edits[edits["n_edits"] == n].groupby("label")[name].mean() for n in ends)
        change = (last - first).dropna()
        if change.empty:
            continue
        who = str(change.abs().idxmax())
        one, two = (f"{end[who]:.1f} %" for end in (first, last))
        if one != two:
            said.append(f"{SCORES[name]} changes most for {who}, from {one} after {ends[0]} edits "
                        f"to {two} after {ends[1]}.")  # fmt: skip
    return sentences(said)


def curves(figure_data: FigureData) -> Iterator[Picture]:
    """What was recorded with every batch of the longest stream; a flat line is a sentence."""
    names = ", ".join(map(quoted, CURVES))
    rows = figure_data.ask(
        f"""SELECT editor, variant, n_batches, batch_size, step, metric, avg(value) AS value
        FROM curves WHERE {{here}} AND metric IN ({names}) AND isfinite(value)
              AND editor <> {quoted(UNEDITED)}
        GROUP BY ALL ORDER BY ALL"""
    )
    if rows.empty:
        return
    stream, wide = _longest(rows, CURVES)
    found = {name: ranges(wide, "step", name) for name in CURVES}
    moving = {n: t for n, t in CURVES.items() if not flat(found[n], percent=False)}
    said = [f"{CURVES[name]} stays at {span(found[name])}." for name in CURVES
            if found[name] and name not in moving]  # fmt: skip
    wide_apart = [n for n in moving if _apart(found[n])]
    yield Picture(
        title=f"What is written into the weights, {stream_label(stream)}",
        text=sentences([_farthest(wide), *said, "Per batch of edits, mean over seeds."]),
        svg=draw_lines(wide, moving, figure_data.style, logarithmic=wide_apart)
        if moving else b"",
    )  # fmt: skip


def _farthest(wide: DataFrame) -> str:
    """Which methods have moved the edited matrices most and least by the end."""
    last = wide[wide["step"] == wide["step"].max()].set_index("label")["weight_change_norm"]
    known = {str(label): float(value) for label, value in last.dropna().items()}
    if len(known) < 2:
        return ""
    least, most = extremes(known)
    return (f"The edited matrices have moved farthest with {most} (‖W − W₀‖ {known[most]:.3g}), "
            f"least with {least} ({known[least]:.3g}).")  # fmt: skip


def _apart(found: Mapping[str, tuple[float, float]]) -> bool:
    """Whether lines lie so far apart that only a logarithmic axis shows all of them."""
    tops = [high for _, high in found.values()]
    lows = [low for low, _ in found.values()]
    return min(lows) > 0 and max(tops) / min(tops) > 5


def downstream(figure_data: FigureData) -> Iterator[Picture]:
    """F1 per task, then perplexity, fluency and consistency, on the longest stream with them."""
    rows = downstream_rows(figure_data)
    there = sorted(set(rows["metric"]))
    tasks = {m: t["task"].replace("_", " ").upper() for m in there if (t := DOWNSTREAM.match(m))}
    if tasks:
        stream, wide = _longest(rows, tasks)
        still, moving = _still(wide, tasks, percent=True)
        yield Picture(
            title=f"Downstream tasks, {stream_label(stream)}",
            text=f"{still}Weighted F1 on tasks that have nothing to do with the edits, before "
            "editing and along the stream; the model answers with at most five tokens. Mean over "
            "seeds.",
            svg=draw_lines(wide, moving, figure_data.style, y_label="F1 (%)", percent=tasks)
            if moving else b"",
        )  # fmt: skip
    texts = {name: name for name in TEXT if name in there}
    if texts:
        stream, wide = _longest(rows, texts)
        still, moving = _still(wide, texts, percent=False)
        wide_apart = [n for n in moving if n == "perplexity" and _apart(ranges(wide, "step", n))]
        yield Picture(
            title=f"Free text, {stream_label(stream)}",
            text=f"{still}Perplexity (lower is better), and fluency and consistency of what the "
            "model writes (higher is better), before editing and along the stream. Mean over "
            "seeds.",
            svg=draw_lines(wide, moving, figure_data.style, logarithmic=wide_apart)
            if moving else b"",
        )  # fmt: skip


def _still(
    wide: DataFrame, titles: Mapping[str, str], *, percent: bool
) -> tuple[str, dict[str, str]]:
    """A sentence on the quantities that stay as they are, and the others."""
    found = {name: ranges(wide, "step", name) for name in titles}
    moving = {n: t for n, t in titles.items() if not flat(found[n], percent=percent)}
    said = [f"{titles[n]} stays at {span(found[n])}. " for n in titles if n not in moving]
    return "".join(said), moving


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
