"""A published table beside ours as Markdown, LaTeX, HTML or CSV text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.paper.comparability import stream_name
from pipeline.paper.paper_claims import Sentence
from pipeline.paper.references import Reference
from pipeline.paper.related_results import RelatedResult, related_results
from pipeline.paper.signs import Signs
from pipeline.paper.table import Figure, PaperBlock, PaperTable
from pipeline.paper.table_sheets import beside, own_sheet
from pipeline.results.latex import Fit
from pipeline.results.pages import Piece, drawn, known_fit, render_page
from pipeline.results.protocol_captions import definition
from pipeline.results.sheets import ABSENT, Head, Sheet, SheetCell, as_csv

_OTHERS = ("method", "model", "dataset", "setting", "Eff", "Gen", "Spe", "source", "confidence")
_COLUMNS = (
    "grid", "scale", "models", "datasets", "stream", "edits_at", "method", "editor", "variant",
    "metric", "protocol", "read_stream", "read_edits", "ours", "std", "n_seeds", "low", "high",
    "paper", "paper_std", "source", "confidence", "difference", "verdict", "reason",
)  # fmt: skip


def render_paper_table(
    table: PaperTable, fmt: str = "md", *, long: bool = False, fit: Fit | None = None
) -> str:
    """Renders a table.

    Args:
        fmt: "md" (at most 120 characters wide), "latex", "html" (a fragment), or "csv" (one line
            per figure, unrounded).
        long: With all decimals, published spreads, intervals over edits and what other papers
            print. In LaTeX the short form has our figures alone, as they stand in a paper.
        fit: In LaTeX, what a table must fit; None: a column where that is possible, else a page.

    Raises:
        TableError: the format is unknown, or has nothing to fit.
    """
    known_fit(fmt, fit)
    if fmt == "csv":
        return as_csv(_COLUMNS, _csv_rows(table))
    if fmt == "latex" and not long:
        return render_page(
            "pipeline.paper", "own", fmt, table=table, title=_title(table), piece=_own(table, fit),
            protocols=_protocols(table), streams=_streams(table), notes=_notes(table, own=True),
        )  # fmt: skip
    signs = Signs(figure.verdict for _, figure in _figures(table))
    others = [_other(row) for row in related_results(table.layout)]
    related = Sheet(heads=_heads(_OTHERS), rows=others)
    return render_page(
        "pipeline.paper",
        "paper",
        fmt,
        table=table,
        title=_title(table),
        subjects=_subjects(table, signs, fmt, long, fit),
        protocols=_protocols(table),
        legend=signs.legend,
        notes=_notes(table, long=long),
        others=drawn(related, fmt, fit) if others and (long or fmt == "html") else None,
        n_others=len(others),
        paper_claims=[_sentence(sentence) for sentence in table.paper_claims],
    )


def _heads(labels: Sequence[str]) -> list[Head]:
    """Heads of columns of which the first two say what the row is about."""
    return [Head(label=label, left=i < 2) for i, label in enumerate(labels)]


def _title(table: PaperTable) -> str:
    """The title where a table has a number of its own: ``Main comparison (as table 2)``."""
    number, colon, rest = table.layout.title.partition(": ")
    if not colon or not number.startswith(("Table ", "Figure ")):
        return table.layout.title
    return f"{rest[0].upper()}{rest[1:]} (as {number.lower()} of the paper)"


def _own(table: PaperTable, fit: Fit | None) -> Piece:
    """Ours alone on paper, with the mean where it takes no further line."""
    without, with_mean = (drawn(own_sheet(table, mean=m), "latex", fit) for m in (False, True))
    return with_mean if with_mean.as_compact_as(without) else without


def _subjects(
    table: PaperTable, signs: Signs, fmt: str, long: bool, fit: Fit | None
) -> list[dict[str, Any]]:
    """The sections of each model, or of the mean of several."""
    several = len(_protocols(table)) > 1
    found: dict[str, list[dict[str, Any]]] = {}
    for block in table.blocks:
        title = _place(block) + (f"; protocol {block.protocol}" if several else "")
        piece = drawn(beside(block, signs, long=long), fmt, fit)
        found.setdefault(block.section.subject, []).append({"title": title, "piece": piece})
    return [
        {"name": table.models[subject][0], "title": table.models[subject][1], "blocks": blocks}
        for subject, blocks in found.items()
    ]


def _place(block: PaperBlock) -> str:
    """Dataset and stream of a section, and where ours was read."""
    section = block.section
    at = f", after {section.edits_at:,} edits" if section.edits_at is not None else ""
    read = f"; read here: {', '.join(block.read)}" if block.read else ""
    return f"{section.dataset} · {stream_name(section.stream)}{at}{read}"


def _protocols(table: PaperTable) -> list[tuple[str, str]]:
    """Every protocol of the table with what it means."""
    names = dict.fromkeys(n for block in table.blocks for n in block.protocol.split(" + "))
    return [(name, definition(name)) for name in names]


def _streams(table: PaperTable) -> str:
    """The stream of all figures, if it is one, and what it stands for."""
    read = {(", ".join(b.read), stream_name(b.section.stream)) for b in table.blocks}
    if len(read) > 1 or any(b.section.edits_at is not None for b in table.blocks):
        return ""
    ((here, asked),) = read
    return f"stream {here} in place of {asked}" if here else f"stream {asked}"


def _figures(table: PaperTable) -> Iterator[tuple[PaperBlock, Figure]]:
    for block in table.blocks:
        for line in block.lines:
            for figure in line.figures:
                yield block, figure


def _notes(table: PaperTable, *, own: bool = False, long: bool = False) -> list[str]:
    """What stands below: the table's notes, and what its signs and numbers are."""
    notes = list(table.notes)
    figures = [figure for _, figure in _figures(table)]
    if table.scale == "full" and any(f.departures for f in figures if f.ours.values):
        how = f"rledit table {table.layout.name} says how" if own else "the letters say how"
        notes.append(f"Some figures were not measured as the published ones: {how}.")
    sources = dict.fromkeys(b.section.source.label for b in table.blocks if b.section.source)
    if sources and not own:
        notes.append(f"Published figures: {'; '.join(sources)}.")
    n_seeds = max((len(figure.ours.values) for figure in figures), default=0)
    if n_seeds > 1:
        notes.append(f"± is the sample standard deviation over {n_seeds} seeds.")
    if long:
        notes.append("[low, high] is the 95 % bootstrap interval over edits.")
    return notes


def _sentence(sentence: Sentence) -> str:
    """One claim in words."""
    against = "; ".join(sentence.departures)
    whose = f"ours, not comparable ({against}):" if against else "ours"

    def number(value: float | None) -> str:
        if value is None:
            return ABSENT
        return f"{value:+.2f} points" if sentence.unit == "points" else f"{value:.2f} %"

    text = f"RLEdit's {sentence.what}: {whose} {number(sentence.ours)}"
    if sentence.ours is not None:
        text += f" over {', '.join(sentence.baselines)}"
        text += f" (the paper's for the same figures {number(sentence.same)})"
    text += f"; the paper's over all {number(sentence.paper)}"
    if sentence.lacking:
        text += f". Not included: {', '.join(sentence.lacking)}"
    return text + "."


def _other(row: RelatedResult) -> list[SheetCell | str]:
    """One line of what other papers print."""
    scores = [SheetCell(value=score, form="g") for score in row.scores]
    place = [row.method, row.model, row.dataset, row.setting]
    return [*place, *scores, row.source.label, row.confidence]


def _csv_rows(table: PaperTable) -> Iterator[list[Any]]:
    for block in table.blocks:
        section = block.section
        where = (table.layout.name, table.scale, "+".join(section.models),
                 "+".join(section.datasets), "{}x{}".format(*section.stream),
                 section.edits_at)  # fmt: skip
        for line in block.lines:
            method = (line.label, line.method.editor, line.method.variant)
            for figure in line.figures:
                ours, paper = figure.ours, figure.reference
                yield [
                    *where, *method, figure.metric.name, figure.protocol,
                    *_read(figure, section.edits_at),
                    ours.mean, ours.std, len(ours.values), *(ours.interval or (None, None)),
                    *_published(paper), figure.difference,
                    figure.verdict.kind, figure.verdict.reason,
                ]  # fmt: skip


def _published(paper: Reference | None) -> tuple[Any, ...]:
    """Value, spread, source and confidence of a published figure."""
    if paper is None:
        return (None, None, None, None)
    return (paper.value, paper.std, paper.source.label, paper.confidence)


def _read(figure: Figure, edits_at: int | None) -> tuple[str, str]:
    """The stream that ours was read from, and after how many of its edits."""
    places = [place for place in figure.places if place.done]
    streams = dict.fromkeys("{}x{}".format(*place.stream) for place in places)
    found = dict.fromkeys(place.edits_for(edits_at) for place in places)
    edits = [str(n) for n in found if n is not None]
    return "+".join(streams), "+".join(edits)
