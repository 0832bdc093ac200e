"""Reference grids: the published settings of a table, against which a cell's are compared.

A row of the lake says how it was measured; the reference is the grid that ships under the table's
name, at scale `full` with its presets resolved. Nothing is opened for it, neither weights nor data.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path

from pipeline.config.parse import load_grid, parse_grid, read_grid
from pipeline.paper.layout import Stream
from pipeline.plan.cells import Cell, cells_of

# Data of the package `jobs`, of a checkout as of an installed wheel; none of its code is used.
_FOLDER = Path(str(resources.files("jobs"))) / "grids"

Part = tuple[str, str, str, str]  # model, dataset, editor, variant


def reference_grid(name: str) -> Path:
    """The file of the grid of that name."""
    return _FOLDER / f"{name}.yaml"


@lru_cache(maxsize=16)
def proxy_streams(name: str) -> Mapping[Stream, Stream]:
    """The streams of a grid, each with the one that takes its place below scale `full`."""
    grid = parse_grid(read_grid(reference_grid(name)))
    return {
        (own.n_batches, own.batch_size): (small.n_batches, small.batch_size)
        for own, small in zip(grid.streams, grid.standins, strict=bool(grid.standins))
        if small is not None
    }


@lru_cache(maxsize=16)
def published_cells(name: str) -> Mapping[Part, Cell]:
    """A cell of every model, dataset, editor and variant, of whichever stream and seed."""
    return {
        (cell.model.name, cell.dataset.name, cell.editor_name, cell.editor.variant): cell
        for cell in cells_of(load_grid(reference_grid(name)))
    }
