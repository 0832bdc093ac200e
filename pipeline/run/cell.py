"""Runs one cell on a worker, from its model to its committed rows in the lake."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.plan.architecture import architecture_of
from pipeline.plan.cell_data import read_metadata
from pipeline.plan.cell_keys import address_of, identity_of, model_hash_of
from pipeline.plan.cells import Cell
from pipeline.plan.stored_spec import write_cell_spec
from pipeline.plan.versions import code_version, library_versions
from pipeline.results.lake.lake import Lake
from pipeline.results.lake.records import CellResult
from pipeline.results.without_effect import remark_of
from pipeline.run.cache import Cache
from pipeline.run.device import PeakMemory, device_of
from pipeline.run.rank_group import SINGLE_PROCESS, Gang
from pipeline.run.reporting import Report
from pipeline.run.stages.edit import (
    StreamBroken,
    StreamRows,
    edit_stream,
    reached,
    state_folder,
)
from pipeline.run.stages.train import Trained, load_trained

logger = logging.getLogger(__name__)


def run_cell(
    cell: Cell,
    model_folder: Path,
    trained: Path | None,
    cache: Cache,
    lake: Lake,
    report: Report,
    gang: Gang = SINGLE_PROCESS,
    interruptions: Sequence[str] = (),
) -> str:
    """Edit, score and commit a cell whose model and network are ready.

    Args:
        cell: The cell.
        model_folder: Its model.
        trained: Its trained network, if it has one.
        cache: Where its resume state lies.
        lake: Where its rows go; the leader of a gang alone writes them.
        report: Told how far the work is.
        gang: The ranks that do it.
        interruptions: Why earlier attempts ended; kept with the rows.

    Returns:
        The recorded status, or ``found`` where the lake has the cell already.

    Raises:
        NonFiniteError: The model gives no numbers, or an edit or a measured value is none. What was
            scored before is in the lake then, under the failed cell, as after any other error
            from which a stream cannot go on.
    """
    if gang.broadcast(gang.is_rank_zero and lake.is_done(address_of(cell))):
        return "found"
    started = datetime.now(UTC)
    memory = PeakMemory(device_of(cell.resources))
    network = load_trained(trained) if trained else None
    try:
        rows = edit_stream(cell, model_folder, cache, network, report, gang)
    except StreamBroken as broken:
        if gang.is_rank_zero:
            record_broken(cell, lake, broken)
        raise broken.error from None
    if not gang.is_rank_zero:
        return "done"
    report("commit", 0, 1)
    write_cell_spec(cell, lake.storage)
    lake.commit(
        _result(
            cell,
            rows,
            network,
            interruptions,
            model_hash=model_hash_of(cell),
            started_at=started,
            peak_memory_gb=memory.gigabytes(),
        )
    )
    state_folder(cell, cache).clear()
    report("commit", 1, 1)
    return "done"


def record_failure(cell: Cell, lake: Lake, reason: str) -> None:
    """Leave a failed cell's reason in the lake; a later success replaces it."""
    lake.record_failure(
        address_of(cell),
        reason,
        identity=identity_of(cell),
        code_version=code_version(),
        data_hash=identity_of(cell)["dataset"]["data_hash"],
    )


def record_broken(cell: Cell, lake: Lake, broken: StreamBroken) -> None:
    """Leave in the lake why a stream cannot go on, with the rows of what it reached.

    Checkpoints that it did reach are none of them final. Run again, the cell is tried again.
    """
    rows = broken.rows
    lake.record_failure(
        address_of(cell),
        f"{type(broken.error).__name__}: {broken.error}; {reached(rows)}",
        identity=identity_of(cell),
        code_version=code_version(),
        data_hash=identity_of(cell)["dataset"]["data_hash"],
        protocols=cell.protocols,
        edits=rows.edits,
        scores=[{**row, "final": False} for row in rows.scores],
        steps=rows.steps,
        resolved={**identity_of(cell), **read_metadata(cell), **rows.facts},
        finished_at=datetime.now(UTC),
    )


def record_skip(cell: Cell, lake: Lake, reason: str) -> str:
    """Leave in the lake why a cell cannot be run; returns its status."""
    lake.record_failure(
        address_of(cell),
        reason,
        identity=identity_of(cell),
        code_version=code_version(),
        status="skipped",
        data_hash=identity_of(cell)["dataset"]["data_hash"],
    )
    return "skipped"


def _result(
    cell: Cell,
    rows: StreamRows,
    network: Trained | None,
    interruptions: Sequence[str],
    **metadata: Any,
) -> CellResult:
    training = [
        {"step": step + 1, "metric": f"train_{name}", "value": value}
        for step, metrics in enumerate(network.curve if network else [])
        for name, value in metrics.items()
    ]
    if network is not None:
        training += list(_validation_rows(network))
    remark = remark_of(cell.editor_name, _used(cell, rows), rows.scores, rows.steps)
    return CellResult(
        address=address_of(cell),
        identity=identity_of(cell),
        resolved={
            **identity_of(cell),
            **read_metadata(cell),
            **rows.facts,
            **({"remark": remark} if remark else {}),
            **_size(cell),
            **({"training": network.outcome} if network and network.outcome else {}),
            "execution": _execution(cell, rows, interruptions),
        },
        data_hash=identity_of(cell)["dataset"]["data_hash"],
        code_version=code_version(),
        versions=library_versions(),
        protocols=cell.protocols,
        edits=rows.edits,
        scores=rows.scores,
        steps=rows.steps + training,
        answers=rows.answers,
        free_answers=rows.free_answers,
        train_seconds=network.seconds if network else 0.0,
        edit_seconds=rows.edit_seconds,
        edit_ms=1000 * rows.edit_seconds / cell.n_edits,
        score_seconds=rows.score_seconds,
        n_edits=cell.n_edits,
        n_contradicting=rows.n_contradicting,
        threads=cell.threads,
        ranks=cell.resources.ranks,
        finished_at=datetime.now(UTC),
        **metadata,
    )


def _validation_rows(network: Trained) -> Iterator[dict[str, Any]]:
    """What was found of a network while it was trained, by training steps; the best one marked."""
    for found in network.validations:
        for name, value in found.metrics.items():
            yield {"step": found.step, "metric": f"validation_{name}", "value": value}
    if network.outcome:
        step, score = network.outcome["best_step"], network.outcome["best_score"]
        yield {"step": step, "metric": "validation_best", "value": score}


def _size(cell: Cell) -> dict[str, int]:
    """Parameters of a model that was trained on the spot, for captions of tables."""
    if cell.model.checkpoint is not None:
        return {}
    return {"parameters": architecture_of(cell).parameters}


def _used(cell: Cell, rows: StreamRows) -> dict[str, Any]:
    """The editor's settings with the step that was calibrated, where it was."""
    found = rows.facts.get("calibration")
    return asdict(cell.settings) | ({found["setting"]: found["step"]} if found else {})


def _execution(cell: Cell, rows: StreamRows, interruptions: Sequence[str]) -> dict[str, Any]:
    """How the cell was run, which is no part of its identity."""
    return {
        "threads": cell.threads,
        **asdict(cell.resources),
        "held_share": rows.held_shares,
        "interruptions": list(interruptions),
    }
