"""Our figures for a layout, from the rows of a lake: per seed, with what they were measured on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.paper.layout import Method, Section, Stream
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import SCORES
from pipeline.results.query import Connection, connect, query, quoted

# The best first: what a table shows when it is not told.
SCALES = ("full", "proxy", "world")
_OWN = ("key", "model", "dataset", "variant", "scale")


@dataclass(frozen=True, kw_only=True, eq=False)
class CellRows:
    """What the lake holds of one cell.

    Attributes:
        scores: (edits applied, protocol) → score column → mean in percent.
        spreads: (edits applied, protocol, score column) → how many edits have which score.
        curves: Metric → edits applied → value.
        identity: As the cell's key was made from.
        resolved: The complete settings, and metadata about them.
    """

    key: str
    grid: str
    model: str
    dataset: str
    editor: str
    variant: str
    scale: str
    seed: int
    stream: Stream
    status: str
    reason: str | None
    identity: Mapping[str, Any]
    resolved: Mapping[str, Any]
    train_seconds: float
    edit_seconds: float
    peak_memory_gb: float | None
    scores: dict[tuple[int, str], dict[str, float | None]] = field(default_factory=dict)
    spreads: dict[tuple[int, str, str], dict[float, int]] = field(default_factory=dict)
    curves: dict[str, dict[int, float]] = field(default_factory=dict)

    @property
    def n_edits(self) -> int:
        """Edits in its stream."""
        return self.stream[0] * self.stream[1]

    @property
    def label(self) -> str:
        """The editor and its variant."""
        return self.editor + (f"/{self.variant}" if self.variant else "")

    @property
    def template(self) -> str:
        """How its model was prompted: ``bare``, as the papers do, or ``chat``."""
        return str(self.identity["model"].get("prompt", {}).get("template", "bare"))


@dataclass(frozen=True, kw_only=True)
class TablePlace:
    """The cells that answer for one method at one place of a table, one per seed.

    Attributes:
        n_edits: Edits applied where scores are read.
        asked: The stream the published table shows.
        prefix: Whether longer streams answer, at the length asked.
    """

    cells: tuple[CellRows, ...]
    n_edits: int
    asked: Stream
    prefix: bool = False

    @property
    def done(self) -> tuple[CellRows, ...]:
        """Those that have results."""
        return tuple(cell for cell in self.cells if cell.status == "done")

    @property
    def stream(self) -> Stream:
        """The stream that results are about: the one asked for, a proxy of it, or a cut one."""
        if not self.cells:
            return self.asked
        batch_size = self.cells[0].stream[1]
        return (self.n_edits // batch_size, batch_size)

    def edits_for(self, edits_at: int | None) -> int | None:
        """Edits of ours that stand for so many of the stream asked for (None: all).

        That is the same share of the stream. None: no batch of ours ends there.
        """
        if edits_at is None:
            return self.n_edits
        at, rest = divmod(edits_at * self.n_edits, self.asked[0] * self.asked[1])
        return at if rest == 0 and at % self.stream[1] == 0 else None

    def missing(self, edits_at: int | None = None) -> str:
        """Why there is no result, where there is none."""
        if not self.cells:
            return "not run"
        if self.done and self.edits_for(edits_at) is None:
            n, m = self.stream
            return f"no batch of {n}×{m} ends where {edits_at:,} edits of the published stream do"
        reasons = sorted({f"{c.status}: {c.reason}" for c in self.cells if c.status != "done"})
        return "; ".join(reasons) or "not measured there"


def read_cells(lake: str | Lake, grid: str, scale: str | None = None) -> list[CellRows]:
    """All cells of a grid at one scale; None: the best there is, published weights first.

    Raises:
        QueryError: There is no lake.
    """
    connection = connect(lake)
    found = [_cell(row) for row in _ask(connection, "*", "cells", grid)]
    scales = {cell.scale for cell in found}
    chosen = scale or next((name for name in SCALES if name in scales), None)
    cells = {_own(vars(cell)): cell for cell in found if cell.scale == chosen}
    own = ", ".join(_OWN).replace("key", "cell AS key")
    for row in _ask(connection, f"{own}, n_edits, protocol, {', '.join(SCORES)}", "runs", grid):
        if _own(row) in cells and row["protocol"] is not None:
            place = (row["n_edits"], row["protocol"])
            cells[_own(row)].scores[place] = {name: row[name] for name in SCORES}
    for name in SCORES:
        what = f"{own}, checkpoint, protocol, {name} AS score, count(*) AS n"
        rest = f"AND NOT superseded AND {name} IS NOT NULL GROUP BY ALL"
        for row in _ask(connection, what, "edits", grid, rest):
            if _own(row) in cells:
                at = (row["checkpoint"], row["protocol"], name)
                cells[_own(row)].spreads.setdefault(at, {})[row["score"]] = row["n"]
    for row in _ask(connection, f"{own}, step, metric, value", "curves", grid):
        value = row["value"]
        if _own(row) in cells and value is not None and math.isfinite(value):
            curve = cells[_own(row)].curves.setdefault(row["metric"], {})
            curve[row["step"]] = value
    return list(cells.values())


def places_of(
    section: Section, method: Method, cells: Iterable[CellRows], proxies: Mapping[Stream, Stream]
) -> dict[tuple[str, str], TablePlace]:
    """The cells that answer for a method in a section, by model and dataset.

    Args:
        proxies: Streams with what takes their place below scale `full`.
    """
    proxy = proxies.get(section.stream)
    return {
        (model, dataset): find(cells, model, dataset, method, section.stream, proxy)
        for model in section.models
        for dataset in section.datasets
    }


def _own(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Which of a grid's cells it is: one that stands at several of its places is several."""
    return tuple(row[name] for name in _OWN)


def find(
    cells: Iterable[CellRows],
    model: str,
    dataset: str,
    method: Method,
    stream: Stream,
    proxy: Stream | None = None,
) -> TablePlace:
    """The cells that answer for a method at a stream, in order of seed.

    The stream's own cells come first; then longer ones that were scored at its length for it; then
    the longest shorter ones, which a grid that was cut short leaves.

    Args:
        proxy: What takes the stream's place below scale `full`; None: nothing.
    """
    own = [
        cell
        for cell in cells
        if (cell.model, cell.dataset, cell.editor, cell.variant)
        == (model, dataset, method.editor, method.variant)
    ]
    own.sort(key=lambda cell: cell.seed)
    small = proxy is not None and any(cell.scale != "full" for cell in own)
    for wanted in (proxy, stream) if small else (stream,):
        assert wanted is not None
        n_batches, chosen, prefix = _answering(own, wanted)
        if chosen:
            n_edits = n_batches * wanted[1]
            return TablePlace(cells=chosen, n_edits=n_edits, asked=stream, prefix=prefix)
    return TablePlace(cells=(), n_edits=stream[0] * stream[1], asked=stream)


def _answering(cells: Sequence[CellRows], stream: Stream) -> tuple[int, tuple[CellRows, ...], bool]:
    """Batches after which to read which cells, and whether these are longer than that."""
    alike = [cell for cell in cells if cell.stream[1] == stream[1]]
    if exact := tuple(cell for cell in alike if cell.stream == stream):
        return stream[0], exact, False
    if longer := tuple(c for c in alike if stream[0] in c.identity.get("also_after", ())):
        return stream[0], longer, True
    longest = max((c.stream[0] for c in alike if c.stream[0] < stream[0]), default=0)
    return longest, tuple(cell for cell in alike if cell.stream[0] == longest), False


def _ask(
    connection: Connection, what: str, view: str, grid: str, rest: str = ""
) -> Sequence[dict[str, Any]]:
    return query(
        f"SELECT {what} FROM {view} WHERE grid = {quoted(grid)} {rest}", connection
    ).dicts()


def _cell(row: Mapping[str, Any]) -> CellRows:
    named = ("grid", "model", "dataset", "editor", "variant", "scale", "seed", "status", "reason",
             "peak_memory_gb")  # fmt: skip
    return CellRows(
        key=row["cell"],
        stream=(row["n_batches"], row["batch_size"]),
        identity=json.loads(row["identity"]),
        resolved=json.loads(row["resolved"]),
        train_seconds=row["train_seconds"] or 0.0,
        edit_seconds=row["edit_seconds"] or 0.0,
        **{name: row[name] for name in named},
    )
