"""The cells of a demo's grid as it stands, with drawn numbers: what `make demo` leaves behind."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pipeline.config.parse import load_grid
from pipeline.plan.cells import Cell, cells_of
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import SCORES, CellResult
from pipeline.results.tracking.tracker import Tracker
from tests.unit.helpers.lake_fixtures import LEVELS, address, cell

GRIDS = Path(__file__).parents[3] / "jobs" / "grids"
Row = dict[str, Any]


def grid_results(grid: str, data_hash: str, keys: dict[str, str]) -> list[CellResult]:
    """A finished cell for each that the grid's file asks for.

    Args:
        keys: Editor → key of its cell on the shortest stream; others get keys of their own.
    """
    wanted = cells_of(load_grid(GRIDS / f"{grid}.yaml"))
    shortest = min(one.stream.n_batches for one in wanted)
    return [_result(grid, one, data_hash, keys if one.stream.n_batches == shortest else {})
            for one in wanted]  # fmt: skip


def demo_folder(folder: Path, results: list[CellResult]) -> Path:
    """Writes results/lake and results/mlflow.db, as one call of `rledit run` does."""
    lake = Lake(str(folder / "results" / "lake"))
    for result in results:
        lake.commit(result)
    tracker = Tracker(
        f"sqlite:///{folder / 'results' / 'mlflow.db'}", results[0].address.grid, lake
    )
    parent = tracker.start(f"run {results[0].address.grid}")
    for result in results:
        tracker.log_cell(parent, result)
    tracker.finish(parent)
    return folder


def _result(grid: str, one: Cell, data_hash: str, keys: dict[str, str]) -> CellResult:
    editor = one.editor.editor
    stream = {"n_batches": one.stream.n_batches, "batch_size": one.stream.batch_size}
    of = {"seed": one.seed, "model": one.model.name, "dataset": one.dataset.name} | stream
    known = editor if editor in LEVELS else "ft"
    drawn = cell(
        editor=known, protocols=one.protocols, checkpoints=one.checkpoints, grid=grid, **of
    )
    where = address(
        grid=grid, editor=editor, scale=one.scale, variant=one.editor.variant, **of,
        **({"cell_key": keys[editor]} if editor in keys and not one.editor.variant else {}),
    )  # fmt: skip
    norms = [
        {"step": step, "metric": "weight_change_norm", "value": step / 100}
        for step in range(
            where.batch_size, where.n_batches * where.batch_size + 1, where.batch_size
        )
    ]
    settings = dataclasses.asdict(one.settings)
    return dataclasses.replace(
        drawn,
        address=where,
        data_hash=data_hash,
        resolved={"settings": settings},
        scores=[*_before(drawn.scores), *drawn.scores],
        steps=[*drawn.steps, *norms],
    )


def _before(scores: Any) -> list[Row]:
    """The scores of the unedited model, with which a stream begins."""
    first = {row["protocol"]: row for row in scores}
    values = dict(zip(SCORES, (8.0, 8.0, 100.0, 100.0), strict=True))
    return [
        row | values | {"checkpoint": 0, "n_edits": 0, "final": False} for row in first.values()
    ]
