"""Tables before they are written down: cells, heads and rows, and their text in lines.

Whoever makes a table fills a `Sheet`; `fitting` breaks one that is too wide into several, and
`pages` writes them as Markdown, LaTeX or HTML.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from rledit.errors import UserError

FORMATS = ("md", "latex", "html", "csv")
ABSENT = "–"
MARK = "‡"  # behind figures that a remark is on


class TableError(UserError, ValueError):
    """Rows from which no honest table can be made, or a format that there is not."""


@dataclass(frozen=True, kw_only=True)
class SheetCell:
    """One figure of a table with what stands around it.

    Attributes:
        value: The number; None where there is none.
        std: Its standard deviation, behind ±.
        interval: Its interval, in square brackets.
        form: Format of the number, e.g. ``.1f``.
        mark: The sign of a footnote.
        note: What is said in brackets behind it.
        best: Whether it is the best of its column.
        second: Whether it is the second of its column.
        text: What stands there without a number.
    """

    value: float | None = None
    std: float | None = None
    interval: tuple[float, float] | None = None
    form: str = ".1f"
    mark: str = ""
    note: str = ""
    best: bool = False
    second: bool = False
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
        groups: What the column has in common with its neighbours, the outermost first, such as
            model and dataset: one name for each level of heads.
        left: Whether the column names the row: on the left, in HTML a head of its row.
    """

    label: str
    groups: tuple[str, ...] = ()
    left: bool = False


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table that only has to be written down.

    Attributes:
        title: What all its columns have in common and no head says.
        apart: How many of the first rows a rule parts from the rest.
    """

    heads: Sequence[Head]
    rows: Sequence[Sequence[SheetCell | str]]
    title: str = ""
    apart: int = 0

    @property
    def n_left(self) -> int:
        """Columns that name the row; they come first."""
        return sum(head.left for head in self.heads)

    @property
    def depth(self) -> int:
        """Levels of groups."""
        return max((len(head.groups) for head in self.heads), default=0)

    def values(self, level: int) -> list[str]:
        """The distinct names at a level of groups, in order."""
        return list(dict.fromkeys(h.groups[level] for h in self.heads if not h.left))

    def spans(self, level: int) -> list[tuple[str, int]]:
        """The groups at a level, each with how many columns it spans."""
        outer = (head.groups[: level + 1] for head in self.heads if not head.left)
        return [(key[-1], len(list(run))) for key, run in groupby(outer)]

    def columns(self, kept: Collection[int]) -> Sheet:
        """The columns that name the row and the chosen ones, by place."""
        places = [i for i, head in enumerate(self.heads) if head.left or i in kept]
        return replace(
            self,
            heads=[self.heads[i] for i in places],
            rows=[[row[i] for i in places] for row in self.rows],
        )._tidied()

    def only(self, level: int, values: Collection[str]) -> Sheet:
        """The columns with one of these names at a level of groups."""
        return self.columns(
            [i for i, h in enumerate(self.heads) if not h.left and h.groups[level] in values]
        )

    def _tidied(self) -> Sheet:
        """A level that has become the same in all columns is said in the title."""
        same = [level for level in range(self.depth) if len(self.values(level)) == 1]
        if not same:
            return self
        heads = [
            replace(h, groups=tuple(g for i, g in enumerate(h.groups) if i not in same))
            for h in self.heads
        ]
        said = [self.title, *(self.values(level)[0] for level in same)]
        return replace(self, heads=heads, title=" · ".join(filter(None, said)))

    @property
    def lines(self) -> list[list[str]]:
        """Heads and rows as text; the first column of a group says which group it is."""
        heads: list[str] = []
        before: tuple[str, ...] = ()
        for head in self.heads:
            new = head.groups and head.groups != before
            heads.append(f"{' '.join(head.groups)}: {head.label}" if new else head.label)
            before = head.groups
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
