"""Input and output types of figures: the frames a figure is drawn from, and the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pandas import DataFrame

from pipeline.results.figures.style import Style
from pipeline.results.query import Connection, query, quoted
from pipeline.results.tables import Stream, editor_label


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure as SVG with what it shows and how to read it; its title and section name the file.

    Without an SVG the text says all that there is to see, a flat line for example.
    """

    title: str
    text: str
    svg: bytes = b""


@dataclass(frozen=True, kw_only=True)
class FigureData:
    """The results of one grid with one model on one dataset, under one protocol.

    Attributes:
        connection: The lake's views.
        dataset: None where the rows span the datasets of a model.
        protocol: The one that the figures of scores show; where datasets differ in it, all of
            them in words.
        rows: Final rows of `runs` by that protocol, those of cells that did not finish included,
            as `framed` gives them.
        style: Colour and marker of every editor.
    """

    connection: Connection
    grid: str
    scale: str
    model: str
    dataset: str | None
    protocol: str
    rows: DataFrame
    style: Style

    @property
    def where(self) -> str:
        """The SQL condition that picks this subject's rows out of any view."""
        named = {"grid": self.grid, "scale": self.scale, "model": self.model}
        if self.dataset is not None:
            named["dataset"] = self.dataset
        return " AND ".join(f"{name} = {quoted(value)}" for name, value in named.items())

    @property
    def done(self) -> DataFrame:
        """The rows of cells that finished."""
        return self.rows[self.rows["status"] == "done"]

    def ask(self, sql: str) -> DataFrame:
        """Answers SQL over the views; `{here}` in it becomes this subject's condition."""
        answer = query(sql.replace("{here}", self.where), self.connection)
        return framed(answer.dicts(), answer.columns)


def framed(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> DataFrame:
    """Rows as a frame; where they name an editor, with its name in legends as column `label`."""
    frame = DataFrame(list(rows), columns=None if columns is None else list(columns))
    if {"editor", "variant"} <= set(frame.columns):
        names = zip(frame["editor"], frame["variant"], strict=True)
        frame["label"] = [editor_label(editor, variant) for editor, variant in names]
    # A number that no row has is NaN everywhere, as it is where some rows have it.
    unknown = [name for name in frame.columns if len(frame) and frame[name].isna().all()]
    return frame.astype(dict.fromkeys(unknown, float))


def streams_of(frame: DataFrame) -> list[Stream]:
    """The streams among rows as (batches, edits per batch), the shortest first."""
    found = set(zip(frame["n_batches"], frame["batch_size"], strict=True))
    return sorted(found, key=lambda stream: (stream[0] * stream[1], stream))


def of_stream(frame: DataFrame, stream: Stream) -> DataFrame:
    """The rows of one stream."""
    return frame[(frame["n_batches"] == stream[0]) & (frame["batch_size"] == stream[1])]


def longest_stream(frame: DataFrame) -> Stream:
    """The stream of most edits; among several of these the one with most editors."""

    def size(stream: Stream) -> tuple[int, int]:
        return (stream[0] * stream[1], of_stream(frame, stream)["label"].nunique())

    return max(streams_of(frame), key=size)
