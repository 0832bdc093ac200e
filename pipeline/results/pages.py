"""Pages around sheets, with captions and notes: Jinja templates ``NAME.FORMAT.j2``.

Templates draw a sheet by the macro in ``sheet.FORMAT.j2``.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from pipeline.results.fitting import split, split_at
from pipeline.results.latex import WIDTHS, Fit, Fitted, escape_latex, fitted, latex_lines
from pipeline.results.method_papers import paper_url
from pipeline.results.sheets import FORMATS, Sheet, TableError, padded
from rledit.names import nearest

TERMINAL = 120  # characters


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What a format makes of a sheet.

    Attributes:
        sheets: The sheets that it is broken into.
        latex: How they are laid out on paper.
    """

    sheets: Sequence[Sheet]
    latex: Fitted | None = None

    def as_compact_as(self, other: Piece) -> bool:
        """Whether it takes no more pieces, and no smaller type."""
        if self.latex is not None and other.latex is not None:
            if (self.latex.fit, other.latex.fit) == ("page", "column"):
                return False
            if self.latex.size.text < other.latex.size.text:
                return False
        return len(self.sheets) <= len(other.sheets)


def known_fit(fmt: str, fit: str | None) -> Fit | None:
    """The width that is asked for.

    Raises:
        TableError: There is no such width, or the format has no page.
    """
    if fit is None:
        return None
    if fmt != "latex":
        raise TableError(f"--fit {fit} is for --format latex: {fmt} has no page to fit")
    for known in WIDTHS:
        if known == fit:
            return known
    raise TableError(f"--fit {fit}: unknown width{nearest(fit, WIDTHS)}")


def drawn(sheet: Sheet, fmt: str, fit: Fit | None = None, *, blocks: bool = False) -> Piece:
    """A sheet in as many pieces as its format asks for.

    Args:
        fit: In LaTeX, what it must fit.
        blocks: In Markdown, whether each name of the outermost groups has a sheet of its own.
    """
    if fmt == "latex":
        layout = fitted(sheet, fit)
        return Piece(sheets=[one for few in layout.floats for one in few], latex=layout)
    if fmt == "md":
        parts = split_at(sheet, 0) if blocks and sheet.depth else [sheet]
        return Piece(sheets=[one for part in parts for one in split(part, _on_a_terminal)])
    return Piece(sheets=[sheet])


def _on_a_terminal(sheet: Sheet) -> bool:
    return all(len(" | ".join(line)) + 4 <= TERMINAL for line in markdown_lines(sheet)[:1])


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
    environment.filters |= {
        "md": escape_md, "wrap": _wrapped, "md_lines": markdown_lines,
        "latex": escape_latex, "latex_lines": latex_lines, "slug": _slug,
        "paper": paper_url,
    }  # fmt: skip
    return environment.get_template(f"{name}.{fmt}.j2").render(values).strip() + "\n"


def markdown_lines(sheet: Sheet) -> list[list[str]]:
    """A Markdown table that is readable before it is rendered."""
    left = [head.left for head in sheet.heads]
    heads, *body = ([escape_md(text) for text in line] for line in sheet.lines)
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


def _slug(text: str) -> str:
    """`text` as part of a label."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _wrapped(text: str, indent: str = "") -> str:
    """A paragraph in lines that a terminal holds."""
    return textwrap.fill(text, TERMINAL, subsequent_indent=indent, break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip
