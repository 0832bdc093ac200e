"""Run one cell from its model to its rows in the lake."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.cells import Cell
from pipeline.results.lake import Lake
from pipeline.results.records import CellResult
from pipeline.run.memory import PeakMemory
from pipeline.run.report import Report
from pipeline.run.stages.edit import StreamRows, edit_stream, state_folder
from pipeline.run.stages.train import Trained, load_trained
from pipeline.versions import code_version, library_versions

logger = logging.getLogger(__name__)


def run_cell(
    cell: Cell, model_folder: Path, trained: Path | None, cache: Path, lake: Lake, report: Report
) -> str:
    """Edit, score and commit a cell whose model and network are ready.

    Returns:
        The recorded status.
    """
    if lake.is_done(cell.key):
        return "done"
    started = datetime.now(UTC)
    memory = PeakMemory()
    network = load_trained(trained) if trained else None
    rows = edit_stream(cell, model_folder, cache, network, report)
    lake.commit(
        _result(
            cell,
            rows,
            network,
            model_hash=model_folder.name,
            started_at=started,
            peak_memory_gb=memory.gigabytes(),
        )
    )
    state_folder(cell, cache).clear()
    return "done"


def record_failure(cell: Cell, lake: Lake, reason: str) -> None:
    """Leave a failed cell's reason in the lake; a later success replaces it."""
    lake.record_failure(
        cell.address,
        reason,
        identity=cell.identity,
        code_version=code_version(),
        data_hash=cell.identity["dataset"]["data_hash"],
    )


def _result(cell: Cell, rows: StreamRows, network: Trained | None, **facts: Any) -> CellResult:
    training = [
        {"step": step + 1, "metric": f"train_{name}", "value": value}
        for step, metrics in enumerate(network.curve if network else [])
        for name, value in metrics.items()
    ]
    return CellResult(
        address=cell.address,
        identity=cell.identity,
        resolved={**cell.identity, "execution": {"threads": cell.threads}},
        data_hash=cell.identity["dataset"]["data_hash"],
        code_version=code_version(),
        versions=library_versions(),
        protocols=cell.protocols,
        edits=rows.edits,
        scores=rows.scores,
        steps=rows.steps + training,
        train_seconds=network.seconds if network else 0.0,
        edit_seconds=rows.edit_seconds,
        edit_ms=1000 * rows.edit_seconds / cell.n_edits,
        score_seconds=rows.score_seconds,
        n_edits=cell.n_edits,
        n_contradicting=rows.n_contradicting,
        threads=cell.threads,
        ranks=1,
        finished_at=datetime.now(UTC),
        **facts,
    )
