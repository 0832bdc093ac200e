"""Tables as text: one structure, and a renderer each for terminals, Markdown, LaTeX, HTML and CSV.

Whoever makes a table fills a `Sheet`. Pages around sheets (captions, notes) are Jinja templates
`NAME.FORMAT.j2`, which draw a sheet by the macro in `sheet.FORMAT.j2`.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from rledit.errors import UserError

FORMATS = ("md", "latex", "html", "csv")
ABSENT = "–"
MARK = "‡"  # behind figures that a remark is on


class TableError(UserError, ValueError):
    """Rows from which no honest table can be made, or a format that there is not."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One figure of a table with what stands around it.

    Attributes:
        value: The number; None where there is none.
        std: Its standard deviation, behind ±.
        interval: Its interval, in square brackets.
        form: Format of the number, e.g. ``.1f``.
        mark: The sign of a footnote.
        note: What is said in brackets behind it.
        best: Whether it is the best of its column.
        text: What stands there without a number.
    """

    value: float | None = None
    std: float | None = None
    interval: tuple[float, float] | None = None
    form: str = ".1f"
    mark: str = ""
    note: str = ""
    best: bool = False
    text: str = ABSENT

    def __str__(self) -> str:
        if self.value is None:
            return self.text
        parts = [f"{self.value:{self.form}}"]
        if self.std is not None:
            parts.append(f"± {self.std:{self.form}}")
        if self.interval is not None:
            parts.append("[{:.1f}, {:.1f}]".format(*self.interval))
        if self.mark:
            parts.append(self.mark)
        if self.note:
            parts.append(f"({self.note})")
        return " ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Head:
    """The head of a column.

    Attributes:
        label: What it says.
        group: What neighbouring columns have in common; "" for none.
        left: Whether the column names the row: on the left, in HTML a head of its row.
    """

    label: str
    group: str = ""
    left: bool = False


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table that only has to be written down.

    Attributes:
        name: What all figures are by, such as a protocol. It stands with every group; in Markdown,
            which has one line of heads, over the last column of row names.
    """

    heads: Sequence[Head]
    rows: Sequence[Sequence[Cell | str]]
    name: str = ""

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Groups in order, with how many columns each spans."""
        return list(Counter(head.group for head in self.heads if head.group).items())

    @property
    def lines(self) -> list[list[str]]:
        """Heads and rows as text, the group before each head."""
        heads = [f"{head.group} {head.label}".strip() for head in self.heads]
        if self.name:
            heads[sum(head.left for head in self.heads) - 1] = self.name
        return [heads, *([str(cell) for cell in row] for row in self.rows)]


def padded(lines: Sequence[Sequence[str]], left: Sequence[bool], least: int) -> list[list[str]]:
    """Texts with equal widths down each column."""
    widths = [max(least, *map(len, column)) for column in zip(*lines, strict=True)]
    return [
        [
            text.ljust(width) if on_left else text.rjust(width)
            for text, width, on_left in zip(line, widths, left, strict=True)
        ]
        for line in lines
    ]


def as_terminal(sheet: Sheet) -> list[str]:
    """Lines for a terminal: columns two spaces apart, a rule below the heads."""
    heads, *body = padded(sheet.lines, [head.left for head in sheet.heads], 0)
    rule = ["-" * len(text) for text in heads]
    return ["  ".join(line).rstrip() for line in (heads, rule, *body)]


def as_csv(columns: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Lines of CSV, unrounded; None is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue()


def render_page(package: str, name: str, fmt: str, **values: Any) -> str:
    """A page from the template of a package: a value that is not given is an error.

    Raises:
        TableError: The format is unknown.
    """
    if fmt not in FORMATS:
        raise TableError(f"unknown format {fmt!r}; choose from {', '.join(FORMATS)}")
    packages = dict.fromkeys((package, "pipeline.results"))
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in packages]),
        autoescape=fmt == "html",
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"md": escape_md, "latex": escape_latex, "md_lines": _markdown_lines}
    return environment.get_template(f"{name}.{fmt}.j2").render(values).strip() + "\n"


def _markdown_lines(sheet: Sheet) -> list[list[str]]:
    """A Markdown table that is readable before it is rendered."""
    left = [head.left for head in sheet.heads]
    heads, *body = ([escape_md(text) for text in line] for line in sheet.lines)
    for line, row in zip(body, sheet.rows, strict=True):
        for i, cell in enumerate(row):
            if isinstance(cell, Cell) and cell.best:
                line[i] = f"**{line[i]}**"
    heads, *body = padded([heads, *body], left, 3)
    rule = [
        ":" + "-" * (len(text) - 1) if on_left else "-" * (len(text) - 1) + ":"
        for text, on_left in zip(heads, left, strict=True)
    ]
    return [heads, rule, *body]


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
