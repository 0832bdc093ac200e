"""Sheets as LaTeX: cells, heads and rules, and the widths that decide what fits where.

Widths are those of Computer Modern, which is wider than the fonts of most styles. Type sizes are
given in points, so that they are the same in every class.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pipeline.results.fitting import split
from pipeline.results.sheets import Head, Sheet, SheetCell

Fit = Literal["column", "page"]
# The narrowest of common styles, in points: a column of ACL's, the text of `article` in one column.
WIDTHS: dict[Fit, float] = {"column": 219.0, "page": 345.0}
_LEADING = 1.2  # of the type size, from line to line
_HEIGHT = 400.0  # points of one float: a page of `article` less caption and notes
_LONG_HEAD = 8  # characters: longer heads are broken between words
_LONGEST: dict[Fit, float] = {"column": 72.0, "page": 82.0}  # longer names of rows are broken

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "±": r"$\pm$", "×": r"$\times$", "–": "--", "<": r"\textless{}", ">": r"\textgreater{}",
    "Δ": r"$\Delta$", "·": r"$\cdot$", "†": r"\dag{}", "‡": r"\ddag{}", "≠": r"$\neq$",
    "≤": r"$\leq$", "≥": r"$\geq$", "→": r"$\rightarrow$", "−": "$-$", "…": r"\dots{}", "|": r"$|$",
}  # fmt: skip
_NARROW = {**dict.fromkeys("ilj.,:;'|!–·()[]", 0.33), **dict.fromkeys("mwMW", 0.95), "%": 0.84,
           "Δ": 0.84, "±": 0.78, "×": 0.78, "+": 0.78, "~": 0.6}  # fmt: skip
_LETTER = 0.53  # of the type size
_BOLD = 1.15  # bold digits are wider


@dataclass(frozen=True, kw_only=True)
class Size:
    """A type size, in points.

    Attributes:
        text: Of the text.
        em: What letters are measured in there: small type is cut wider than it is high.
        small: The same of subscripts.
        gap: Between two columns.
    """

    text: float
    em: float
    small: float
    gap: float


SIZES = (
    Size(text=9, em=9.0, small=7.2, gap=9),
    Size(text=8, em=8.2, small=7.2, gap=6.5),
    Size(text=7, em=7.6, small=6.8, gap=5),
)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """Sheets that stand in floats of one width.

    Attributes:
        floats: The sheets of each float, below each other.
    """

    fit: Fit
    size: Size
    floats: Sequence[Sequence[Sheet]]

    @property
    def n_sheets(self) -> int:
        """How many sheets there are."""
        return sum(len(sheets) for sheets in self.floats)

    @property
    def environment(self) -> str:
        """What stands across a page is ``table*``, which one-column classes have as well."""
        return "table*" if self.fit == "page" else "table"


def escape_latex(text: str) -> str:
    """`text` as LaTeX."""
    return "".join(_LATEX.get(character, character) for character in text)


def fitted(sheet: Sheet, fit: Fit | None = None) -> Fitted:
    """A sheet in as few pieces as fit, at the largest size at which they are so few.

    Args:
        fit: The width; None: a column where it fits there in one piece, else a page.
    """
    if fit is None:
        fit = "column" if any(_fits(sheet, size, "column") for size in SIZES[:2]) else "page"
    width: Fit = fit
    found = []
    for size in SIZES:
        pieces = split(sheet, lambda s: _fits(s, size, width))  # noqa: B023
        parts = [part for piece in pieces for part in _cut(piece, size)]
        found.append(Fitted(fit=width, size=size, floats=_floats(parts, size)))
    return min(found, key=lambda one: (len(one.floats), one.n_sheets))


def _floats(pieces: Sequence[Sheet], size: Size) -> list[list[Sheet]]:
    """Sheets below each other, in as few floats as pages hold."""
    floats: list[list[Sheet]] = []
    left = 0.0
    for piece in pieces:
        height = _height(piece, size)
        if not floats or height > left:
            floats.append([])
            left = _HEIGHT
        floats[-1].append(piece)
        left -= height
    return floats


def _cut(sheet: Sheet, size: Size) -> list[Sheet]:
    """A sheet with more rows than a page holds as several."""
    parts: list[list[Sequence[SheetCell | str]]] = [[]]
    for row in sheet.rows:
        if parts[-1] and _height(replace(sheet, rows=[*parts[-1], row]), size) > _HEIGHT:
            parts.append([])
        parts[-1].append(row)
    return [replace(sheet, rows=rows, apart=0 if i else sheet.apart)
            for i, rows in enumerate(parts)]  # fmt: skip


def _height(sheet: Sheet, size: Size) -> float:
    """Points that a sheet takes, its rules included."""
    lines = sum(_row_lines(row, size) for row in sheet.rows)
    return (lines + sheet.depth + 4.5) * _LEADING * size.text


def _row_lines(row: Sequence[SheetCell | str], size: Size) -> int:
    """Lines of a row whose longest text is broken between words."""
    most = int(_LONGEST["column"] / (_LETTER * size.em))
    return max(len(textwrap.wrap(c, most)) for c in row if isinstance(c, str))


def latex_lines(sheet: Sheet, fit: Fit, size: Size) -> list[str]:
    """A ``tabular`` in the rules of booktabs."""
    n_left, n = sheet.n_left, len(sheet.heads)
    longest = _LONGEST[fit]
    own = _own_widths(sheet, size, longest)
    columns = "".join("l" if head.left else "r" for head in sheet.heads)
    lines = [rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}", r"\toprule"]
    if sheet.title and n > n_left:
        title = rf"\multicolumn{{{n - n_left}}}{{c}}{{{escape_latex(sheet.title)}}}"
        lines.append(rf"{_empty(n_left)}{title} \\ \cmidrule(l){{{n_left + 1}-{n}}}")
    for level in range(sheet.depth):
        spans, at, rules = [], n_left, []
        for name, width in sheet.spans(level):
            room = _spanned(own, at, width, size)
            head = _stacked(_group_lines(name, room, size), "c")
            spans.append(rf"\multicolumn{{{width}}}{{c}}{{{head}}}")
            rules.append(rf"\cmidrule(lr){{{at + 1}-{at + width}}}")
            at += width
        lines.append(rf"{_empty(n_left)}{' & '.join(spans)} \\ {''.join(rules)}")
    heads = [_stacked(_head_lines(head), "r") for head in sheet.heads]
    lines += [" & ".join(heads) + r" \\", r"\midrule"]
    for i, row in enumerate(sheet.rows):
        if i == sheet.apart and i:
            lines.append(r"\midrule")
        lines.append(" & ".join(_cell(cell, size, longest) for cell in row) + r" \\")
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _empty(n_left: int) -> str:
    """The names of rows have no group above them."""
    return "& " * n_left


def _stacked(lines: Sequence[str], side: str) -> str:
    text = r" \\ ".join(map(escape_latex, lines))
    return text if len(lines) == 1 else rf"\shortstack[{side}]{{\strut {text}}}"


def _head_lines(head: Head) -> list[str]:
    """A long head in two lines."""
    if head.left or len(head.label) <= _LONG_HEAD:
        return [head.label]
    return textwrap.wrap(head.label, max(_LONG_HEAD, len(head.label) // 2 + 2))


def _group_lines(name: str, room: float, size: Size) -> list[str]:
    """The head of a group in as few lines as its columns are wide, three at most."""
    lines = [name]
    for n in range(1, 4):
        lines = textwrap.wrap(name, len(name) // n + 2, break_long_words=False,
                              break_on_hyphens=False)  # fmt: skip
        if max(_text_width(line, size.em) for line in lines) <= room:
            break
    return lines


def _cell(cell: SheetCell | str, size: Size, longest: float) -> str:
    if isinstance(cell, str):
        return _broken(cell, size, longest)
    if cell.value is None:
        return escape_latex(cell.text)
    number = f"{cell.value:{cell.form}}".replace("-", "$-$")
    if cell.best:
        number = rf"\textbf{{{number}}}"
    elif cell.second:
        number = rf"\underline{{{number}}}"
    if cell.std is not None:
        number += rf"$_{{\pm {cell.std:{cell.form}}}}$"
    if cell.mark:
        number += rf"\textsuperscript{{{escape_latex(cell.mark)}}}"
    if cell.interval is not None:
        number += " [{:.1f}, {:.1f}]".format(*cell.interval).replace("-", "$-$")
    if cell.note:
        number += rf" ({escape_latex(cell.note)})"
    return number


def _broken(text: str, size: Size, longest: float) -> str:
    """A text; one that is too long in lines, which may break behind an underscore."""
    if _text_width(text, size.em) <= longest:
        return escape_latex(text)
    inside = re.sub(r"(\\_|/|-)", r"\1\\allowbreak{}", escape_latex(text))
    return rf"\parbox[t]{{{longest:.0f}pt}}{{\raggedright\hangindent=0.7em {inside}\strut}}"


def _fits(sheet: Sheet, size: Size, fit: Fit) -> bool:
    return _width(sheet, size, _LONGEST[fit]) <= WIDTHS[fit]


def _width(sheet: Sheet, size: Size, longest: float) -> float:
    """Points that a sheet takes."""
    widths = _own_widths(sheet, size, longest)
    n_left = sheet.n_left
    for level in range(sheet.depth):
        at = n_left
        for name, n in sheet.spans(level):
            room = _spanned(widths, at, n, size)
            wanted = max(_text_width(s, size.em) for s in _group_lines(name, room, size))
            widths[at + n - 1] += max(0.0, wanted - room)  # TeX makes the last column wider
            at += n
    if sheet.title and len(widths) > n_left:
        room = _spanned(widths, n_left, len(widths) - n_left, size)
        widths[-1] += max(0.0, _text_width(sheet.title, size.em) - room)
    return _spanned(widths, 0, len(widths), size)


def _own_widths(sheet: Sheet, size: Size, longest: float) -> list[float]:
    """Points that each column takes, without the groups above it."""
    return [
        max(
            *(_text_width(line, size.em) for line in _head_lines(head)),
            *(_cell_width(row[i], size, longest) for row in sheet.rows),
            0.0,
        )
        for i, head in enumerate(sheet.heads)
    ]


def _spanned(widths: Sequence[float], at: int, n: int, size: Size) -> float:
    """Points that neighbouring columns take with the gaps between them."""
    return sum(widths[at : at + n]) + (n - 1) * size.gap


def _cell_width(cell: SheetCell | str, size: Size, longest: float) -> float:
    if isinstance(cell, str):
        return min(_text_width(cell, size.em), longest)
    if cell.value is None:
        return _text_width(cell.text, size.em)
    number = _text_width(f"{cell.value:{cell.form}}", size.em)
    width = number * (_BOLD if cell.best else 1.0)
    if cell.std is not None:
        width += _text_width(f"±{cell.std:{cell.form}}", size.small) + 0.5
    rest = str(SheetCell(value=0.0, form=".0f", interval=cell.interval, note=cell.note))[1:]
    return width + _text_width(rest, size.em) + (0.5 * size.small if cell.mark else 0.0)


def _text_width(text: str, points: float) -> float:
    return points * sum(_NARROW.get(c, 0.75 if c.isupper() else _LETTER) for c in text)
