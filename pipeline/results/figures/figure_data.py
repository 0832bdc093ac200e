"""Input and output types of figures: the rows a figure is drawn from, and the picture."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.results.figures.style import Row, Style
from pipeline.results.query import Connection, query, quoted

_WIDTH = re.compile(rb'<svg[^>]*? width="([0-9.]+)pt"')
_PIXELS_PER_POINT = 1.4


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure with what it shows.

    Attributes:
        title: A few words; with the section's title they name the file.
        text: How to read it.
        svg: The picture.
    """

    title: str
    text: str
    svg: bytes

    @property
    def uri(self) -> str:
        """The picture as a data URI, which needs no other file."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"

    @property
    def width(self) -> int:
        """Pixels at which text of 9 points is as large as the page's small print."""
        match = _WIDTH.search(self.svg)
        assert match is not None, "matplotlib states the width of every SVG"
        return round(float(match[1]) * _PIXELS_PER_POINT)


@dataclass(frozen=True, kw_only=True)
class FigureData:
    """The results of one grid with one model on one dataset, under one protocol.

    Attributes:
        connection: The lake's views.
        dataset: None where the rows span the datasets of a model.
        protocol: The one that the figures of scores show; where datasets differ in it, all of
            them in words.
        rows: Final rows of `runs` by that protocol, those of cells that did not finish included.
        style: Colour and marker of every editor.
    """

    connection: Connection
    grid: str
    scale: str
    model: str
    dataset: str | None
    protocol: str
    rows: Sequence[Row]
    style: Style

    @property
    def where(self) -> str:
        """The SQL condition that picks this subject's rows out of any view."""
        named = {"grid": self.grid, "scale": self.scale, "model": self.model}
        if self.dataset is not None:
            named["dataset"] = self.dataset
        return " AND ".join(f"{name} = {quoted(value)}" for name, value in named.items())

    @property
    def done(self) -> list[Row]:
        """The rows of cells that finished."""
        return [row for row in self.rows if row["status"] == "done"]

    def ask(self, sql: str) -> list[dict[str, Any]]:
        """Answers SQL over the views; `{here}` in it becomes this subject's condition."""
        return query(sql.replace("{here}", self.where), self.connection).dicts()
