"""Result tables as Markdown, LaTeX, HTML or CSV text: methods below each other, model × dataset ×
stream as groups of columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.results.lake.records import BARE, SCORES
from pipeline.results.latex import Fit
from pipeline.results.pages import Piece, drawn, known_fit, render_page
from pipeline.results.protocol_captions import definition
from pipeline.results.ranking import ranked
from pipeline.results.sheets import ABSENT, FORMATS, MARK, Head, Sheet, SheetCell, as_csv
from pipeline.results.tables import (
    ADDRESS_FIELDS,
    COSTS,
    MEAN,
    MEAN_OF,
    PROMPT,
    UNEDITED,
    Column,
    Panel,
    Stream,
    Table,
    TableLine,
    Value,
    editor_label,
    stream_label,
)

__all__ = ["FORMATS", "format_value", "render_table"]

_Subject = tuple[str, str, str, str]  # scale, model, dataset, prompt
_Method = tuple[str, str]  # editor, variant
_Group = tuple[_Subject, Stream]


def render_table(
    table: Table, fmt: str = "md", *, long: bool = False, fit: Fit | None = None
) -> str:
    """Renders a table.

    In LaTeX and HTML the best figure of each column is bold and the second underlined, among
    edited models whose figures were measured on the same seeds, data and edits.

    Args:
        fmt: "md" (at most 120 characters wide), "latex", "html" (a fragment), or "csv" (one line
            per method, stream, protocol and metric, unrounded).
        long: All scores and costs; else Eff, Gen, Spe, and their mean where it takes no further
            line. CSV has all of them.
        fit: In LaTeX, what a table must fit; None: a column where that is possible, else a page.

    Raises:
        TableError: the format is unknown, or has nothing to fit.
    """
    known_fit(fmt, fit)
    if fmt == "csv":
        return _csv(table)
    panels = []
    for panel in table.panels:
        piece = _drawn(table, panel, fmt, long, fit)
        panels.append({"name": panel.protocol or "none, as no cell is done", "piece": piece,
                       "definition": definition(panel.protocol)})  # fmt: skip
    return render_page(
        "pipeline.results", "table", fmt, table=table, panels=panels,
        about="; ".join(_about(table)),
    )  # fmt: skip


def format_value(value: Value, column: Column, n_seeds: int) -> str:
    """One figure as text, with its number of seeds where that is not `n_seeds`."""
    return str(_cell(value, column, n_seeds))


def _about(table: Table) -> list[str]:
    """What the caption says of all figures."""
    said = [f"grid {table.grid}"]
    if "scale" in table.shared:
        said.append(f"scale {table.shared['scale']}")
    titles = list(dict.fromkeys(title for _, title in table.models.values()))
    said.append(("models " if len(titles) > 1 else "model ") + " / ".join(titles))
    said += [f"{n} {table.shared[n]}" for n in ("dataset", PROMPT) if n in table.shared]
    streams = list(dict.fromkeys(c.stream for panel in table.panels for c in panel.columns))
    if len(streams) == 1:
        n, m = streams[0]
        said.append(f"stream {stream_label(streams[0])} ({n:,} batches of {m:,} edits)")
    return [text for text in said if not text.endswith(f"{PROMPT} {BARE}")]


def _drawn(table: Table, panel: Panel, fmt: str, long: bool, fit: Fit | None) -> Piece:
    """The panel in as many pieces as its format asks for."""
    several = len(table.models) > 1

    def shown(*metrics: str) -> Piece:
        return drawn(_sheet(table, panel, metrics, fmt), fmt, fit, blocks=several)

    if long:
        return shown(*SCORES, MEAN, *COSTS)
    without, with_mean = shown(*MEAN_OF), shown(*MEAN_OF, MEAN)
    return with_mean if with_mean.as_compact_as(without) else without


def _sheet(table: Table, panel: Panel, metrics: Sequence[str], fmt: str) -> Sheet:
    groups = _groups(table, panel)
    methods = list(dict.fromkeys((line.editor, line.variant) for line in table.lines))
    heads = [Head(label="method", left=True)]
    rows: list[list[SheetCell | str]] = [[editor_label(*method)] for method in methods]
    for subject, stream in groups:
        scale, model, dataset, prompt = subject
        name, title = table.models[scale, model]
        above = (title if fmt == "md" else name, dataset, prompt, stream_label(stream))
        for metric in metrics:
            column = Column(stream=stream, metric=metric)
            heads.append(Head(label=column.label, groups=above))
            lines = [_line(subject, method) for method in methods]
            for row, cell in zip(rows, _cells(lines, panel, column, table), strict=True):
                row.append(cell)
    apart = sum(editor == UNEDITED for editor, _ in methods)
    sheet = Sheet(heads=heads, rows=rows, apart=apart)
    # What all groups have in common stands in the caption.
    return replace(sheet.columns(range(len(heads))), title="")


def _groups(table: Table, panel: Panel) -> list[_Group]:
    """Models, datasets, prompts and streams of which there is a cell, in order."""
    there = {(_subject(line), column.stream) for line, column in panel.values}
    subjects = dict.fromkeys(_subject(line) for line in table.lines)
    streams = dict.fromkeys(column.stream for column in panel.columns)
    return [(s, stream) for s in subjects for stream in streams if (s, stream) in there]


def _subject(line: TableLine) -> _Subject:
    return (line.scale, line.model, line.dataset, line.prompt)


def _line(subject: _Subject, method: _Method) -> TableLine:
    scale, model, dataset, prompt = subject
    editor, variant = method
    return TableLine(scale=scale, model=model, dataset=dataset, prompt=prompt, editor=editor,
                     variant=variant)  # fmt: skip


def _cells(
    lines: Sequence[TableLine], panel: Panel, column: Column, table: Table
) -> list[SheetCell]:
    """The figures of a column, the best two marked."""
    cells = [_cell(panel.value(line, column), column, table.n_seeds) for line in lines]
    bases = [line.basis(panel.value(line, column)) for line in lines]
    return ranked(cells, bases, least=column.metric in COSTS)


def _cell(value: Value, column: Column, n_seeds: int) -> SheetCell:
    mean = value.mean
    if mean is None:
        # A cell that its data does not allow has no figure in the literature's tables either.
        return SheetCell(text=ABSENT if value.status == "skipped" else value.status or ABSENT)
    missing = f", {value.n_missing} {value.status}" if value.n_missing else ""
    return SheetCell(
        value=mean,
        std=value.std,
        form=".2f" if column.metric == "edit_ms" and mean < 10 else ".1f",
        mark=MARK if value.remark else "",
        note="" if len(value.values) == n_seeds else f"n={len(value.values)}{missing}",
    )


def _csv(table: Table) -> str:
    address = (*ADDRESS_FIELDS, "editor", "variant")
    columns = ("grid", *address, "n_batches", "batch_size", "protocol", PROMPT, "metric", "mean",
               "std", "n_seeds", "status", "remark")  # fmt: skip
    rows = [
        [table.grid, *(getattr(line, name) for name in address), *column.stream, panel.protocol,
         line.prompt, column.metric, value.mean, value.std, len(value.values),
         value.status or "done", value.remark]
        for panel in table.panels
        for line in table.lines
        for column in panel.columns
        if column.metric != MEAN and (value := panel.values.get((line, column))) is not None
    ]  # fmt: skip
    return as_csv(columns, rows)
