"""A published table beside ours as Markdown, LaTeX, HTML or CSV text."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

from pipeline.paper.paper_claims import Sentence
from pipeline.paper.related_results import RelatedResult, related_results
from pipeline.paper.table import Block, Figure, PaperTable
from pipeline.results.protocols import definition
from pipeline.results.rendering import FORMATS, environment, escape_latex, escape_md
from pipeline.results.tables import ABSENT, TableError

_OTHERS = ("method", "model", "dataset", "setting", "Eff", "Gen", "Spe", "source", "confidence")
_COLUMNS = (
    "grid", "scale", "models", "datasets", "stream", "edits_at", "method", "editor", "variant",
    "metric", "protocol", "read_stream", "read_edits", "ours", "std", "n_seeds", "low", "high",
    "paper", "paper_std", "source", "confidence", "difference", "verdict", "reason",
)  # fmt: skip


@dataclass(frozen=True)
class _Notes:
    """Reasons of verdicts, each with a letter."""

    letters: dict[str, str]

    def letter(self, reason: str) -> str:
        if reason not in self.letters:
            n = len(self.letters)
            first = ascii_lowercase[n // 26 - 1] if n >= 26 else ""
            self.letters[reason] = first + ascii_lowercase[n % 26]
        return self.letters[reason]


def render_paper_table(table: PaperTable, fmt: str = "md") -> str:
    """Renders a table.

    Args:
        fmt: "md", "latex" (booktabs), "html" (a fragment), or "csv" (one line per figure,
            unrounded).

    Raises:
        TableError: the format is unknown.
    """
    if fmt not in FORMATS:
        raise TableError(f"unknown format {fmt!r}; choose from {', '.join(FORMATS)}")
    if fmt == "csv":
        return _csv(table)
    templates = environment("pipeline.paper", html=fmt == "html")
    templates.filters |= {"md": escape_md, "latex": escape_latex}
    notes = _Notes({})
    others = [list(_OTHERS), *(_other(row) for row in related_results(table.layout))]
    blocks = [_block(block, notes) for block in table.blocks]
    if fmt == "md":
        for block in blocks:
            block["rows"] = _padded([block["heads"], *block["lines"]])
        others = _padded(others)
    template = templates.get_template(f"paper.{fmt}.j2")
    text: str = template.render(
        table=table,
        blocks=blocks,
        reasons=[(letter, reason) for reason, letter in notes.letters.items()],
        others=others,
        paper_claims=[_sentence(sentence) for sentence in table.paper_claims],
    )
    return text.strip() + "\n"


def _block(block: Block, notes: _Notes) -> dict[str, Any]:
    heads = ["method", "protocol"]
    for metric in block.section.metrics:
        heads += [metric.label, "paper", "Δ", "verdict"]
    defined = [f"{name}: {definition(name)}" for name in block.protocol.split(" + ")]
    return {
        "title": block.title,
        "protocol": block.protocol,
        "definition": "; ".join(defined),
        "heads": heads,
        "metrics": [metric.label for metric in block.section.metrics],
        "lines": [
            [line.label, line.figures[0].protocol]
            + [text for figure in line.figures for text in _texts(figure, notes)]
            for line in block.lines
        ],
    }


def _texts(figure: Figure, notes: _Notes) -> tuple[str, str, str, str]:
    """Ours, the paper's, difference and verdict."""
    paper, metric = figure.reference, figure.metric
    published = ABSENT if paper is None else f"{paper.value:g}"
    if paper is not None and paper.std is not None:
        published += f" ± {paper.std:g}"
    difference = figure.difference
    return (
        _ours(figure),
        published,
        ABSENT if difference is None else f"{difference:+.{metric.digits}f}",
        _verdict(figure, notes),
    )


def _ours(figure: Figure) -> str:
    ours, digits = figure.ours, figure.metric.digits
    if ours.mean is None:
        return ABSENT
    text = f"{ours.mean:.{digits}f}"
    if ours.std is not None:
        text += f" ± {ours.std:.{digits}f}"
    if ours.interval is not None:
        text += " [{:.1f}, {:.1f}]".format(*ours.interval)
    return text


def _verdict(figure: Figure, notes: _Notes) -> str:
    verdict = figure.verdict
    if not verdict.reason:
        return verdict.kind
    if verdict.kind in ("reproduced", "differs"):
        return f"{verdict.kind} ({verdict.reason})"
    return f"{verdict.kind} ({notes.letter(verdict.reason)})"


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


def _other(row: RelatedResult) -> list[str]:
    """One line of what other papers print."""
    scores = [ABSENT if score is None else f"{score:g}" for score in row.scores]
    place = [row.method, row.model, row.dataset, row.setting]
    return [*place, *scores, row.source.label, row.confidence]


def _padded(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Rows of a Markdown table with its rule, equal widths down each column."""
    cells = [[escape_md(text) for text in row] for row in rows]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = [":" + "-" * (w - 1) if i < 2 else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    padded = [
        [
            text.ljust(width) if i < 2 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in cells
    ]
    return [padded[0], rule, *padded[1:]]


def _csv(table: PaperTable) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for block in table.blocks:
        section = block.section
        for line in block.lines:
            for figure in line.figures:
                ours, paper = figure.ours, figure.reference
                low, high = ours.interval or (None, None)
                writer.writerow(
                    [
                        table.layout.name,
                        table.scale,
                        "+".join(section.models),
                        "+".join(section.datasets),
                        f"{section.stream[0]}x{section.stream[1]}",
                        section.edits_at,
                        line.label,
                        line.method.editor,
                        line.method.variant,
                        figure.metric.name,
                        figure.protocol,
                        *_read(figure, section.edits_at),
                        ours.mean,
                        ours.std,
                        len(ours.values),
                        low,
                        high,
                        paper.value if paper else None,
                        paper.std if paper else None,
                        paper.source.label if paper else None,
                        paper.confidence if paper else None,
                        figure.difference,
                        figure.verdict.kind,
                        figure.verdict.reason,
                    ]
                )
    return out.getvalue()


def _read(figure: Figure, edits_at: int | None) -> tuple[str, str]:
    """The stream that ours was read from, and after how many of its edits."""
    places = [place for place in figure.places if place.done]
    streams = dict.fromkeys("{}x{}".format(*place.stream) for place in places)
    found = dict.fromkeys(place.edits_for(edits_at) for place in places)
    edits = [str(n) for n in found if n is not None]
    return "+".join(streams), "+".join(edits)
