"""Sheets of a published table: ours beside the published figures, or ours alone as in a paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.paper.comparability import stream_name
from pipeline.paper.figures import averaged
from pipeline.paper.layout import Metric
from pipeline.paper.signs import Signs
from pipeline.paper.table import Figure, PaperBlock, PaperLine, PaperTable
from pipeline.results.ranking import ranked
from pipeline.results.sheets import MARK, Head, Sheet, SheetCell
from pipeline.results.tables import MEAN, MEAN_OF

_COSTS = ("seconds", "memory", "ratio")
_MEAN = Metric(name=MEAN, label="Mean")


def beside(block: PaperBlock, signs: Signs, *, long: bool) -> Sheet:
    """One section: ours, the published figure, and the difference with the verdict's sign.

    Args:
        long: Protocol of each line, all decimals, published spreads and bootstrap intervals.
    """
    compared = any(f.reference is not None for line in block.lines for f in line.figures)
    heads = [Head(label="method", left=True)]
    if long:
        heads.append(Head(label="protocol", left=True))
    for metric in block.section.metrics:
        if compared:
            heads += [Head(label=label, groups=(metric.label,)) for label in ("ours", "paper", "Δ")]
        else:
            heads.append(Head(label=metric.label))
    rows: list[list[SheetCell | str]] = []
    for line in block.lines:
        row: list[SheetCell | str] = [line.label]
        if long:
            row.append(line.figures[0].protocol)
        for figure in line.figures:
            row += _compared(figure, signs, long) if compared else [_alone(figure, signs, long)]
        rows.append(row)
    return Sheet(heads=heads, rows=rows, apart=_apart(block.lines))


def _compared(figure: Figure, signs: Signs, long: bool) -> list[SheetCell]:
    paper, digits = figure.reference, _digits(figure.metric, long)
    published = SheetCell()
    if paper is not None and long:
        published = SheetCell(value=paper.value, std=paper.std, form="g")
    elif paper is not None:
        published = SheetCell(value=paper.value, form=f".{digits}f")
    sign = signs.sign(figure.verdict)
    difference = SheetCell(value=figure.difference, form=f"+.{digits}f", mark=sign, text=sign)
    return [_ours(figure, long), published, difference]


def _alone(figure: Figure, signs: Signs, long: bool) -> SheetCell:
    """A figure with nothing to compare it with: the sign says how it departs, where it does."""
    cell = _ours(figure, long)
    return replace(cell, mark=signs.sign(figure.verdict)) if figure.departures else cell


def _ours(figure: Figure, long: bool) -> SheetCell:
    ours = figure.ours
    interval = ours.interval if long else None
    form = f".{_digits(figure.metric, long)}f"
    return SheetCell(value=ours.mean, std=ours.std, interval=interval, form=form)


def _digits(metric: Metric, long: bool) -> int:
    """Scores have two decimals where they are published; one is enough to read."""
    return metric.digits if long or metric.basis in _COSTS else min(metric.digits, 1)


def own_sheet(table: PaperTable, *, mean: bool) -> Sheet:
    """All sections side by side, ours alone: methods by models, datasets and streams.

    Args:
        mean: With the mean of Eff, Gen and Spe, where a section has these.
    """
    first = table.blocks[0]
    heads = [Head(label="method", left=True)]
    rows: list[list[SheetCell | str]] = [[line.name] for line in first.lines]
    for block in table.blocks:
        section = block.section
        stream = ", ".join(block.read) or stream_name(section.stream)
        if section.edits_at is not None and not block.read:
            stream += f" after {section.edits_at:,} edits"
        above = (table.models[section.subject][0], section.dataset, stream)
        metrics = list(section.metrics)
        if mean and set(MEAN_OF) <= {metric.name for metric in metrics}:
            metrics.append(_MEAN)
        for metric in metrics:
            heads.append(Head(label=metric.label, groups=above))
            for row, cell in zip(rows, _column(block.lines, metric), strict=True):
                row.append(cell)
    sheet = Sheet(heads=heads, rows=rows, apart=_apart(first.lines))
    return replace(sheet.columns(range(len(heads))), title="")


def _column(lines: Sequence[PaperLine], metric: Metric) -> list[SheetCell]:
    """Figures of all methods, the best two of those that were read at the same place marked."""
    cells, bases = [], []
    for line in lines:
        figures = [f for f in line.figures if f.metric == metric]
        if metric is _MEAN:
            figures = [f for f in line.figures if f.metric.name in MEAN_OF]
        ours = figures[0].ours if len(figures) == 1 else averaged([f.ours for f in figures])
        form = f".{_digits(metric, long=False)}f"
        mark = MARK if line.remarks and metric.basis not in _COSTS else ""
        cells.append(SheetCell(value=ours.mean, std=ours.std, form=form, mark=mark))
        edited = line.method.editor != "none" and not line.remarks
        read = (figures[0].protocol, tuple(p.stream for p in figures[0].places), ours.seeds)
        bases.append(read if edited else None)
    return ranked(cells, bases, least=metric.basis in _COSTS)


def _apart(lines: Sequence[PaperLine]) -> int:
    """The unedited model's line, which is the first, stands apart."""
    return sum(line.method.editor == "none" for line in lines)
