"""Stage that calibrates a step which is `auto`, once for all cells that share it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from pipeline.plan.cache_names import calibration_name
from pipeline.plan.cell_data import calibration_batch, calibration_pool
from pipeline.plan.cells import Cell
from pipeline.run.cache import Cache
from pipeline.run.rank_group import SINGLE_PROCESS, Gang
from pipeline.run.reporting import Report
from pipeline.run.stages.prepare import open_model
from pipeline.run.stages.train import training_batches
from pipeline.storage.object_store import Storage
from rledit.calibration import calibrate
from rledit.editors import editor_class


def calibrate_step(
    cell: Cell, model_folder: Path, cache: Cache, report: Report, gang: Gang = SINGLE_PROCESS
) -> None:
    """Calibrate the cell's step on a batch of its pool for that, unless the cache has it.

    The ranks of a gang share the passes, the leader writes.
    """
    name = calibration_name(cell)
    if gang.broadcast(gang.is_rank_zero and cache.file(name) is not None):
        if gang.is_rank_zero:
            cache.publish(name)
        return
    report("calibrate", 0, 1)
    cell = cell.unseeded
    model = open_model(cell, model_folder, gang)
    found = calibrate(
        model,
        editor_class(cell.editor.editor),
        cell.settings,
        calibration_batch(cell),
        partial(training_batches, cell),
    )
    report("calibrate", 1, 1)
    if gang.is_rank_zero:
        text = json.dumps({"pool": calibration_pool(cell), **found.record()}, indent=1)
        Storage(cache.folder).write_bytes(name, text.encode())
        cache.publish(name)
