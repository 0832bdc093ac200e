"""Tables as Markdown, LaTeX, HTML or CSV text."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jinja2

from pipeline.results.protocols import definition
from pipeline.results.tables import (
    ABSENT,
    ADDRESS_FIELDS,
    COSTS,
    MARK,
    PROMPT,
    UNEDITED,
    Column,
    Line,
    Stream,
    Table,
    TableError,
    Value,
    stream_label,
)


def environment(package: str, html: bool) -> jinja2.Environment:
    """Templates of a package: a name that is not given is an error, and HTML is escaped."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=html,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


FORMATS = ("md", "latex", "html", "csv")


def render_table(table: Table, fmt: str = "md", *, bold_best: bool = False) -> str:
    """Renders a table.

    Args:
        fmt: "md", "latex" (booktabs), "html" (a fragment), or "csv" (one line per method, stream,
            protocol and metric, unrounded).
        bold_best: mark the best mean of each column; the unedited model does not compete.

    Raises:
        TableError: the format is unknown.
    """
    if fmt not in FORMATS:
        raise TableError(f"unknown format {fmt!r}; choose from {', '.join(FORMATS)}")
    if fmt == "csv":
        return _csv(table)
    templates = environment("pipeline.results", html=fmt == "html")
    templates.filters |= {"md": escape_md, "latex": escape_latex}
    best = _best(table) if bold_best else set()
    panels = [
        {
            "protocol": panel.protocol or "none, as no cell is done",
            "definition": definition(panel.protocol),
            "groups": _groups(panel.columns),
            "columns": panel.columns,
            "lines": [
                {
                    "labels": [getattr(line, name) for name in table.varying] + [line.label],
                    "cells": [
                        {
                            "text": format_value(panel.value(line, column), column, table.n_seeds),
                            "best": (panel.protocol, line, column) in best,
                        }
                        for column in panel.columns
                    ],
                }
                for line in table.lines
            ],
        }
        for panel in table.panels
    ]
    if fmt == "md":
        _pad(table, panels)
    template = templates.get_template(f"table.{fmt}.j2")
    return template.render(table=table, panels=panels, stream=stream_label).strip() + "\n"


def format_value(value: Value, column: Column, n_seeds: int) -> str:
    """One figure as text, with its number of seeds where that is not `n_seeds`."""
    if value.mean is None:
        # A cell that its data does not allow has no figure in the literature's tables either.
        return ABSENT if value.status == "skipped" else value.status or ABSENT
    digits = 2 if column.metric == "edit_ms" and value.mean < 10 else 1
    text = f"{value.mean:.{digits}f}"
    if value.std is not None:
        text += f" ± {value.std:.{digits}f}"
    if value.remark:
        text += f" {MARK}"
    if len(value.values) == n_seeds:
        return text
    missing = f", {value.n_missing} {value.status}" if value.n_missing else ""
    return f"{text} (n={len(value.values)}{missing})"


def _pad(table: Table, panels: Sequence[dict[str, Any]]) -> None:
    """Makes Markdown readable before it is rendered: equal widths down each column."""
    for panel in panels:
        labels = [*table.varying, panel["protocol"]]
        heads = [*map(escape_md, labels)]
        heads += [f"{stream_label(c.stream)} {c.label}" for c in panel["columns"]]
        body = [
            [*map(escape_md, line["labels"])]
            + [f"**{cell['text']}**" if cell["best"] else cell["text"] for cell in line["cells"]]
            for line in panel["lines"]
        ]
        widths = [max(map(len, column)) for column in zip(heads, *body, strict=True)]
        rule = [
            ":" + "-" * (width - 1) if i < len(labels) else "-" * (width - 1) + ":"
            for i, width in enumerate(widths)
        ]
        rows = [
            [text.ljust(w) if i < len(labels) else text.rjust(w)
             for i, (text, w) in enumerate(zip(row, widths, strict=True))]
            for row in (heads, *body)
        ]  # fmt: skip
        panel["rows"] = [rows[0], rule, *rows[1:]]


def _groups(columns: Sequence[Column]) -> list[tuple[Stream, int]]:
    """Streams in order, with how many columns each spans."""
    return list(Counter(column.stream for column in columns).items())


def _best(table: Table) -> set[tuple[str, Line, Column]]:
    """Places whose mean is best among the edited models of one model and dataset."""
    best = set()
    for panel in table.panels:
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
                best |= {(panel.protocol, line, column) for score, line in found if score == top}
    return best


def _csv(table: Table) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["grid", *ADDRESS_FIELDS, "editor", "variant", "n_batches", "batch_size", "protocol",
         PROMPT, "metric", "mean", "std", "n_seeds", "status", "remark"]
    )  # fmt: skip
    for panel in table.panels:
        for line in table.lines:
            for column in panel.columns:
                if (value := panel.values.get((line, column))) is None:
                    continue
                where = [getattr(line, name) for name in (*ADDRESS_FIELDS, "editor", "variant")]
                writer.writerow(
                    [table.grid, *where, *column.stream, panel.protocol, line.prompt, column.metric]
                    + ["" if x is None else repr(x) for x in (value.mean, value.std)]
                    + [len(value.values), value.status or "done", value.remark]
                )
    return out.getvalue()


def escape_md(text: str) -> str:
    """`text` as the content of a cell of a Markdown table."""
    for mark in "\\|*`<":
        text = text.replace(mark, f"\\{mark}")
    return text


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "×": r"$\times$", "–": "--", "<": r"\textless{}", ">": r"\textgreater{}",
    "Δ": r"$\Delta$", "·": r"$\cdot$", "†": r"\dag{}", "‡": r"\ddag{}",
}  # fmt: skip


def escape_latex(text: str) -> str:
    """`text` as LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)
