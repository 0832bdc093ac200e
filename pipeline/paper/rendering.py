"""A published table beside ours as Markdown, LaTeX, HTML or CSV text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Any

from pipeline.paper.paper_claims import Sentence
from pipeline.paper.references import Reference
from pipeline.paper.related_results import RelatedResult, related_results
from pipeline.paper.table import Block, Figure, PaperTable
from pipeline.results.protocol_captions import definition
from pipeline.results.sheets import ABSENT, Cell, Head, Sheet, as_csv, render_page

_OTHERS = ("method", "model", "dataset", "setting", "Eff", "Gen", "Spe", "source", "confidence")
_COLUMNS = (
    "grid", "scale", "models", "datasets", "stream", "edits_at", "method", "editor", "variant",
    "metric", "protocol", "read_stream", "read_edits", "ours", "std", "n_seeds", "low", "high",
    "paper", "paper_std", "source", "confidence", "difference", "verdict", "reason",
)  # fmt: skip


@dataclass(frozen=True)
class _Reasons:
    """Reasons of verdicts, each with a letter."""

    letters: dict[str, str] = field(default_factory=dict)

    def letter(self, reason: str) -> str:
        n = len(self.letters)
        first = ascii_lowercase[n // 26 - 1] if n >= 26 else ""
        return self.letters.setdefault(reason, first + ascii_lowercase[n % 26])


def render_paper_table(table: PaperTable, fmt: str = "md") -> str:
    """Renders a table.

    Args:
        fmt: "md", "latex" (booktabs), "html" (a fragment), or "csv" (one line per figure,
            unrounded).

    Raises:
        TableError: the format is unknown.
    """
    if fmt == "csv":
        return as_csv(_COLUMNS, _csv_rows(table))
    reasons = _Reasons()
    others = [_other(row) for row in related_results(table.layout)]
    return render_page(
        "pipeline.paper",
        "paper",
        fmt,
        table=table,
        blocks=[_block(block, reasons) for block in table.blocks],
        reasons=reasons.letters.items(),
        others=Sheet(heads=_heads(_OTHERS), rows=others),
        paper_claims=[_sentence(sentence) for sentence in table.paper_claims],
    )


def _heads(labels: Sequence[str]) -> list[Head]:
    """Heads of columns of which the first two say what the row is about."""
    return [Head(label=label, left=i < 2) for i, label in enumerate(labels)]


def _block(block: Block, reasons: _Reasons) -> dict[str, Any]:
    labels = ["method", "protocol"]
    for metric in block.section.metrics:
        labels += [metric.label, "paper", "Δ", "verdict"]
    defined = [f"{name}: {definition(name)}" for name in block.protocol.split(" + ")]
    rows = []
    for line in block.lines:
        row: list[Cell | str] = [line.label, line.figures[0].protocol]
        for figure in line.figures:
            row += _cells(figure, reasons)
        rows.append(row)
    return {
        "title": block.title,
        "protocol": block.protocol,
        "definition": "; ".join(defined),
        "sheet": Sheet(heads=_heads(labels), rows=rows),
    }


def _cells(figure: Figure, reasons: _Reasons) -> tuple[Cell | str, ...]:
    """Ours, the paper's, difference and verdict."""
    ours, paper, digits = figure.ours, figure.reference, figure.metric.digits
    published = Cell() if paper is None else Cell(value=paper.value, std=paper.std, form="g")
    return (
        Cell(value=ours.mean, std=ours.std, interval=ours.interval, form=f".{digits}f"),
        published,
        Cell(value=figure.difference, form=f"+.{digits}f"),
        _verdict(figure, reasons),
    )


def _verdict(figure: Figure, reasons: _Reasons) -> str:
    verdict = figure.verdict
    if not verdict.reason:
        return verdict.kind
    if verdict.kind in ("reproduced", "differs"):
        return f"{verdict.kind} ({verdict.reason})"
    return f"{verdict.kind} ({reasons.letter(verdict.reason)})"


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


def _other(row: RelatedResult) -> list[Cell | str]:
    """One line of what other papers print."""
    scores = [Cell(value=score, form="g") for score in row.scores]
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
