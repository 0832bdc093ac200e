"""Result tables as Markdown, LaTeX, HTML or CSV text."""

from __future__ import annotations

from pipeline.results.protocol_captions import definition
from pipeline.results.sheets import ABSENT, FORMATS, MARK, Cell, Head, Sheet, as_csv, render_page
from pipeline.results.tables import (
    ADDRESS_FIELDS,
    COSTS,
    PROMPT,
    UNEDITED,
    Column,
    Line,
    Panel,
    Table,
    Value,
    stream_label,
)

__all__ = ["FORMATS", "format_value", "render_table"]


def render_table(table: Table, fmt: str = "md", *, bold_best: bool = False) -> str:
    """Renders a table.

    Args:
        fmt: "md", "latex" (booktabs), "html" (a fragment), or "csv" (one line per method, stream,
            protocol and metric, unrounded).
        bold_best: mark the best mean of each column; the unedited model does not compete.

    Raises:
        TableError: the format is unknown.
    """
    if fmt == "csv":
        return _csv(table)
    panels = [
        {"definition": definition(panel.protocol), "sheet": _sheet(table, panel, bold_best)}
        for panel in table.panels
    ]
    return render_page("pipeline.results", "table", fmt, table=table, panels=panels)


def format_value(value: Value, column: Column, n_seeds: int) -> str:
    """One figure as text, with its number of seeds where that is not `n_seeds`."""
    return str(_cell(value, column, n_seeds))


def _cell(value: Value, column: Column, n_seeds: int, best: bool = False) -> Cell:
    mean = value.mean
    if mean is None:
        # A cell that its data does not allow has no figure in the literature's tables either.
        return Cell(text=ABSENT if value.status == "skipped" else value.status or ABSENT)
    missing = f", {value.n_missing} {value.status}" if value.n_missing else ""
    return Cell(
        value=mean,
        std=value.std,
        form=".2f" if column.metric == "edit_ms" and mean < 10 else ".1f",
        mark=MARK if value.remark else "",
        note="" if len(value.values) == n_seeds else f"n={len(value.values)}{missing}",
        best=best,
    )


def _sheet(table: Table, panel: Panel, bold_best: bool) -> Sheet:
    best = _best(table, panel) if bold_best else set()
    labels = [Head(label=name, left=True) for name in (*table.varying, "editor")]
    figures = [Head(label=c.label, group=stream_label(c.stream)) for c in panel.columns]
    rows = [
        [*(getattr(line, name) for name in table.varying), line.label]
        + [
            _cell(panel.value(line, column), column, table.n_seeds, (line, column) in best)
            for column in panel.columns
        ]
        for line in table.lines
    ]
    return Sheet(
        heads=[*labels, *figures], rows=rows, name=panel.protocol or "none, as no cell is done"
    )


def _best(table: Table, panel: Panel) -> set[tuple[Line, Column]]:
    """Places whose mean is best among the edited models of one model and dataset."""
    best = set()
    for column in panel.columns:
        fields: dict[tuple[str, ...], list[tuple[float, Line]]] = {}
        for line in table.lines:
            mean = panel.value(line, column).mean
            if mean is not None and line.editor != UNEDITED:
                sign = -1.0 if column.metric in COSTS else 1.0
                where = tuple(getattr(line, name) for name in ADDRESS_FIELDS)
                fields.setdefault(where, []).append((sign * mean, line))
        for found in fields.values():
            top = max(score for score, _ in found)
            best |= {(line, column) for score, line in found if score == top}
    return best


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
        if (value := panel.values.get((line, column))) is not None
    ]  # fmt: skip
    return as_csv(columns, rows)
